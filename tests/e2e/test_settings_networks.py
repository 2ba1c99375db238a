"""Networks the settings declare, from one start to the next; and the commands beside `run`."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pytest_netns import NetnsFactory
from traffic import FLOWS, REFUSED, SILENCE_S, SILENT, Services, Talk
from traffic import ask as reach
from world import World, ask, eventually, open_world, serving

BLUE = '[[networks]]\nname = "blue"\ntype = "bridge"\n'
SUBNET = 'config = { subnet = "10.10.0.0/24" }\n'
DENY = 'default_policy = { deny_networks = ["192.0.2.0/24"] }\n'


@pytest.fixture
def world(netns: NetnsFactory, tmp_path: Path) -> Iterator[World]:
    with open_world(netns, tmp_path, BLUE + SUBNET) as world:
        world.daemon.start()
        yield world


def restart(world: World, settings: str) -> None:
    assert world.daemon.stop() == 0
    world.daemon.settings = settings
    world.daemon.start()


def refused_start(world: World, settings: str) -> str:
    """Stop the daemon and start it with these settings, which must fail; the sentence that says why."""
    daemon = world.daemon
    assert daemon.stop() == 0
    daemon.settings = settings
    before = (len(daemon.log), world.remains())
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(30) == 1, daemon.log
    said = daemon.log[before[0] :].splitlines()
    assert "Traceback" not in said
    assert world.remains() == before[1]
    assert not daemon.public_socket.exists()
    return said[-1]


def conetd(world: World, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conetd", *map(str, arguments)]
    settings = [f"{key}={value}" for key, value in environment.items()]
    return world.host.run("env", *settings, *command, check=False)


def test_a_declared_network_is_there_from_the_start_and_says_that_it_is_declared(world: World) -> None:
    [blue] = world.daemon.get("/networks").body
    assert (blue["name"], blue["type"], blue["declared"]) == ("blue", "bridge", True)
    assert blue["config"]["gateway"] == "10.10.0.1"
    web = world.container("web")
    world.daemon.bring_up("web", web)
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")


def test_posting_a_declared_network_again_is_no_conflict_and_it_stays_declared(world: World) -> None:
    answer = world.daemon.network("blue")
    assert (answer.status, answer.body["declared"]) == (200, True)


def test_unchanged_settings_change_nothing(world: World) -> None:
    web = world.container("web")
    world.daemon.bring_up("web", web)
    before = (world.remains(), world.daemon.get("/networks").body)
    restart(world, BLUE + SUBNET)
    assert (world.remains(), world.daemon.get("/networks").body) == before


def test_a_changed_default_policy_reaches_the_containers_that_have_none_of_their_own(world: World) -> None:
    web, own = world.container("web"), world.container("own")
    world.daemon.bring_up("web", web)
    world.daemon.bring_up("own", own)
    assert world.daemon.policy("own", blue={"log_denied": True}).status == 200
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")
        restart(world, BLUE + SUBNET + DENY)
        assert ask(web, "192.0.2.2", 7000) == "refused"
        assert ask(own, "192.0.2.2", 7000).startswith("hello")
        told = world.daemon.get("/containers/web/policy").body["networks"]["blue"]
        assert (told["source"], told["policy"]["deny_networks"]) == ("default_policy", ["192.0.2.0/24"])
        assert told["in_force"] is True
        restart(world, BLUE + SUBNET)
        assert ask(web, "192.0.2.2", 7000).startswith("hello")


def test_a_default_policy_put_over_a_declared_one_holds_until_the_next_start(world: World) -> None:
    answer = world.daemon.put("/networks/blue/default_policy", {"log_denied": True})
    assert (answer.status, answer.body["default_policy"]["log_denied"]) == (200, True)
    restart(world, BLUE + SUBNET)
    assert world.daemon.get("/networks/blue").body["default_policy"]["log_denied"] is False


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('config = { subnet = "10.10.0.0/24", mtu = 1400 }\n', ("config.mtu", "1400")),
        ('config = { subnet = "10.12.0.0/24" }\n', ("config.gateway", "10.12.0.1")),
    ],
)
def test_a_changed_config_stops_the_start_naming_the_field_while_containers_are_attached(
    world: World, config: str, words: tuple[str, ...]
) -> None:
    web = world.container("web")
    world.daemon.bring_up("web", web)
    said = refused_start(world, BLUE + config)
    assert said.startswith("conetd: settings: networks[0]: ")
    assert '"blue"' in said
    assert "1 container is attached" in said
    for word in words:
        assert word in said, said
    world.daemon.settings = BLUE + SUBNET
    world.daemon.start()
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")


def test_changed_deny_networks_reach_the_containers_that_are_attached_and_end_what_they_forbid(world: World) -> None:
    web = world.container("web")
    world.daemon.bring_up("web", web)
    world.daemon.policy("web", blue={"net_out": [{"protocol": "tcp", "ports": [{"start": 7001, "end": 7001}]}]})
    services = Services()
    for port in (7000, 7001):
        services.open(world.outside, "outside", "tcp", port)
    with contextlib.closing(services), Talk(web, FLOWS[0], "192.0.2.2", 7000) as open_before:
        assert open_before.first == "outside 192.0.2.1"
        denied = 'config = { subnet = "10.10.0.0/24", deny_networks = ["192.0.2.0/24"] }\n'
        restart(world, BLUE + denied)
        assert world.daemon.get("/networks/blue").body["config"]["deny_networks"] == ["192.0.2.0/24"]
        assert "fields=deny_networks" in world.daemon.log
        assert open_before.say(patience=SILENCE_S) in (SILENT, REFUSED)
        assert reach(web, FLOWS[0], "192.0.2.2", 7000) == REFUSED
        assert reach(web, FLOWS[0], "192.0.2.2", 7001) == "outside 192.0.2.1"
        assert world.daemon.get("/status").status == 200
        restart(world, BLUE + SUBNET)
        assert reach(web, FLOWS[0], "192.0.2.2", 7000) == "outside 192.0.2.1"


def test_a_changed_config_replaces_the_network_while_nothing_is_attached(world: World) -> None:
    before = world.remains()["links"]
    restart(world, BLUE + 'config = { subnet = "10.12.0.0/24", bridge = "br-blue" }\n')
    after = world.remains()
    assert sorted(after["links"]) == sorted(["br-blue", "lo", "up0"])
    assert len(before) == len(after["links"])
    assert "10.10.0" not in "\n".join(after["rules"])
    assert world.daemon.get("/networks/blue").body["config"]["subnet"] == "10.12.0.0/24"
    told = world.daemon.bring_up("web", world.container("web"))
    assert told["attachments"][0]["addresses"] == ["10.12.0.2/24"]


def test_containers_that_ended_while_the_daemon_was_away_do_not_keep_a_network_from_being_replaced(
    world: World,
) -> None:
    web, other = world.container("web"), world.container("other")
    world.daemon.bring_up("web", web)
    world.daemon.kill()
    web.close()
    world.daemon.settings = BLUE + 'config = { subnet = "10.12.0.0/24" }\n'
    world.daemon.start()
    assert world.daemon.get("/containers/web").body["state"] == "down"
    told = world.daemon.bring_up("other", other)
    assert told["attachments"][0]["addresses"] == ["10.12.0.2/24"]
    eventually(lambda: world.remains()["rows"]["attachments"] == 1, "the ended container's row is gone")
    assert "10.10.0" not in "\n".join(world.remains()["rules"])
    assert len([name for name in world.remains()["links"] if name.startswith("cv")]) == 1


def test_a_network_that_is_declared_no_longer_can_be_deleted(world: World) -> None:
    answer = world.daemon.delete("/networks/blue")
    assert answer.status == 409
    assert "it stands in the settings" in answer.error["message"]
    restart(world, "")
    assert world.daemon.get("/networks/blue").body["declared"] is False
    assert world.daemon.delete("/networks/blue").status == 204
    assert world.daemon.get("/networks").body == []
    assert sorted(world.remains()["links"]) == ["lo", "up0"]


def test_a_network_a_client_made_becomes_declared_once_it_stands_in_the_settings(world: World) -> None:
    world.daemon.network("red", subnet="10.11.0.0/24")
    red = '[[networks]]\nname = "red"\ntype = "bridge"\nconfig = { subnet = "10.11.0.0/24" }\n'
    restart(world, BLUE + SUBNET + red)
    assert world.daemon.get("/networks/red").body["declared"] is True
    assert world.daemon.delete("/networks/red").status == 409


def test_a_declared_network_that_meets_a_stored_one_stops_the_start_naming_both(world: World) -> None:
    world.daemon.network("red", subnet="10.11.0.0/24")
    green = '[[networks]]\nname = "green"\ntype = "bridge"\nconfig = { subnet = "10.11.0.0/16" }\n'
    said = refused_start(world, BLUE + SUBNET + green.replace("10.11.0.0/16", "10.11.0.0/25"))
    assert said.startswith('conetd: settings: networks[1]: network "green": subnet 10.11.0.0/25 overlaps')
    assert '"red"' in said


def test_a_stored_network_whose_type_is_not_enabled_any_more_stops_the_start(world: World) -> None:
    daemon = world.daemon
    assert daemon.stop() == 0
    with sqlite3.connect(daemon.database) as db:
        db.execute("UPDATE networks SET type = 'gone', declared = 0, name = 'old'")
    daemon.settings = ""
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(30) == 1
    assert daemon.log.splitlines()[-1] == 'conetd: network "old" is of type gone, which is not enabled'


def test_the_default_networks_are_joined_and_cannot_be_deleted(world: World) -> None:
    restart(world, 'default_attach_to = ["blue"]\n')
    web = world.container("web")
    answer = world.daemon.up("web", web)
    assert [one["network"] for one in answer.body["attachments"]] == ["blue"]
    world.daemon.down("web")
    deleted = world.daemon.delete("/networks/blue")
    assert deleted.status == 409
    assert "the setting default_attach_to names it" in deleted.error["message"]


def test_check_prints_the_effective_settings_and_starts_nothing(world: World) -> None:
    world.daemon.stop()
    result = conetd(world, "check", "--config", world.daemon.config, CONETD_PRIVATE_SOCKET="/tmp/other.sock")
    assert (result.returncode, result.stderr) == (0, "")
    told: dict[str, Any] = json.loads(result.stdout)
    assert told["public_socket"] == str(world.daemon.public_socket)
    assert told["private_socket"] == "/tmp/other.sock"
    assert told["networks"][0]["name"] == "blue"
    assert told["port_pool"] == {"start": 61001, "size": 4534}
    assert not world.daemon.public_socket.exists()


def test_check_names_what_is_wrong_and_so_does_run(world: World) -> None:
    world.daemon.stop()
    config = world.daemon.config
    config.write_text(config.read_text() + "mtu = 5\n")
    for command in ("check", "run"):
        result = conetd(world, command, "--config", config)
        assert result.returncode == (2 if command == "check" else 1), result
        assert result.stdout == ""
        said = result.stderr.splitlines()[-1]
        assert "networks[0].mtu: Unknown field." in said, result


def test_drivers_lists_bridge(world: World) -> None:
    result = conetd(world, "drivers")
    assert result.returncode == 0
    assert ["bridge", "conetd"] in [line.split()[:2] for line in result.stdout.splitlines()]


def test_the_environment_goes_before_the_file(world: World) -> None:
    daemon = world.daemon
    daemon.stop()
    elsewhere = daemon.folder / "elsewhere.sock"
    more = {"CONETD_CONFIG": str(daemon.config), "CONETD_PUBLIC_SOCKET": str(elsewhere)}
    with (daemon.folder / "log").open("ab") as log:
        process = world.host.popen(
            ["env", *(f"{key}={value}" for key, value in more.items()), sys.executable, "-m", "conetd", "run"],
            stdout=log,
            stderr=log,
        )
    curl = ["curl", "-sS", "--unix-socket", str(elsewhere), "http://conetd/networks/blue"]
    eventually(elsewhere.exists, "the socket of the environment is there")
    assert world.host.json(*curl)["name"] == "blue"
    assert not daemon.public_socket.exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_sigterm_lets_the_ups_that_run_end_and_answers_them(world: World) -> None:
    daemon = world.daemon
    handles = {f"c{number}": world.container(f"c{number}") for number in range(12)}
    for handle in handles:
        daemon.join(handle, "blue")
    with ThreadPoolExecutor(len(handles)) as pool:
        ups = [pool.submit(daemon.up, handle, netns) for handle, netns in handles.items()]
        next(one for one in ups if one.result().status == 200)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        answers = []
        for one in ups:
            try:
                answers.append(one.result())
            except OSError:  # it had not connected yet: the socket is gone
                continue
    assert daemon.process.wait(30) == 0
    assert {answer.status for answer in answers} == {200}
    daemon.start()
    up = [one["handle"] for one in daemon.get("/containers").body if one["state"] == "up"]
    assert len(up) == len(answers)
    assert all(one["as_wanted"] for body in daemon.get("/containers").body for one in body["attachments"])


def test_a_changed_default_policy_publishes_and_withdraws_ports(world: World) -> None:
    daemon, web = world.daemon, world.container("publisher")
    daemon.stop()
    daemon.settings += '\n[[networks]]\nname = "ports"\ntype = "bridge"\nconfig = { subnet = "10.77.0.0/24" }\n'
    daemon.start()
    daemon.bring_up("publisher", web, "ports")
    before = daemon.settings
    daemon.stop()
    daemon.settings += "default_policy = { net_in = [{ host_port = 7777, container_port = 80 }] }\n"
    daemon.start()
    [attachment] = daemon.get("/containers/publisher").body["attachments"]
    assert [port["host_port"] for port in attachment["mapped_ports"]] == [7777]
    with serving(web, 80):
        assert ask(world.outside, "192.0.2.1", 7777).startswith("hello")
    daemon.stop()
    daemon.settings = before
    daemon.start()
    assert daemon.get("/containers/publisher").body["attachments"][0]["mapped_ports"] == []
    assert ask(world.outside, "192.0.2.1", 7777) == "refused"
