"""Garden's requests where other people's drivers are: one that takes them, and one that does not come back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from foreign import DRIVERS, TYPES, install, python_path
from pytest_netns import NetnsFactory
from world import Answer, World, eventually, open_world

# Publishes nothing in the kernel; it writes down what it would. A port that it does not ask for is one it forgot.
WILLING = '''
import json

from conetd.policy.garden import NetIn, NetOut


class GardenPolicy(Schema):
    net_in = NetIn(load_default=())
    net_out = NetOut(load_default=())


class WillingDriver(PlainDriver):
    """Takes what Garden asks for."""

    capabilities = frozenset({"garden"})
    policy_schema = GardenPolicy

    def port_requests(self, policy):
        return policy["net_in"]

    def keep_note(self, ctx):
        ports = [(one.host_port, one.container_port) for one in ctx.attachment.ports]
        note = json.dumps({"ports": ports, "rules": len(ctx.policy["net_out"])})
        (self.directory(ctx) / f"note-{ctx.attachment.handle}").write_text(note)


class ForgetfulWillingDriver(WillingDriver):
    """Says that it takes it, and asks for no port."""

    def port_requests(self, policy):
        return ()
'''
WILLING_TYPES = TYPES | {
    "willing": "acme_drivers:WillingDriver",
    "forgetfulwilling": "acme_drivers:ForgetfulWillingDriver",
}


@pytest.fixture
def world(netns: NetnsFactory, tmp_path: Path) -> Iterator[World]:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install(site, WILLING_TYPES, DRIVERS + WILLING)
    enabled = ", ".join(repr(one) for one in ("bridge", *WILLING_TYPES))
    with open_world(netns, tmp_path, f"drivers = [{enabled}]\n", python_path(site)) as world:
        world.daemon.start()
        world.daemon.network()
        yield world
        for hang in work.glob("hang-*"):
            hang.unlink()


def make(world: World, type_: str, name: str) -> Path:
    """A network of that type; returns the directory its driver works in."""
    work = world.daemon.folder / "work"
    document = {"name": name, "type": type_, "config": {"directory": str(work)}}
    answer = world.daemon.post("/networks", document)
    assert answer.status == 201, (answer, world.daemon.log)
    return work


def garden(world: World, path: str, document: Any) -> Answer:
    return world.daemon.call("POST", f"/garden/containers/{path}", document, private=True)


def networks_of(world: World, handle: str) -> dict[str, Any]:
    found: dict[str, Any] = world.daemon.get(f"/containers/{handle}/policy").body["networks"]
    return {name: (told["source"], told["in_force"]) for name, told in found.items()}


def is_held(world: World, port: int) -> bool:
    def bind() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                sock.bind(("0.0.0.0", port))
            except OSError:
                return True
            return False

    return bool(world.host.call(bind))


def test_a_driver_of_others_that_takes_gardens_requests_gets_them(world: World) -> None:
    work = make(world, "willing", "far")
    world.daemon.bring_up("web", world.container("web"), "far")
    told = garden(world, "web/net/in", {"container_port": 8080})
    assert (told.status, told.body) == (200, {"host_port": 61001, "container_port": 8080})
    assert garden(world, "web/net/out/bulk", [{"protocol": 1}, {}]).status == 200
    assert (work / "note-web").read_text() == '{"ports": [[61001, 8080]], "rules": 2}'
    assert networks_of(world, "web") == {"far": ("garden", True)}
    assert is_held(world, 61001)
    assert world.daemon.down("web").status == 200
    assert not is_held(world, 61001)


def test_the_first_network_that_takes_them_has_them_whoever_made_its_driver(world: World) -> None:
    make(world, "plain", "near")
    make(world, "willing", "far")
    world.daemon.bring_up("web", world.container("web"), "near", "far", "blue")
    assert garden(world, "web/net/in", {}).status == 200
    standing = networks_of(world, "web")
    assert (standing["near"][0], standing["far"][0], standing["blue"][0]) == (
        "default_policy",
        "garden",
        "default_policy",
    )


def test_a_container_on_no_network_that_takes_them_is_told_so(world: World) -> None:
    make(world, "plain", "near")
    world.daemon.bring_up("web", world.container("web"), "near")
    for path, document in (("net/in", {}), ("net/out", {}), ("net/out/bulk", [{}])):
        answer = garden(world, f"web/{path}", document)
        assert answer.status == 500
        assert answer.body["Message"] == 'container "web" is on no network whose driver has the capability garden'
    assert networks_of(world, "web") == {"near": ("default_policy", True)}


def test_a_driver_that_forgets_to_ask_for_a_port_is_told_of_and_nothing_is_held(world: World) -> None:
    make(world, "forgetfulwilling", "far")
    world.daemon.bring_up("web", world.container("web"), "far")
    answer = garden(world, "web/net/in", {"host_port": 7000})
    assert (answer.status, answer.body["Message"]) == (
        500,
        "driver forgetfulwilling (acme-net 1.2) publishes nothing for net_in",
    )
    assert networks_of(world, "web") == {"far": ("default_policy", True)}
    assert not is_held(world, 7000)


def test_a_driver_that_refuses_the_policy_leaves_what_was(world: World) -> None:
    work = make(world, "willing", "far")
    world.daemon.bring_up("web", world.container("web"), "far")
    (work / "fail-apply_policy").touch()
    answer = garden(world, "web/net/in", {"host_port": 7000, "container_port": 80})
    assert (answer.status, "the switch does not answer" in answer.body["Message"]) == (500, True)
    assert world.daemon.get("/containers/web/policy").body["networks"]["far"]["source"] == "default_policy"
    (work / "fail-apply_policy").unlink()
    eventually(lambda: world.daemon.get("/status").status == 200, "all is as wanted again")
    eventually(lambda: not is_held(world, 7000), "its port is free")
    assert (work / "note-web").read_text() == '{"ports": [], "rules": 0}'
    (world.daemon.folder / "log").write_text("")


def test_while_a_driver_hangs_with_many_behind_it_gardens_requests_go_through(world: World) -> None:
    work = make(world, "slow", "far")
    world.daemon.bring_up("web", world.container("web"))
    crowd = {f"c{number}": world.container(f"c{number}") for number in range(40)}
    for handle in crowd:
        (work / f"hang-attach-{handle}").touch()  # whoever comes first
        world.daemon.join(handle, "far")
    with ThreadPoolExecutor(len(crowd)) as pool:
        ups = [pool.submit(world.daemon.up, handle, container) for handle, container in crowd.items()]
        eventually(lambda: "attach c" in (work / "calls").read_text(), "it hangs")
        told = garden(world, "web/net/in", {"host_port": 7000})
        assert told.status == 200, told
        assert garden(world, "web/net/out", {"protocol": 1}).status == 200
        assert not any(one.done() for one in ups)
        for handle in crowd:
            (work / f"hang-attach-{handle}").unlink()
        assert {one.result().status for one in ups} == {200}
