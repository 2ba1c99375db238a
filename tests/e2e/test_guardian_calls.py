"""conet-hook as Guardian's network plugin: net-in, net-out, bulk, what is refused and how, how containers end."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import guardian as player
import pytest
from guardian import Guardian, GuardianError
from played import (
    BLUE,
    BOTH,
    OUTSIDE,
    TCP4,
    UP,
    conetds_info,
    create,
    left,
    mapped,
    open_host,
    passes,
    rule,
    run_plugin,
)
from pytest_netns import Netns, NetnsFactory
from traffic import Services
from traffic import ask as reach
from world import HOOK, World, eventually

Act = Callable[[Guardian], object]


@pytest.fixture
def world(netns: NetnsFactory, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    backend = getattr(request, "param", "nftables")
    with open_host(netns, tmp_path, backend, "[port_pool]\nstart = 61001\nsize = 3") as world:
        world.daemon.network()
        yield world


def net_out_of(world: World, handle: str) -> tuple[str, list[Any]]:
    """Where the container's policy came from, and its `net_out`."""
    told = world.daemon.get(f"/containers/{handle}/policy").body["networks"]["blue"]
    return told["source"], told["policy"]["net_out"]


def only_lo(container: Netns) -> bool:
    return [one["ifname"] for one in container.json("ip", "-j", "link")] == ["lo"]


# net-in, net-out, bulk-net-out


@BOTH
def test_net_in_publishes_a_port_and_info_has_it(world: World, guardian: Guardian, services: Services) -> None:
    web = create(world, guardian, "web", netin=[{"host_port": 7001, "container_port": 8080}])
    asked = [(0, 8080), (7000, 8080), (7002, 0), (0, 0)]
    pairs = [(61001, 8080), (7000, 8080), (7002, 7002), (61002, 61002)]
    assert [guardian.net_in("web", *pair) for pair in asked] == pairs
    ports = [mapped(7001, 8080), *(mapped(*pair) for pair in pairs)]
    assert guardian.info("web")["MappedPorts"] == conetds_info(world, "web")["MappedPorts"] == ports
    for host_port, container_port in pairs:
        services.open(web, "web", "tcp", container_port)
        assert reach(world.outside, TCP4, UP, host_port) == f"web {OUTSIDE}"


def test_the_same_explicit_port_again_is_one_mapping_though_guardian_lists_two(
    world: World, guardian: Guardian
) -> None:
    create(world, guardian, "web")
    assert guardian.net_in("web", 7000, 8080) == guardian.net_in("web", 7000, 8080) == (7000, 8080)
    assert conetds_info(world, "web")["MappedPorts"] == [mapped(7000, 8080)]
    assert guardian.info("web")["MappedPorts"] == [mapped(7000, 8080)] * 2


@BOTH
def test_net_out_opens_what_the_network_denies(world: World, guardian: Guardian, services: Services) -> None:
    world.daemon.network("red", subnet="10.11.0.0/24", deny_networks=["0.0.0.0/0"])
    web = create(world, guardian, "web", properties={"network.attach_to": "red"})
    for port in (7000, 7001):
        services.open(world.outside, "outside", "tcp", port)
    assert [passes(web, port) for port in (7000, 7001)] == [False, False]
    guardian.net_out("web", rule(7000))
    assert [passes(web, port) for port in (7000, 7001)] == [True, False]
    guardian.net_out("web", {})
    assert [passes(web, port) for port in (7000, 7001)] == [True, True]


@BOTH
def test_a_bulk_of_a_hundred_rules_is_in_force_with_the_last_on_top(
    world: World, guardian: Guardian, services: Services
) -> None:
    world.daemon.network("red", subnet="10.11.0.0/24", deny_networks=["0.0.0.0/0"])
    web = create(world, guardian, "web", properties={"network.attach_to": "red"})
    guardian.bulk_net_out("web", [rule(port) for port in range(7000, 7100)])
    told = world.daemon.get("/containers/web/policy").body["networks"]["red"]["policy"]["net_out"]
    assert [one["ports"][0]["start"] for one in told] == list(range(7099, 6999, -1))
    asked = (6999, 7000, 7050, 7099, 7100)
    for port in asked:
        services.open(world.outside, "outside", "tcp", port)
    assert [passes(web, port) for port in asked] == [False, True, True, True, False]


@pytest.mark.parametrize("rules", [None, []], ids=["null", "empty"])
def test_a_bulk_of_nothing_changes_nothing(world: World, guardian: Guardian, rules: list[Any] | None) -> None:
    create(world, guardian, "web")
    before = (left(world), net_out_of(world, "web"))
    guardian.bulk_net_out("web", rules)
    assert (left(world), net_out_of(world, "web")) == before
    assert before[1] == ("default_policy", [])


def test_only_up_and_net_in_have_something_to_say(world: World, guardian: Guardian) -> None:
    create(world, guardian, "web")
    guardian.net_in("web", 0, 0)
    guardian.net_out("web", {})
    guardian.bulk_net_out("web", [{}])
    guardian.destroy("web")
    _, net_in, *others = [(json.loads(call.stdout), call.stderr) for call in guardian.calls]
    assert net_in == ({"host_port": 61001, "container_port": 61001}, b"")
    assert others == [({}, b""), ({}, b""), ({"handle": "web", "state": "down"}, b"")]


# What is refused


REFUSED: dict[str, Act] = {
    'net-in web: host port 7000/tcp is held by container "other"': lambda g: g.net_in("web", 7000, 80),
    "net-in web: host port 7001/tcp is held by process ": lambda g: g.net_in("web", 7001, 80),
    'net-in web: host port 7002/tcp is held by container "web"': lambda g: g.net_in("web", 7002, 81),
    "net-in web: host_port: 70000 is no port: the highest is 65535": lambda g: g.net_in("web", 70000, 80),
    "net-in web: container_port: 65536 is no port: the highest is 65535": lambda g: g.net_in("web", 0, 65536),
    "net-in web: port pool is exhausted": lambda g: g.net_in("web", 0, 0),
    "net-out web: Ports cannot be specified for Protocol ICMP": lambda g: g.net_out("web", rule(80, 3)),
    "net-out web: invalid protocol: 52": lambda g: g.net_out("web", {"protocol": 52}),
    "net-out web: networks[0]: host/network ::1 ": lambda g: g.net_out("web", {"networks": [{"start": "::1"}]}),
    "net-out web: ports[0]: 80:0: invalid portrange (min > max)": lambda g: g.net_out(
        "web", {"protocol": 1, "ports": [{"start": 80}]}
    ),
    "bulk-net-out web: invalid protocol: 4": lambda g: g.bulk_net_out("web", [{}, {"protocol": 4}]),
    "bulk-net-out web: [1].icmps: cannot be specified for ": lambda g: g.bulk_net_out("web", [{}, {"icmps": {}}]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refusal_says_why_on_one_line_and_changes_nothing(world: World, guardian: Guardian, reason: str) -> None:
    full = [{"host_port": port} for port in (61001, 61002, 61003)]
    create(world, guardian, "other", netin=[{"host_port": 7000, "container_port": 80}, *full])
    create(world, guardian, "web", netin=[{"host_port": 7002, "container_port": 80}])
    before = (left(world), guardian.info("web"), net_out_of(world, "web"), conetds_info(world, "web"))
    with world.host.call(socket.create_server, ("", 7001)), pytest.raises(GuardianError) as told:
        REFUSED[reason](guardian)
    call = guardian.calls[-1]
    assert (call.code, call.stdout, call.stderr.count(b"\n")) == (1, b"", 1)
    assert call.stderr.decode().startswith(f"conet-hook: {reason}")
    action = call.argv[-3]
    assert str(told.value) == f"external networker encountered an error running '{action}' action: exit status 1"
    assert (left(world), guardian.info("web"), net_out_of(world, "web"), conetds_info(world, "web")) == before


@pytest.mark.parametrize(
    ("action", "stdin"),
    [
        ("net-in", b'{"HostIP":"192.0.2.1","HostPort":0,"ContainerIP":"10.10.0.2","ContainerPort":0}'),
        ("net-out", b'{"container_ip":"10.10.0.2","netout_rule":{}}'),
        ("bulk-net-out", b'{"container_ip":"10.10.0.2","netout_rules":[]}'),
    ],
)
def test_a_handle_that_is_not_up_is_unknown(world: World, guardian: Guardian, action: str, stdin: bytes) -> None:
    before = left(world)
    result = run_plugin(guardian, action, "ghost", stdin)
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.decode() == f"conet-hook: {action} ghost: unknown handle: ghost\n"
    assert left(world) == before


REFUSED_AT_CREATION: dict[str, dict[str, Any]] = {
    'host port 7000/tcp is held by container "other"': {"netin": [{}, {"host_port": 7000}]},
    "port pool is exhausted": {"netin": [{}] * 4},
    "65536 is no port": {"netin": [{"host_port": 65536}]},
    "netin[1].host_port: host port 7001/tcp leads to container port 7001 already": {
        "netin": [{"host_port": 7001}, {"host_port": 7001, "container_port": 1}]
    },
    "invalid protocol: 52": {"netout_rules": [{}, {"protocol": 52}]},
    'there is no network "nowhere"': {"properties": {"network.attach_to": "blue,nowhere"}},
    "nothing says which networks the container joins": {"properties": {}},
    "names a network twice": {"properties": {"network.attach_to": "blue,blue"}},
    "joins no network whose policy can hold them": {"properties": {"network.attach_to": ""}, "netin": [{}]},
}


@pytest.mark.parametrize("reason", REFUSED_AT_CREATION)
def test_a_creation_that_is_refused_leaves_nothing_and_may_be_tried_again(
    world: World, guardian: Guardian, reason: str
) -> None:
    create(world, guardian, "other", netin=[{"host_port": 7000, "container_port": 80}])
    before = left(world)
    web = world.container("web")
    with pytest.raises(GuardianError, match=r"running 'up' action: exit status 1$"):
        guardian.create("web", web.pid, **{"properties": BLUE} | REFUSED_AT_CREATION[reason])
    up, down = guardian.calls[-2:]
    assert (up.code, up.stdout, up.stderr.count(b"\n")) == (1, b"", 1)
    assert up.stderr.startswith(b"conet-hook: up web: ")
    assert reason in up.stderr.decode()
    assert (down.argv[-3], down.stdin, down.code) == ("down", b"null", 0)
    assert ("web" in guardian.handles, left(world), only_lo(web)) == (False, before, True)
    assert world.daemon.get("/containers/web").status == 404
    guardian.create("web", web.pid, properties=BLUE, netin=[{}] * 3)  # the whole pool is free
    assert len(guardian.info("web")["MappedPorts"]) == 3


def test_a_creation_that_is_refused_on_its_second_network_gives_back_the_ports_of_the_first(
    world: World, guardian: Guardian
) -> None:
    policy = {"net_in": [{"host_port": 7000}]}
    world.daemon.network("red", subnet="10.11.0.0/24", default_policy=policy)
    create(world, guardian, "other", properties={"network.attach_to": "red"})
    before = left(world)
    web = world.container("web")
    for _ in range(2):
        with pytest.raises(GuardianError, match="'up' action"):
            guardian.create("web", web.pid, properties={"network.attach_to": "blue,red"}, netin=[{}] * 3)
        assert b'7000/tcp is held by container "other"' in guardian.calls[-2].stderr
    assert (left(world), only_lo(web)) == (before, True)
    guardian.create("web", web.pid, properties=BLUE, netin=[{}] * 3)


def test_a_creation_that_the_kernel_refuses_is_undone_by_itself(world: World, guardian: Guardian) -> None:
    before = left(world)
    web = world.container("web")
    web.run("ip", "link", "add", "eth0", "type", "bridge")
    body = json.dumps({"Pid": web.pid, "Properties": {"attach_to": "blue"}, "netin": [{}]}).encode()
    refused = run_plugin(guardian, "up", "web", body)
    assert (refused.returncode, refused.stdout, refused.stderr.count(b"\n")) == (1, b"", 1)
    assert b"eth0" in refused.stderr
    eventually(lambda: left(world) == before, "nothing is left")
    web.run("ip", "link", "del", "eth0")
    assert run_plugin(guardian, "up", "web", body).returncode == 0


def test_a_creation_whose_process_is_gone_leaves_nothing(world: World, guardian: Guardian) -> None:
    before = left(world)
    web = world.container("web")
    pid = web.pid
    web.close()
    with pytest.raises(GuardianError, match=r"running 'up' action: exit status 1$"):
        guardian.create("web", pid, properties=BLUE)
    assert f"process {pid} is gone" in guardian.calls[0].stderr.decode()
    assert left(world) == before


# How a container ends


@BOTH
def test_destroy_leaves_nothing_and_a_second_down_is_success(world: World, guardian: Guardian) -> None:
    before = left(world)
    web = create(world, guardian, "web", netin=[{}], netout_rules=[rule(7000)])
    guardian.net_in("web", 7000, 80)
    guardian.net_out("web", {})
    guardian.destroy("web")
    with pytest.raises(GuardianError, match=r"^unknown handle: web$"):
        guardian.destroy("web")
    assert run_plugin(guardian, "down", "web", b"null").returncode == 0
    eventually(lambda: left(world) == before and only_lo(web), "nothing is left")
    assert world.daemon.get("/containers/web").status == 404


def test_a_container_that_never_came_up_goes_down_as_often_as_asked(world: World, guardian: Guardian) -> None:
    before = left(world)
    for _ in range(2):
        with pytest.raises(GuardianError, match=r"^container init PID was 0$"):
            guardian.create("web", 0)
    assert [(call.argv[-3], call.stdin, call.code, call.stderr) for call in guardian.calls] == [
        ("down", b"null", 0, b"")
    ] * 2
    assert left(world) == before


def test_a_destroy_that_failed_is_tried_again(world: World, guardian: Guardian) -> None:
    before = left(world)
    create(world, guardian, "web", netin=[{}])
    world.daemon.stop()
    guardian.extra_args = [*guardian.extra_args, "--timeout", "0.3"]
    with pytest.raises(GuardianError, match=r"running 'down' action: exit status 1$"):
        guardian.destroy("web")
    assert guardian.calls[-1].stderr.decode().startswith("conet-hook: could not reach conetd within 0.3 s")
    assert guardian.info("web")["ContainerIP"] == "10.10.0.2"
    world.daemon.start()
    guardian.destroy("web")
    eventually(lambda: left(world) == before, "nothing is left")


def test_a_creation_that_fails_for_want_of_a_daemon_can_be_destroyed_later(world: World, guardian: Guardian) -> None:
    before = left(world)
    web = world.container("web")
    world.daemon.kill()
    timely = guardian.extra_args
    guardian.extra_args = [*timely, "--timeout", "0.3"]
    with pytest.raises(GuardianError, match=r"running 'up' action: exit status 1$"):
        guardian.create("web", web.pid, properties=BLUE)
    assert guardian.handles == {"web"}
    world.daemon.start()
    guardian.extra_args = timely
    guardian.destroy("web")
    assert left(world) == before


def test_a_container_whose_process_ends_first_is_unknown_to_net_in_and_can_be_destroyed(
    world: World, guardian: Guardian
) -> None:
    before = left(world)
    web = create(world, guardian, "web", netin=[{"host_port": 7000}])
    web.close()
    eventually(lambda: world.daemon.get("/containers/web").status == 404, "conetd has seen the end")
    with pytest.raises(GuardianError, match=r"running 'net-in' action: exit status 1$"):
        guardian.net_in("web", 0, 0)
    assert guardian.calls[-1].stderr == b"conet-hook: net-in web: unknown handle: web\n"
    guardian.destroy("web")
    eventually(lambda: left(world) == before, "nothing is left")


def test_a_container_is_destroyed_right_after_its_process_was_killed(world: World, guardian: Guardian) -> None:
    before = left(world)
    web = create(world, guardian, "web", netin=[{"host_port": 7000}])
    web.close()
    guardian.destroy("web")
    other = create(world, guardian, "other", netin=[{"host_port": 7000}])
    assert other.json("ip", "-j", "link", "show", "eth0")
    guardian.destroy("other")
    eventually(lambda: left(world) == before, "nothing is left")


@BOTH
@pytest.mark.parametrize("crashed", [False, True], ids=["stopped", "crashed"])
def test_a_restart_of_guardian_is_nothing_to_conetd(
    world: World, guardian: Guardian, services: Services, crashed: bool
) -> None:
    before = left(world)
    web = create(world, guardian, "web", netin=[{"container_port": 8080}])
    services.open(web, "web", "tcp", 8080)
    infos, calls = (guardian.info("web"), conetds_info(world, "web")), len(guardian.calls)
    guardian.restart(crashed=crashed)
    assert len(guardian.calls) == calls
    assert conetds_info(world, "web") == infos[1]
    assert reach(world.outside, TCP4, UP, 61001) == f"web {OUTSIDE}"
    if crashed:  # Guardian has forgotten what it knew
        with pytest.raises(GuardianError, match="cannot find container"):
            guardian.net_in("web", 0, 0)
    else:
        assert guardian.info("web") == infos[0]
        assert guardian.net_in("web", 0, 0) == (61002, 61002)
    guardian.destroy("web")
    eventually(lambda: left(world) == before, "nothing is left")


# The player as a program


@pytest.mark.parametrize("network", ["blue", "nowhere"])
def test_the_player_plays_a_life_and_shows_every_call(world: World, tmp_path: Path, network: str) -> None:
    before = left(world)
    web = world.container("web")
    arguments = {
        "network-plugin": HOOK,
        "network-plugin-extra-arg": f"--socket={world.daemon.private_socket}",
        "depot": tmp_path / "depot",
        "pid": web.pid,
        "property": f"network.attach_to={network}",
    }
    command = [sys.executable, str(player.__file__), *(f"--{name}={value}" for name, value in arguments.items())]
    played = subprocess.run(command, capture_output=True, text=True)
    actions = re.findall(r"^\S+conet-hook .*--action (\S+) --handle played$", played.stdout, re.MULTILINE)
    if network == "blue":
        assert (played.returncode, played.stderr) == (0, "")
        assert actions == ["up", "net-in", "net-out", "bulk-net-out", "down"]
        assert '"ContainerIP": "10.10.0.2"' in played.stdout
        assert '{"RxBytes": ' in played.stdout
    else:
        assert played.returncode == 1
        assert actions == ["up", "down"]
        assert "Guardian's client is told: external networker encountered an error running 'up'" in played.stdout
        assert '! conet-hook: up played: container "played" cannot be brought up: there is no network' in played.stdout
    eventually(lambda: left(world) == before, "nothing is left")
