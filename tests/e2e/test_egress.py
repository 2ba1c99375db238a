"""What a container may send: deny networks, net_out, other containers, isolation, the host itself."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from onehost import DENIED, DENY, EVERYTHING, OUTSIDE, SERVICE, UP, Lab, Machine
from traffic import FLOWS, REFUSED, SILENCE_S, SILENT, Flow, echoes
from world import eventually

GATEWAY = {4: "10.10.0.1", 6: "fd00:10::1"}
GREEN_GATEWAY = {4: "10.20.0.1", 6: "fd00:20::1"}
CLOSED_PORT = 8099  # nothing answers there
PORTS = (SERVICE, 8081, 8082, 8083)


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue, which denies; c on green, which opens the host; i, j on gray, isolated; m on blue and green."""
    lab = bare_lab
    lab.daemon.network("blue", subnet6="fd00:10::/64", deny_networks=DENY)
    lab.daemon.network("green", subnet="10.20.0.0/24", subnet6="fd00:20::/64", allow_host_access=True)
    lab.daemon.network("gray", subnet="10.30.0.0/24", subnet6="fd00:30::/64", isolated=True)
    for name, networks in {"a": ["blue"], "b": ["blue"], "c": ["green"], "i": ["gray"], "j": ["gray"]}.items():
        lab.container(name, *networks)
    lab.container("m", "blue", "green")
    for flow in FLOWS:
        for machine in (lab.host, lab.outside, *lab.containers.values()):
            lab.serve(machine, flow)
        for port in PORTS[1:]:
            lab.serve(lab.outside, flow, port)
    return lab


def to(address: str, end: str | None = None) -> dict[str, Any]:
    """A net_out rule that opens an address, or a range, to all protocols."""
    return {"networks": [{"start": address, "end": end or address}]}


# Deny networks and net_out


def test_what_no_network_denies_is_reachable(lab: Lab, a: Machine, flow: Flow) -> None:
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"


def test_a_deny_network_refuses_at_once(lab: Lab, a: Machine, flow: Flow) -> None:
    assert lab.reach(a, flow, DENIED[flow.family]) == REFUSED


def test_a_deny_network_goes_from_its_first_address_to_its_last(lab: Lab, a: Machine) -> None:
    answers = [lab.reach(a, FLOWS[0], f"192.0.2.{number}") for number in (65, 71, 72)]
    assert answers == [REFUSED, REFUSED, f"outside {UP[4]}"]


def test_net_out_opens_what_the_network_denies(lab: Lab, a: Machine, b: Machine, flow: Flow) -> None:
    lab.policy(a, blue={"net_out": [to(DENIED[flow.family])]})
    assert lab.reach(a, flow, DENIED[flow.family]) == f"outside {UP[flow.family]}"
    assert lab.reach(b, flow, DENIED[flow.family]) == REFUSED


def test_net_out_opens_what_the_policy_itself_denies(lab: Lab, a: Machine, flow: Flow) -> None:
    lab.policy(a, blue={"net_out": [to(DENIED[flow.family])], "deny_networks": EVERYTHING})
    assert lab.reach(a, flow, DENIED[flow.family]) == f"outside {UP[flow.family]}"
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == REFUSED


def test_a_policy_adds_to_what_its_network_denies(lab: Lab, a: Machine, b: Machine, flow: Flow) -> None:
    lab.policy(a, blue={"deny_networks": [f"{OUTSIDE[flow.family]}/{32 if flow.family == 4 else 128}"]})
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == REFUSED
    assert lab.reach(a, flow, DENIED[flow.family]) == REFUSED
    assert lab.reach(b, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"


def test_a_policy_without_deny_networks_does_not_lift_its_network_s(lab: Lab, a: Machine, flow: Flow) -> None:
    lab.policy(a, blue={"deny_networks": [], "net_out": []})
    assert lab.reach(a, flow, DENIED[flow.family]) == REFUSED


def test_replies_pass_whatever_is_denied(lab: Lab, a: Machine, flow: Flow) -> None:
    mapping = {"host_port": 7000, "container_port": SERVICE, "protocol": flow.protocol}
    lab.policy(a, blue={"deny_networks": EVERYTHING, "net_in": [mapping]})
    assert lab.reach(lab.outside, flow, UP[flow.family], 7000) == f"a {OUTSIDE[flow.family]}"
    assert lab.reach(lab.host, flow, a.addresses[flow.family]) == f"a {GATEWAY[flow.family]}"
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == REFUSED


# What a rule matches


@pytest.mark.parametrize("family", [4, 6])
def test_a_range_of_addresses_is_open_from_its_start_to_its_end(lab: Lab, a: Machine, family: int) -> None:
    prefix = "192.0.2." if family == 4 else "2001:db8::"
    lab.policy(a, blue={"net_out": [to(f"{prefix}66", f"{prefix}68")]})
    answers = {number: lab.reach(a, Flow("udp", family), f"{prefix}{number}") for number in range(65, 70)}
    opened = f"outside {UP[family]}"
    assert answers == {65: REFUSED, 66: opened, 67: opened, 68: opened, 69: REFUSED}


@pytest.mark.parametrize("end", ["start", "end"])
def test_a_network_with_one_end_is_one_address(lab: Lab, a: Machine, end: str) -> None:
    lab.policy(a, blue={"net_out": [{"networks": [{end: "192.0.2.67"}]}]})
    answers = [lab.reach(a, FLOWS[0], f"192.0.2.{number}") for number in (66, 67, 68)]
    assert answers == [REFUSED, f"outside {UP[4]}", REFUSED]


@pytest.mark.parametrize("rule", [{}, {"networks": [{}]}, {"networks": []}], ids=["none", "empty", "no-networks"])
def test_a_rule_without_networks_opens_everything(lab: Lab, a: Machine, flow: Flow, rule: dict[str, Any]) -> None:
    lab.policy(a, blue={"net_out": [rule], "deny_networks": EVERYTHING})
    assert lab.reach(a, flow, DENIED[flow.family]) == f"outside {UP[flow.family]}"


def test_ports_are_open_from_start_to_end(lab: Lab, a: Machine, flow: Flow) -> None:
    ports = [{"start": SERVICE, "end": SERVICE}, {"start": 8082, "end": 8082}]
    rule = to(DENIED[flow.family]) | {"protocol": flow.protocol, "ports": ports}
    lab.policy(a, blue={"net_out": [rule]})
    answers = [lab.reach(a, flow, DENIED[flow.family], port) for port in PORTS]
    opened = f"outside {UP[flow.family]}"
    assert answers == [opened, REFUSED, opened, REFUSED]


@pytest.mark.parametrize(
    ("written", "opens"),
    [("all", ("tcp", "udp")), (0, ("tcp", "udp")), ("tcp", ("tcp",)), (1, ("tcp",)), ("udp", ("udp",)), (2, ("udp",))],
    ids=str,
)
def test_a_protocol_by_name_and_by_number(lab: Lab, a: Machine, written: Any, opens: tuple[str, ...]) -> None:
    rules = [to(DENIED[family]) | {"protocol": written} for family in (4, 6)]
    lab.policy(a, blue={"net_out": rules})
    answers = {str(flow): lab.reach(a, flow, DENIED[flow.family]) for flow in FLOWS}
    assert answers == {str(flow): f"outside {UP[flow.family]}" if flow.protocol in opens else REFUSED for flow in FLOWS}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", ["name", "number"])
def test_a_rule_for_icmp_opens_every_type(lab: Lab, a: Machine, family: int, name: str) -> None:
    protocol: Any = {"name": ("icmp", "icmpv6"), "number": (3, 4)}[name][family == 6]
    assert not echoes(a.netns, family, DENIED[family])
    lab.policy(a, blue={"net_out": [to(DENIED[family]) | {"protocol": protocol}]})
    assert echoes(a.netns, family, DENIED[family])
    assert lab.reach(a, Flow("tcp", family), DENIED[family]) == REFUSED


@pytest.mark.parametrize(
    ("icmps", "opens"),
    [
        ({"type": 8}, True),
        ({"type": 8, "code": None}, True),
        ({"type": 8, "code": 0}, True),
        ({"type": 255, "code": 255}, True),
        ({"type": 13}, False),
        ({"type": 8, "code": 1}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", [4, 6])
def test_a_rule_for_an_icmp_type_opens_that_type(
    lab: Lab, a: Machine, family: int, icmps: dict[str, Any], opens: bool
) -> None:
    if family == 6 and icmps["type"] == 8:
        icmps = icmps | {"type": 128}
    rule = to(DENIED[family]) | {"protocol": 3 if family == 4 else 4, "icmps": icmps}
    lab.policy(a, blue={"net_out": [rule]})
    assert echoes(a.netns, family, DENIED[family]) is opens


def test_an_error_about_an_open_flow_comes_back(lab: Lab, a: Machine) -> None:
    lab.policy(a, blue={"deny_networks": EVERYTHING, "net_out": [to(OUTSIDE[4])]})
    assert lab.reach(a, Flow("udp", 4), OUTSIDE[4], CLOSED_PORT) == REFUSED  # outside's own port-unreachable


# Containers among themselves


def test_traffic_inside_a_network_is_not_judged(lab: Lab, a: Machine, b: Machine, flow: Flow, bridge_nf: int) -> None:
    lab.policy(a, blue={"deny_networks": EVERYTHING})
    lab.policy(b, blue={"deny_networks": EVERYTHING})
    assert lab.reach(a, flow, b.addresses[flow.family]) == f"b {a.addresses[flow.family]}"


def test_other_networks_are_reachable_unless_denied(
    lab: Lab, a: Machine, c: Machine, flow: Flow, bridge_nf: int
) -> None:
    assert lab.reach(a, flow, c.addresses[flow.family]).startswith("c ")
    lab.policy(a, blue={"deny_networks": ["10.20.0.0/24", "fd00:20::/64"]})
    assert lab.reach(a, flow, c.addresses[flow.family]) == REFUSED
    assert lab.reach(c, flow, a.addresses[flow.family]).startswith("a ")


def test_isolated_neighbours_do_not_reach_each_other(lab: Lab, flow: Flow, bridge_nf: int) -> None:
    if lab.backend == "iptables" and not bridge_nf:
        pytest.skip("iptables does not see frames inside a bridge with bridge-nf-call-iptables = 0")
    i, j = lab.containers["i"], lab.containers["j"]
    assert lab.miss(i, flow, j.addresses[flow.family]) == SILENT
    assert lab.reach(i, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"


def test_isolated_neighbours_do_not_reach_each_other_through_the_gateway(lab: Lab, flow: Flow, bridge_nf: int) -> None:
    i, j = lab.containers["i"], lab.containers["j"]
    there = j.addresses[flow.family]
    gateway = {4: "10.30.0.1", 6: "fd00:30::1"}[flow.family]
    i.netns.run("ip", f"-{flow.family}", "route", "replace", there, "via", gateway)
    try:
        assert lab.miss(i, flow, there) == SILENT
    finally:
        i.netns.run("ip", f"-{flow.family}", "route", "del", there, "via", gateway)


def test_ports_published_between_isolated_neighbours_work(lab: Lab, flow: Flow, bridge_nf: int) -> None:
    i, j = lab.containers["i"], lab.containers["j"]
    lab.policy(j, gray={"net_in": [{"host_port": 7000, "container_port": SERVICE, "protocol": flow.protocol}]})
    assert lab.reach(i, flow, UP[flow.family], 7000).startswith("j ")
    assert lab.reach(j, flow, UP[flow.family], 7000).startswith("j ")
    assert lab.reach(lab.outside, flow, UP[flow.family], 7000) == f"j {OUTSIDE[flow.family]}"


def test_an_isolated_network_is_not_closed_to_others(lab: Lab, a: Machine, flow: Flow) -> None:
    i = lab.containers["i"]
    assert lab.reach(a, flow, i.addresses[flow.family]).startswith("i ")
    assert lab.reach(i, flow, a.addresses[flow.family]).startswith("a ")


def test_a_published_port_is_judged_by_where_it_leads(lab: Lab, a: Machine, c: Machine, flow: Flow) -> None:
    lab.policy(c, green={"net_in": [{"host_port": 7000, "container_port": SERVICE, "protocol": flow.protocol}]})
    assert lab.reach(a, flow, UP[flow.family], 7000).startswith("c ")
    lab.policy(a, blue={"deny_networks": ["10.20.0.0/24", "fd00:20::/64"]})
    assert lab.reach(a, flow, UP[flow.family], 7000) == REFUSED


def test_each_network_of_a_container_judges_by_its_own_policy(lab: Lab, flow: Flow) -> None:
    m = lab.containers["m"]
    lab.policy(m, green={"deny_networks": EVERYTHING})
    assert lab.reach(m, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"  # by eth0, on blue
    assert lab.reach(m, flow, DENIED[flow.family]) == REFUSED
    lab.policy(m, blue={"deny_networks": EVERYTHING})
    assert lab.reach(m, flow, OUTSIDE[flow.family]) == REFUSED


# The host itself


def test_without_host_access_the_host_refuses(lab: Lab, a: Machine, flow: Flow, bridge_nf: int) -> None:
    assert lab.reach(a, flow, GATEWAY[flow.family]) == REFUSED
    assert lab.reach(a, flow, UP[flow.family]) == REFUSED
    assert lab.reach(a, flow, GREEN_GATEWAY[flow.family]) == REFUSED


def test_without_host_access_the_host_refuses_by_its_link_local_address(lab: Lab, a: Machine) -> None:
    [bridge] = [one for one in lab.host.netns.json("ip", "-j", "addr") if _has(one, GATEWAY[4])]
    [local] = [one["local"] for one in bridge["addr_info"] if one["scope"] == "link"]
    index = a.netns.call(socket.if_nametoindex, "eth0")

    def connect() -> str:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.settimeout(SILENCE_S)
            try:
                sock.connect((local, SERVICE, 0, index))
            except OSError:
                return REFUSED
            return "reached"

    assert a.netns.call(connect) == REFUSED


def _has(link: dict[str, Any], address: str) -> bool:
    return any(one["local"] == address for one in link["addr_info"])


def test_without_host_access_neighbours_are_still_discovered(lab: Lab, a: Machine, flow: Flow, bridge_nf: int) -> None:
    def forgotten() -> bool:
        for nud in ("all", "permanent"):
            a.netns.run("ip", "neigh", "flush", "dev", "eth0", "nud", nud)
        return not a.netns.json("ip", "-j", "neigh", "show", "dev", "eth0")

    eventually(forgotten, "it knows nobody")  # the daemon puts the gateway back when it comes by
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"


def test_without_host_access_replies_to_the_host_pass(lab: Lab, a: Machine, flow: Flow, bridge_nf: int) -> None:
    assert lab.reach(lab.host, flow, a.addresses[flow.family]) == f"a {GATEWAY[flow.family]}"


@pytest.mark.parametrize("family", [4, 6])
def test_without_host_access_the_host_may_ping_and_not_be_pinged(lab: Lab, a: Machine, family: int) -> None:
    assert echoes(lab.host.netns, family, a.addresses[family])
    assert not echoes(a.netns, family, GATEWAY[family])


def test_with_host_access_the_host_answers(lab: Lab, c: Machine, flow: Flow, bridge_nf: int) -> None:
    assert lab.reach(c, flow, GREEN_GATEWAY[flow.family]) == f"host {c.addresses[flow.family]}"
    assert lab.reach(c, flow, UP[flow.family]) == f"host {c.addresses[flow.family]}"


def test_host_access_is_not_judged_by_the_policy(lab: Lab, c: Machine, flow: Flow) -> None:
    lab.policy(c, green={"deny_networks": EVERYTHING})
    assert lab.reach(c, flow, GREEN_GATEWAY[flow.family]) == f"host {c.addresses[flow.family]}"
