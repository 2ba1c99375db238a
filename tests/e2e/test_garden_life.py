"""What NetIn and NetOut leave when a container goes, and that a restart of the daemon takes nothing of it away."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from garden import ICMP, TCP, TCP4, UDP, UDP4, Garden, events, is_free, listing, ports, to, translations
from onehost import DENIED, OUTSIDE, SERVICE, UP, Lab, Machine
from traffic import CLOSED, REFUSED, SILENCE_S, SILENT, Talk, echoes
from world import eventually

OPENED = f"outside {UP[4]}"
LOGGED = 8081  # the port that a rule which logs is for
RULES: list[dict[str, Any]] = [
    to(OUTSIDE[4], protocol=TCP, ports=ports(SERVICE)),
    to("192.0.2.65", "192.0.2.67", protocol=UDP),
    {"protocol": ICMP, "icmps": {"type": 8}},
    {"protocol": TCP, "ports": ports(LOGGED), "log": True},
]


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue, which denies everything and which the settings declare."""
    lab = bare_lab
    declare(lab, ["0.0.0.0/0"])
    for name in "ab":
        lab.container(name, "blue")
        lab.serve(lab.containers[name], TCP4)
    for flow in (TCP4, UDP4):
        for port in (SERVICE, LOGGED):
            lab.serve(lab.outside, flow, port)
    return lab


def declare(lab: Lab, deny_networks: list[str]) -> None:
    """Start the daemon anew with these deny networks in its settings."""
    assert lab.daemon.stop() == 0
    settings = lab.daemon.settings.partition("\n[[networks]]")[0]
    network = f'name = "blue"\ntype = "bridge"\nconfig = {{ subnet = "10.10.0.0/24", deny_networks = {deny_networks} }}'
    lab.daemon.settings = f"{settings}\n[[networks]]\n{network}\n"
    lab.daemon.start()


@pytest.fixture
def guest(lab: Lab) -> Iterator[Machine]:
    """A container that may go down."""
    machine = lab.container("guest", {"network": "blue", "ip": "10.10.0.77"})
    lab.serve(machine, TCP4)
    yield machine
    if machine.name in lab.containers:
        lab.remove(machine)


def about(lab: Lab, *words: str) -> list[str]:
    """The rules of the packet filter in which one of the words stands."""
    found = re.compile("|".join(rf"(?<![\w.]){re.escape(word)}(?![\w.])" for word in words))
    return [line for line in listing(lab) if found.search(line)]


# A container goes


def test_down_of_an_unknown_handle_and_down_twice_are_successes(lab: Lab, garden: Garden, guest: Machine) -> None:
    garden.net_in(guest, 7010, SERVICE)
    for handle in ("nobody", "guest", "guest"):
        assert lab.daemon.down(handle).status == 200


def test_once_down_is_answered_no_rule_is_left(lab: Lab, garden: Garden, guest: Machine) -> None:
    before = about(lab, "10.10.0.77", "guest", "7010")
    garden.net_in(guest, 7010, SERVICE)
    garden.bulk(guest, [*RULES, {"log": True}])
    assert len(about(lab, "10.10.0.77", "guest", "7010")) > len(before) > 0
    assert lab.daemon.down("guest").status == 200
    assert about(lab, "10.10.0.77", "guest", "7010") == []


def test_once_down_is_answered_its_ports_are_free(lab: Lab, garden: Garden, guest: Machine, b: Machine) -> None:
    picked, _ = garden.net_in(guest, 0, SERVICE)
    garden.net_in(guest, 7010, SERVICE)
    assert lab.daemon.down("guest").status == 200
    for port in (picked, 7010):
        assert is_free(lab, port)
        assert lab.reach(lab.outside, TCP4, UP[4], port) == REFUSED
        assert garden.net_in(b, port, SERVICE) == (port, SERVICE)
        assert lab.reach(lab.outside, TCP4, UP[4], port).startswith("b ")


def test_its_connections_are_gone_when_its_address_is_given_out(
    lab: Lab, garden: Garden, guest: Machine, b: Machine
) -> None:
    garden.net_in(guest, 7010, SERVICE)
    garden.bulk(guest, RULES)
    with (
        Talk(lab.outside.netns, TCP4, UP[4], 7010) as inward,
        Talk(guest.netns, TCP4, OUTSIDE[4], SERVICE) as out,
        Talk(lab.host.netns, TCP4, b.addresses[4], SERVICE) as other,
    ):
        assert (inward.first, out.first) == (f"guest {OUTSIDE[4]}", OPENED)
        assert lab.daemon.down("guest").status == 200
        assert out.say(patience=SILENCE_S) in (SILENT, CLOSED, REFUSED)
        lab.remove(guest)
        heir = lab.container("heir", {"network": "blue", "ip": "10.10.0.77"})
        assert [line for line in lab.flows() if "10.10.0.77" in line or "=7010 " in line] == []
        assert inward.say(patience=SILENCE_S) in (SILENT, CLOSED, REFUSED)
        assert other.say() == other.first
    lab.remove(heir)


def test_whoever_gets_its_address_gets_nothing_of_its_rules(lab: Lab, garden: Garden, guest: Machine) -> None:
    garden.net_in(guest, 7010, SERVICE)
    garden.bulk(guest, [{"log": True}])
    assert lab.reach(guest, TCP4, DENIED[4]) == OPENED
    lab.remove(guest)
    heir = lab.container("heir", {"network": "blue", "ip": "10.10.0.77"})
    lab.serve(heir, TCP4)
    assert lab.reach(heir, TCP4, DENIED[4]) == REFUSED
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == REFUSED
    assert garden.mapped(heir) == []
    lab.remove(heir)


def test_the_next_life_of_the_handle_begins_without_what_was_added(lab: Lab, garden: Garden, guest: Machine) -> None:
    garden.net_in(guest, 7010, SERVICE)
    garden.net_in(guest, 0, SERVICE)
    garden.bulk(guest, [{}])
    assert lab.reach(guest, TCP4, OUTSIDE[4]) == OPENED
    assert lab.daemon.down("guest").status == 200
    assert lab.daemon.up("guest", guest.netns).status == 200
    assert garden.mapped(guest) == []
    assert garden.policy(guest)["policy"] == {"net_in": [], "net_out": [], "deny_networks": [], "log_denied": False}
    assert lab.reach(guest, TCP4, OUTSIDE[4]) == REFUSED
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == REFUSED


def test_a_container_that_ends_by_itself_leaves_nothing_either(lab: Lab, garden: Garden, guest: Machine) -> None:
    garden.net_in(guest, 7010, SERVICE)
    garden.bulk(guest, [{"log": True}])
    guest.netns.close()
    eventually(lambda: about(lab, "10.10.0.77", "guest", "7010") == [], "its rules are gone")
    eventually(lambda: is_free(lab, 7010), "its port is free")


def test_the_bridge_stays_when_the_last_container_goes(lab: Lab, garden: Garden) -> None:
    lab.daemon.network("brief", subnet="10.90.0.0/24", bridge="brief0")
    guest = lab.container("guest", "brief")
    garden.net_in(guest, 7010, SERVICE)
    lab.remove(guest)
    eventually(lambda: not lab.daemon.get("/containers").body[2:], "only a and b are left")
    [link] = lab.host.netns.json("ip", "-j", "addr", "show", "brief0")
    assert "10.90.0.1" in [one["local"] for one in link["addr_info"]]
    assert lab.daemon.delete("/networks/brief").status == 204
    assert "brief0" not in [one["ifname"] for one in lab.host.netns.json("ip", "-j", "link")]


# The daemon goes and comes


@pytest.fixture(params=["stop", "kill"])
def end(lab: Lab, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Ends the daemon."""

    def stop() -> None:
        assert lab.daemon.stop() == 0

    return stop if request.param == "stop" else lab.daemon.kill


def works(lab: Lab, a: Machine, *host_ports: int) -> bool:
    """Whether what the rules open is open, what is denied refused, and each of the ports leads to a."""
    return (
        lab.reach(a, TCP4, OUTSIDE[4]) == OPENED
        and lab.reach(a, UDP4, OUTSIDE[4]) == REFUSED
        and [lab.reach(a, UDP4, f"192.0.2.{number}") for number in (65, 67, 68)] == [OPENED, OPENED, REFUSED]
        and echoes(a.netns, 4, OUTSIDE[4])
        and all(lab.reach(lab.outside, TCP4, UP[4], port) == f"a {OUTSIDE[4]}" for port in host_ports)
    )


def test_rules_and_mappings_stay_in_force_and_stand_once(
    lab: Lab, garden: Garden, a: Machine, end: Callable[[], None]
) -> None:
    picked, _ = garden.net_in(a, 0, SERVICE)
    garden.net_in(a, 7010, SERVICE)
    garden.net_in(a, picked + 10, SERVICE)
    garden.bulk(a, RULES[:2])
    garden.net_out(a, *RULES[2:])
    before = (garden.policy(a), garden.info(a), listing(lab))
    mappings = (picked, 7010, picked + 10)
    assert works(lab, a, *mappings)
    end()
    assert works(lab, a, *mappings)
    lab.daemon.start()
    assert works(lab, a, *mappings)
    assert (garden.policy(a), garden.info(a), listing(lab)) == before
    assert all(len(translations(lab, port)) == 1 for port in mappings)


def test_open_connections_go_on(lab: Lab, garden: Garden, a: Machine, end: Callable[[], None]) -> None:
    garden.net_in(a, 7010, SERVICE)
    garden.bulk(a, RULES)
    with (
        Talk(a.netns, TCP4, OUTSIDE[4], SERVICE) as out,
        Talk(lab.outside.netns, TCP4, UP[4], 7010) as inward,
        Talk(a.netns, UDP4, "192.0.2.65", SERVICE) as datagrams,
    ):
        talks = [out, inward, datagrams]
        said = [OPENED, f"a {OUTSIDE[4]}", OPENED]
        assert [talk.first for talk in talks] == said
        end()
        assert [talk.say() for talk in talks] == said
        lab.daemon.start()
        assert [talk.say() for talk in talks] == said


def test_rules_that_were_answered_outlive_the_daemon(
    lab: Lab, garden: Garden, a: Machine, end: Callable[[], None]
) -> None:
    garden.net_out(a, RULES[0])
    garden.bulk(a, RULES[1:])
    end()
    lab.daemon.start()
    assert [rule["protocol"] for rule in garden.policy(a)["policy"]["net_out"]] == ["tcp", "icmp", "udp", "tcp"]
    assert works(lab, a)


def test_rules_flushed_while_the_daemon_was_away_are_back(
    lab: Lab, garden: Garden, a: Machine, end: Callable[[], None]
) -> None:
    garden.net_in(a, 7010, SERVICE)
    garden.bulk(a, RULES)
    before = sorted(listing(lab))
    end()
    if lab.backend == "nftables":
        lab.host.netns.run("nft", "flush", "ruleset")
    else:
        for table in ("filter", "nat", "raw"):
            lab.host.netns.run("iptables-legacy", "-t", table, "-F")
    lab.daemon.start()
    assert sorted(listing(lab)) == before
    assert works(lab, a, 7010)


def test_changes_go_on_from_where_they_stood(lab: Lab, garden: Garden, a: Machine, end: Callable[[], None]) -> None:
    garden.net_in(a, 7010, SERVICE)
    garden.net_out(a, RULES[0])
    end()
    lab.daemon.start()
    before = (garden.policy(a), listing(lab))
    assert garden.net_in(a, 7010, SERVICE) == (7010, SERVICE)
    garden.net_out(a, RULES[0])
    assert (garden.policy(a), listing(lab)) == before
    garden.net_in(a, 7011, SERVICE)
    garden.bulk(a, RULES[1:])
    assert garden.mapped(a) == [(7010, SERVICE), (7011, SERVICE)]
    assert works(lab, a, 7010, 7011)


def test_rules_that_log_go_on_to(lab: Lab, garden: Garden, a: Machine, end: Callable[[], None]) -> None:
    garden.bulk(a, RULES)
    end()
    lab.daemon.start()
    since = len(lab.daemon.log)
    assert lab.reach(a, TCP4, OUTSIDE[4], LOGGED) == OPENED
    [event] = events(lab, since, 1)
    assert (event["handle"], event["destination_port"]) == ("a", str(LOGGED))


def test_other_deny_networks_in_the_settings_reach_containers_with_rules(
    lab: Lab, garden: Garden, a: Machine, b: Machine
) -> None:
    garden.net_in(a, 7010, SERVICE)
    garden.net_out(a, to("192.0.2.66"))
    try:
        declare(lab, ["192.0.2.64/29"])
        assert lab.reach(a, TCP4, OUTSIDE[4]) == lab.reach(b, TCP4, OUTSIDE[4]) == OPENED
        assert [lab.reach(a, TCP4, f"192.0.2.{number}") for number in (65, 66)] == [REFUSED, OPENED]
        assert lab.reach(b, TCP4, "192.0.2.66") == REFUSED
        assert lab.reach(lab.outside, TCP4, UP[4], 7010).startswith("a ")
        declare(lab, [])
        assert lab.reach(b, TCP4, "192.0.2.66") == OPENED
        with Talk(b.netns, TCP4, OUTSIDE[4], SERVICE) as forbidden, Talk(a.netns, TCP4, "192.0.2.66", SERVICE) as kept:
            declare(lab, ["0.0.0.0/0"])
            assert forbidden.say(patience=SILENCE_S) in (SILENT, REFUSED, CLOSED)
            assert kept.say() == kept.first == OPENED
        assert lab.reach(a, TCP4, OUTSIDE[4]) == lab.reach(b, TCP4, OUTSIDE[4]) == REFUSED
        assert garden.policy(a)["source"] == "garden"
    finally:
        declare(lab, ["0.0.0.0/0"])
