"""Drivers of other people beside bridge: planned ones, ones that act for themselves, and what their vices do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from foreign import DRIVERS, TYPES, install, python_path
from pytest_netns import Netns, NetnsFactory
from world import Answer, Daemon, World, ask, eventually, open_world, serving

EXAMPLE = Path(__file__).parents[2] / "contrib" / "example-driver"
ENABLED = f'drivers = ["bridge", "ptp", {", ".join(repr(one) for one in TYPES)}]\n'


@dataclass
class Abroad:
    """A world with drivers of other people, and the directory they work in."""

    world: World
    directory: Path

    @property
    def daemon(self) -> Daemon:
        return self.world.daemon

    def network(self, type_: str, name: str = "far", **config: str) -> Answer:
        document = {"name": name, "type": type_, "config": {"directory": str(self.directory), **config}}
        return self.daemon.post("/networks", document)

    def make(self, type_: str, name: str = "far") -> None:
        answer = self.network(type_, name)
        assert answer.status == 201, (answer, self.daemon.log)

    def provoke(self, vice: str) -> None:
        (self.directory / vice).touch()

    def relent(self, vice: str) -> None:
        (self.directory / vice).unlink()

    def calls(self, method: str) -> list[str]:
        """Whom the drivers were called for, in order."""
        journal = self.directory / "calls"
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == method]

    def note(self, handle: str) -> str | None:
        file = self.directory / f"note-{handle}"
        return file.read_text() if file.exists() else None

    def forgive_tracebacks(self) -> str:
        """The log, emptied: the test wanted what is in it."""
        text = self.daemon.log
        (self.daemon.folder / "log").write_text("")
        return text


@pytest.fixture
def abroad(netns: NetnsFactory, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Abroad]:
    site, directory = tmp_path / "site", tmp_path / "work"
    directory.mkdir()
    install(site)
    install(site, {"ptp": "conetd_ptp:PtpDriver"}, "", distribution="example-driver")
    settings = ENABLED + getattr(request, "param", "").format(directory=directory)
    with open_world(netns, tmp_path, settings, python_path(site, EXAMPLE)) as world:
        world.daemon.start()
        yield Abroad(world, directory)
        for hang in directory.glob("hang-*"):
            hang.unlink()


IMPATIENT = pytest.mark.parametrize("abroad", ["driver_timeout = 0.5"], indirect=True, ids=["impatient"])


def links(netns: Netns) -> list[str]:
    return [one["ifname"] for one in netns.json("ip", "-j", "link")]


def reaches_out(world: World, container: Netns) -> bool:
    with serving(world.outside, 7000):
        return ask(container, "192.0.2.2", 7000).startswith("hello")


def test_a_planned_driver_of_others_has_the_powers_of_bridge(abroad: Abroad) -> None:
    daemon, web, peer = abroad.daemon, abroad.world.container("web"), abroad.world.container("peer")
    daemon.network()
    empty = abroad.world.remains()
    answer = daemon.post("/networks", {"name": "routed", "type": "ptp", "config": {"subnet": "10.30.0.0/24"}})
    assert answer.status == 201, answer
    told = daemon.bring_up("web", web, "routed", "blue")["attachments"]
    assert [(one["network"], one["interface"], one["default_route"]) for one in told] == [
        ("routed", "eth0", ["ipv4"]),
        ("blue", "eth1", []),
    ]
    daemon.bring_up("peer", peer, "blue")
    with serving(web, 80):
        assert ask(peer, told[1]["addresses"][0].partition("/")[0], 80).startswith("hello")
        assert ask(abroad.world.host, "10.30.0.0", 80).startswith("hello")
    assert reaches_out(abroad.world, web)
    assert daemon.policy("web", routed={"allow": []}).status == 200
    assert not reaches_out(abroad.world, web)
    assert daemon.stop() == 0
    daemon.start()
    assert not reaches_out(abroad.world, web)
    for handle in ("web", "peer"):
        assert daemon.down(handle).status == 200
        assert daemon.delete(f"/containers/{handle}").status == 204
    assert daemon.delete("/networks/routed").status == 204
    eventually(lambda: abroad.world.remains() == empty, "nothing is left")


def test_drivers_tells_of_every_type_enabled_or_not(abroad: Abroad) -> None:
    told = {one["type"]: one for one in abroad.daemon.get("/drivers").body}
    assert set(told) == {"bridge", "ptp", "vxlan", *TYPES}
    plain, ptp = told["plain"], told["ptp"]
    assert (plain["distribution"], plain["version"], plain["planned"]) == ("acme-net", "1.2", False)
    assert (ptp["distribution"], ptp["planned"], ptp["capabilities"]) == ("example-driver", True, [])
    assert plain["config_schema"]["required"] == ["directory"]


def test_a_driver_that_acts_for_itself_attaches_and_detaches(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    abroad.make("plain")
    assert abroad.calls("ensure_network") == ["far plain"]
    [told] = daemon.bring_up("web", web, "far")["attachments"]
    assert (told["interface"], told["number"], told["mapped_ports"]) == ("eth0", 0, [])
    assert links(web) == ["lo", "eth0"]
    assert daemon.up("web", web).status == 200
    assert abroad.calls("attach") == ["web"]
    assert daemon.down("web").status == 200
    assert abroad.calls("detach") == ["web"]
    assert daemon.delete("/containers/web").status == 204
    assert daemon.delete("/networks/far").status == 204
    assert abroad.calls("remove_network") == ["far plain"]
    eventually(lambda: set(abroad.world.remains()["rows"].values()) == {0}, "no row is left")


def test_a_policy_reaches_a_driver_that_acts_for_itself(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    abroad.make("plain")
    daemon.bring_up("web", web, "far")
    first = daemon.policy("web", far={"note": "be kind"})
    assert (first.status, abroad.note("web")) == (200, "be kind")
    told = first.body["networks"]["far"]
    assert (told["policy"], told["source"], told["in_force"]) == ({"note": "be kind"}, "client", True)
    assert daemon.put("/networks/far/default_policy", {"note": "default"}).status == 200
    assert abroad.note("web") == "be kind"
    assert daemon.policy("web").status == 200
    assert abroad.note("web") == "default"
    refused = daemon.policy("web", far={"notes": 1})
    assert (refused.status, list(refused.error["fields"])) == (422, ["networks.far.notes"])


def test_a_policy_a_driver_refuses_is_told_with_what_is_in_force_and_tried_again(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    abroad.make("plain")
    daemon.bring_up("web", web, "far")
    before = daemon.get("/containers/web/policy").body["networks"]["far"]["generation"]
    abroad.provoke("fail-apply_policy")
    abroad.provoke("fail-attach")
    answer = daemon.policy("web", far={"note": "new"})
    assert (answer.status, answer.error["code"]) == (502, "driver_error")
    assert "the switch does not answer" in answer.error["message"]
    told = answer.error["networks"]["far"]
    assert (told["policy"], told["in_force"], told["generation"]) == ({"note": "new"}, False, before)
    status = daemon.get("/status")
    assert (status.status, status.body["status"]) == (503, "degraded")
    [problem] = status.body["attachments_not_as_wanted"]
    assert (problem["handle"], problem["network"]) == ("web", "far")
    assert "the switch does not answer" in problem["problem"]
    abroad.relent("fail-apply_policy")
    abroad.relent("fail-attach")
    eventually(lambda: abroad.note("web") == "new", "the policy is in force")
    eventually(lambda: daemon.get("/status").status == 200, "all is as wanted")
    now = daemon.get("/containers/web/policy").body["networks"]["far"]
    assert now["in_force"] is True
    assert now["generation"] > before


def test_while_a_driver_hangs_nobody_else_waits(abroad: Abroad) -> None:
    daemon = abroad.daemon
    slow, quick, other = (abroad.world.container(name) for name in ("slow", "quick", "other"))
    daemon.network()
    abroad.make("slow")
    abroad.make("plain", "near")
    abroad.provoke("hang-attach-slow")
    daemon.join("slow", "far")
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(daemon.up, "slow", slow)
        eventually(lambda: abroad.calls("attach") == ["slow"], "the driver hangs")
        daemon.bring_up("quick", quick, "blue")
        daemon.bring_up("other", other, "near")
        assert daemon.policy("quick", blue={"log_denied": True}).status == 200
        daemon.network("red", subnet="10.11.0.0/24")
        assert daemon.down("quick").status == 200
        for path in ("/networks", "/containers", "/containers/slow", "/status", "/drivers"):
            assert daemon.get(path).status in (200, 503)
        assert not hanging.done()
        abroad.relent("hang-attach-slow")
        assert hanging.result().status == 200, hanging.result()


def test_while_a_network_of_a_slow_driver_is_made_others_are_made(abroad: Abroad) -> None:
    abroad.provoke("hang-ensure_network-far")
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(abroad.network, "slow")
        eventually(lambda: abroad.calls("ensure_network"), "the driver hangs")
        abroad.daemon.network()
        abroad.make("plain", "near")
        again = abroad.network("plain", "far")
        assert (again.status, again.error["code"]) == (409, "conflict")
        assert not hanging.done()
        abroad.relent("hang-ensure_network-far")
        assert hanging.result().status == 201


@IMPATIENT
def test_a_call_that_outlasts_its_deadline_is_504_and_the_lane_goes_on(abroad: Abroad) -> None:
    daemon, web, next_one = abroad.daemon, abroad.world.container("web"), abroad.world.container("next")
    abroad.make("slow")
    empty = abroad.world.remains()
    abroad.provoke("hang-attach-web")
    daemon.join("web", "far")
    answer = daemon.up("web", web)
    assert (answer.status, answer.error["code"]) == (504, "driver_timeout")
    assert answer.error["message"] == "driver slow: attach did not end within 0.5 s"
    assert daemon.get("/containers/web").body["state"] == "down"
    daemon.bring_up("next", next_one, "far")
    assert links(next_one) == ["lo", "eth0"]
    abroad.relent("hang-attach-web")
    eventually(lambda: "failed in attach" in daemon.log, "the late call has found its namespace closed")
    abroad.forgive_tracebacks()
    assert daemon.up("web", web).status == 200
    for handle in ("web", "next"):
        assert daemon.down(handle).status == 200
        assert daemon.delete(f"/containers/{handle}").status == 204
    eventually(lambda: abroad.world.remains() == empty, "nothing is left")


def test_a_bug_in_a_driver_is_502_naming_its_distribution_and_logged_with_its_traceback(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    abroad.make("buggy")
    abroad.provoke("bug-attach")
    daemon.join("web", "far")
    answer = daemon.up("web", web)
    assert (answer.status, answer.error["code"]) == (502, "driver_error")
    assert answer.error["message"] == (
        "driver buggy (acme-net 1.2) failed in attach: ValueError: attach: list index out of luck"
    )
    log = abroad.forgive_tracebacks()
    assert "Traceback (most recent call last)" in log
    assert "acme_drivers.py" in log
    assert "acme-net 1.2" in log
    abroad.relent("bug-attach")
    assert daemon.up("web", web).status == 200


@pytest.mark.parametrize("vice", ["bug-ensure_network", "fail-ensure_network"])
def test_a_network_a_driver_cannot_make_is_not_there(abroad: Abroad, vice: str) -> None:
    empty = abroad.world.remains()
    abroad.provoke(vice)
    answer = abroad.network("buggy")
    assert (answer.status, answer.error["code"]) == (502, "driver_error")
    abroad.forgive_tracebacks()
    assert abroad.daemon.get("/networks").body == []
    assert abroad.world.remains() == empty
    assert abroad.calls("remove_network") == ["far plain"]
    abroad.relent(vice)
    assert abroad.network("buggy").status == 201


def test_when_a_foreign_attach_fails_the_bridge_attachment_is_undone(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    daemon.network()
    abroad.make("plain")
    daemon.join("web", "blue", "far")
    assert daemon.policy("web", blue={"net_in": [{"host_port": 8080}]}).status == 200
    before = abroad.world.remains()
    abroad.provoke("fail-attach")
    answer = daemon.up("web", web)
    assert (answer.status, answer.error["message"]) == (502, "attach web: the switch does not answer")
    assert abroad.calls("detach") == ["web"]
    eventually(lambda: abroad.world.remains() == before, "all is as before")
    assert links(web) == ["lo"]
    abroad.relent("fail-attach")
    told = daemon.up("web", web).body["attachments"]
    assert [(one["network"], one["interface"]) for one in told] == [("blue", "eth0"), ("far", "eth1")]
    assert reaches_out(abroad.world, web)
    with serving(web, 8080):
        assert ask(abroad.world.outside, "192.0.2.1", 8080).startswith("hello")


def test_networks_of_both_kinds_are_attached_and_detached_live(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    daemon.network()
    abroad.make("plain")
    daemon.bring_up("web", web, "blue")
    abroad.provoke("fail-attach")
    refused = daemon.put("/containers/web/config", {"attach_to": ["blue", "far"]})
    assert refused.status == 502
    assert [one["network"] for one in daemon.get("/containers/web").body["attachments"]] == ["blue"]
    abroad.relent("fail-attach")
    daemon.join("web", "blue", "far")
    assert links(web)[-1] == "eth1"
    daemon.join("web", "blue")
    assert abroad.calls("detach")[-1] == "web"
    eventually(lambda: "eth1" not in links(web), "the interface is gone")
    assert reaches_out(abroad.world, web)


def test_an_interface_a_driver_forgot_is_made_again(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    abroad.make("forgetful")
    abroad.provoke("forget")
    daemon.bring_up("web", web, "far")
    assert links(web) == ["lo"]
    abroad.relent("forget")
    eventually(lambda: links(web) == ["lo", "eth0"], "the interface is there")
    eventually(lambda: daemon.get("/status").status == 200, "all is as wanted")


def test_foreign_attachments_live_through_a_restart_and_are_looked_after_again(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    daemon.network()
    abroad.make("plain")
    first = daemon.bring_up("web", web, "far", "blue")
    assert daemon.stop() == 0
    assert links(web) == ["lo", "eth0", "eth1"] or set(links(web)) == {"lo", "eth0", "eth1"}
    daemon.start()
    body = daemon.get("/containers/web").body
    assert [(one["network"], one["as_wanted"]) for one in body["attachments"]] == [("far", True), ("blue", True)]
    assert daemon.up("web", web).body == first
    assert abroad.calls("attach") == ["web"]
    eventually(lambda: len(abroad.calls("ensure_network")) == 2, "the network is made sure of")
    web.run("ip", "link", "del", "eth0")
    eventually(lambda: "eth0" in links(web), "the foreign interface is there again")
    [veth] = [name for name in abroad.world.remains()["links"] if name.startswith("cv")]
    abroad.world.host.run("ip", "link", "del", veth)
    eventually(lambda: "eth1" in links(web), "the bridged interface is there again")
    assert daemon.down("web").status == 200


def test_a_foreign_container_that_ended_while_the_daemon_was_away_is_taken_down(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    daemon.network()
    abroad.make("plain")
    empty = abroad.world.remains()
    daemon.bring_up("web", web, "far", "blue")
    daemon.kill()
    web.close()
    daemon.start()
    eventually(lambda: abroad.calls("detach") == ["web"], "the driver is told")
    assert daemon.delete("/containers/web").status in (204, 409)
    eventually(lambda: daemon.get("/containers/web").body.get("state") in ("down", None), "it is down")
    daemon.delete("/containers/web")
    eventually(lambda: abroad.world.remains() == empty, "nothing is left")


def test_a_foreign_attach_that_a_crash_cut_off_is_completed(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    abroad.make("plain")
    daemon.bring_up("web", web, "far")
    daemon.kill()
    web.run("ip", "link", "del", "eth0")
    with sqlite3.connect(daemon.database) as db:
        db.execute("UPDATE attachments SET applied_rev = 0, answer = '{}'")
    daemon.start()
    eventually(lambda: daemon.get("/status").status == 200, "all is as wanted")
    assert links(web) == ["lo", "eth0"]
    assert daemon.get("/containers/web").body["attachments"][0]["number"] == 0


def test_a_detach_that_fails_is_told_and_tried_again(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    daemon.network()
    abroad.make("plain")
    empty = abroad.world.remains()
    daemon.bring_up("web", web, "far", "blue")
    abroad.provoke("fail-detach")
    answer = daemon.down("web")
    assert (answer.status, answer.error["message"]) == (502, "detach web: the switch does not answer")
    assert not reaches_out(abroad.world, web)
    status = daemon.get("/status")
    assert status.status == 503
    assert [(one["handle"], one["network"]) for one in status.body["attachments_not_as_wanted"]] == [("web", "far")]
    abroad.relent("fail-detach")
    eventually(lambda: daemon.get("/status").status == 200, "all is as wanted")
    assert daemon.delete("/containers/web").status == 204
    eventually(lambda: abroad.world.remains() == empty, "nothing is left")


def test_an_up_after_a_detach_that_failed_detaches_first_and_leaks_no_claim(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    abroad.make("plain")
    daemon.bring_up("web", web, "far")
    abroad.provoke("fail-detach")
    assert daemon.down("web").status == 502
    again = daemon.up("web", web)
    assert again.status == 502
    abroad.relent("fail-detach")
    answer = daemon.up("web", web)
    assert answer.status == 200, answer
    assert answer.body["attachments"][0]["number"] == 0
    assert abroad.world.remains()["rows"]["claims"] == 1


def test_what_fails_for_one_container_holds_up_no_repair_of_another(abroad: Abroad) -> None:
    daemon = abroad.daemon
    daemon.network()
    abroad.make("plain")
    stuck = [abroad.world.container(f"a{number}") for number in range(3)]
    for number, netns in enumerate(stuck):
        daemon.bring_up(f"a{number}", netns, "far")
    abroad.provoke("fail-detach")
    for number in range(3):
        assert daemon.down(f"a{number}").status == 502
    web = abroad.world.container("web")
    daemon.bring_up("web", web, "blue")
    [veth] = [name for name in abroad.world.remains()["links"] if name.startswith("cv")]
    abroad.world.host.run("ip", "link", "del", veth)
    eventually(lambda: "eth0" in links(web), "the other is mended")
    assert reaches_out(abroad.world, web)
    abroad.relent("fail-detach")
    eventually(lambda: daemon.get("/status").status == 200, "all is as wanted")


DECLARED = '[[networks]]\nname = "far"\ntype = "plain"\nconfig = {{ directory = "{directory}", flavour = "%s" }}\n'


@pytest.mark.parametrize("abroad", [DECLARED % "sweet"], indirect=True, ids=["declared"])
def test_a_declared_network_of_a_foreign_type_is_made_and_replaced(abroad: Abroad) -> None:
    daemon, web = abroad.daemon, abroad.world.container("web")
    eventually(lambda: abroad.calls("ensure_network") == ["far sweet"], "the network is made")
    eventually(lambda: daemon.get("/status").status == 200, "all is as wanted")
    assert daemon.stop() == 0
    daemon.settings = daemon.settings.replace("sweet", "sour")
    daemon.start()
    eventually(lambda: abroad.calls("ensure_network")[-1] == "far sour", "the network is made anew")
    assert abroad.calls("remove_network") == ["far sweet"]
    eventually(lambda: daemon.get("/status").status == 200, "all is as wanted")
    daemon.bring_up("web", web, "far")


@pytest.mark.parametrize(
    ("types", "source", "also", "sentence"),
    [
        ({}, "", None, 'drivers: network type "acme" is not installed (installed: bridge'),
        ({"acme": "acme_drivers:PlainDriver"}, "import nothing_such", None,
         'network type "acme", from distribution acme-net 1.2, cannot be imported: ModuleNotFoundError'),
        ({"acme": "acme_drivers:PlainDriver"}, "1 / 0", None, "acme-net 1.2, cannot be imported: ZeroDivisionError"),
        ({"acme": "acme_drivers:NoDriver"}, DRIVERS, None, "acme-net 1.2, cannot be imported: AttributeError"),
        ({"acme": "acme_drivers:Config"}, DRIVERS, None, "acme-net 1.2, is no driver"),
        ({"acme": "acme_drivers:PlainDriver"}, DRIVERS.replace("config_schema =", "api_version = 7; config_schema ="),
         None, "acme-net 1.2, has api_version 7, and this conetd needs 1"),
        ({"acme": "acme_drivers:PlainDriver"}, DRIVERS, {"acme": "copycat_drivers:PlainDriver"},
         'network type "acme" is installed twice, by distribution acme-net 1.2 and distribution copycat-net 1.2'),
        ({"acme": "acme_drivers:PlainDriver"}, DRIVERS, {"bridge": "copycat_drivers:PlainDriver"},
         'network type "bridge" is installed twice, by distribution conetd'),
    ],
    ids=["missing", "import", "import-bug", "no-attribute", "no-driver", "api-version", "twice", "bridge-twice"],
)  # fmt: skip
def test_a_driver_that_cannot_be_used_stops_the_start_in_one_sentence(
    netns: NetnsFactory, tmp_path: Path, types: dict[str, str], source: str, also: dict[str, str] | None, sentence: str
) -> None:
    site = tmp_path / "site"
    install(site, types, source)
    if also is not None:
        install(site, also, DRIVERS, distribution="copycat-net")
    settings = 'drivers = ["bridge", "acme"]\n'
    with open_world(netns, tmp_path, settings, python_path(site)) as world:
        before: Any = world.host.json("ip", "-j", "link")
        world.daemon.start(wait=False)
        assert world.daemon.process is not None
        assert world.daemon.process.wait(30) == 1
        *_, last = world.daemon.log.splitlines()
        assert last.startswith("conetd: ")
        assert sentence in last
        assert not world.daemon.public_socket.exists()
        assert not world.daemon.private_socket.exists()
        assert not world.daemon.database.exists()
        assert world.host.json("ip", "-j", "link") == before
        assert world.host.run("nft", "list", "ruleset").stdout == ""
