"""NetOut: what each kind of rule lets a container send to, tried with packets of that kind."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from frames import IPV4, Capture, checksum, ethernet, segment, send
from garden import ALL, ICMP, ICMPV6, TCP, TCP4, TCP6, UDP, UDP4, UDP6, Garden, ports, to
from onehost import DENIED, EVERYTHING, OUTSIDE, SERVICE, UP, Lab, Machine
from traffic import PATIENCE_S, REFUSED, SILENCE_S, Flow, echoes

GATEWAY_MAC = "0a:c0:0a:0a:00:01"
Message = tuple[int, int]
OPENED = {4: f"outside {UP[4]}", 6: f"outside {UP[6]}"}
SERVED = (79, 80, 81, SERVICE, 8081, 8082)


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue, which denies everything; o on gray, which denies nothing."""
    lab = bare_lab
    lab.daemon.network("blue", subnet6="fd00:10::/64", deny_networks=EVERYTHING)
    lab.daemon.network("gray", subnet="10.30.0.0/24", subnet6="fd00:30::/64")
    for name, network in {"a": "blue", "b": "blue", "o": "gray"}.items():
        lab.container(name, network)
    for flow in (TCP4, UDP4, TCP6, UDP6):
        for port in SERVED:
            lab.serve(lab.outside, flow, port)
    return lab


@pytest.fixture
def o(lab: Lab) -> Machine:
    return lab.containers["o"]


def reached(lab: Lab, who: Machine, flow: Flow, probes: list[tuple[str, int]]) -> list[bool]:
    """Which of these addresses and ports the container reaches; from the others it is refused at once."""
    answers = [lab.reach(who, flow, *probe) for probe in probes]
    assert set(answers) <= {OPENED[flow.family], REFUSED}, answers
    return [answer != REFUSED for answer in answers]


def at(*numbers: int, port: int = SERVICE) -> list[tuple[str, int]]:
    """Addresses of the machine outside, by their last number."""
    return [(f"192.0.2.{number}", port) for number in numbers]


# What rules do


def test_a_rule_opens_what_its_network_denies(lab: Lab, garden: Garden, a: Machine, b: Machine, flow: Flow) -> None:
    assert lab.reach(a, flow, DENIED[flow.family]) == REFUSED
    garden.net_out(a, to(DENIED[flow.family]))
    assert lab.reach(a, flow, DENIED[flow.family]) == OPENED[flow.family]
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == REFUSED
    assert lab.reach(b, flow, DENIED[flow.family]) == REFUSED


def test_a_rule_opens_what_the_policy_it_was_added_to_denies(lab: Lab, garden: Garden, o: Machine, flow: Flow) -> None:
    lab.policy(o, gray={"deny_networks": EVERYTHING})
    assert lab.reach(o, flow, DENIED[flow.family]) == REFUSED
    garden.net_out(o, to(DENIED[flow.family]))
    assert lab.reach(o, flow, DENIED[flow.family]) == OPENED[flow.family]
    assert lab.reach(o, flow, OUTSIDE[flow.family]) == REFUSED


def test_a_rule_closes_nothing_where_nothing_is_denied(lab: Lab, garden: Garden, o: Machine, flow: Flow) -> None:
    garden.net_out(o, to("203.0.113.9", protocol=TCP, ports=ports(9)))
    garden.bulk(o, [to("203.0.113.10", protocol=UDP), {"protocol": ICMP, "icmps": {"type": 13}}])
    assert lab.reach(o, flow, OUTSIDE[flow.family]) == OPENED[flow.family]
    assert echoes(o.netns, flow.family, OUTSIDE[flow.family])


def test_a_bulk_opens_what_each_of_its_rules_opens(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.bulk(a, [to("192.0.2.65"), to("192.0.2.66", protocol=TCP), to("192.0.2.67", protocol=UDP)])
    assert reached(lab, a, TCP4, at(65, 66, 67, 68)) == [True, True, False, False]
    assert reached(lab, a, UDP4, at(65, 66, 67, 68)) == [True, False, True, False]


def test_rules_add_up(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_out(a, to("192.0.2.65"))
    garden.bulk(a, [to("192.0.2.66")])
    garden.net_out(a, to("192.0.2.67"))
    assert reached(lab, a, TCP4, at(65, 66, 67, 68)) == [True, True, True, False]


def test_answers_to_what_a_rule_opened_come_back(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_out(a, to(OUTSIDE[4]))
    assert lab.reach(a, UDP4, OUTSIDE[4], 8099) == REFUSED  # outside's own port-unreachable
    assert lab.reach(a, UDP4, OUTSIDE[4]) == OPENED[4]


# Protocols


@pytest.mark.parametrize(
    ("protocol", "opens"),
    [
        ({}, ["icmp", "tcp", "udp"]),
        ({"protocol": ALL}, ["icmp", "tcp", "udp"]),
        ({"protocol": TCP}, ["tcp"]),
        ({"protocol": UDP}, ["udp"]),
        ({"protocol": ICMP}, ["icmp"]),
    ],
    ids=str,
)
def test_a_rule_opens_its_protocol_alone(
    lab: Lab, garden: Garden, a: Machine, protocol: dict[str, int], opens: list[str]
) -> None:
    garden.net_out(a, to(OUTSIDE[4]) | protocol)
    found = ["icmp"] if echoes(a.netns, 4, OUTSIDE[4]) else []
    found += [flow.protocol for flow in (TCP4, UDP4) if reached(lab, a, flow, [(OUTSIDE[4], SERVICE)])[0]]
    assert found == opens


@pytest.mark.parametrize(
    ("protocol", "opens"),
    [(ALL, ["icmp", "tcp", "udp"]), (TCP, ["tcp"]), (UDP, ["udp"]), (ICMPV6, ["icmp"])],
    ids=str,
)
def test_a_rule_opens_its_protocol_alone_over_ipv6(
    lab: Lab, garden: Garden, a: Machine, protocol: int, opens: list[str]
) -> None:
    garden.net_out(a, to(OUTSIDE[6], protocol=protocol))
    found = ["icmp"] if echoes(a.netns, 6, OUTSIDE[6]) else []
    found += [flow.protocol for flow in (TCP6, UDP6) if reached(lab, a, flow, [(OUTSIDE[6], SERVICE)])[0]]
    assert found == opens


# Networks


@pytest.mark.parametrize(
    ("networks", "opens"),
    [
        ([{"start": "192.0.2.66", "end": "192.0.2.68"}], [66, 67, 68]),
        ([{"start": "192.0.2.67", "end": "192.0.2.67"}], [67]),
        ([{"start": "192.0.2.67"}], [67]),
        ([{"end": "192.0.2.67"}], [67]),
        ([{"start": "", "end": "192.0.2.67"}], [67]),
        ([{"start": "::ffff:192.0.2.66", "end": "::ffff:192.0.2.67"}], [66, 67]),
        ([{"start": "192.0.2.65", "end": "192.0.2.65"}, {"start": "192.0.2.69"}], [65, 69]),
        (
            [{"start": "192.0.2.66", "end": "192.0.2.68"}, {"start": "192.0.2.67", "end": "192.0.2.69"}],
            [66, 67, 68, 69],
        ),
        ([{"start": "192.0.2.68", "end": "192.0.2.66"}], []),
        ([{"start": "192.0.2.68", "end": "192.0.2.66"}, {"start": "192.0.2.65"}], [65]),
        ([{}], [65, 66, 67, 68, 69]),
        ([{"start": "192.0.2.65"}, {}], [65, 66, 67, 68, 69]),
        ([], [65, 66, 67, 68, 69]),
        (None, [65, 66, 67, 68, 69]),
    ],
    ids=str,
)
def test_a_rule_opens_its_networks(
    lab: Lab, garden: Garden, a: Machine, networks: list[dict[str, str]] | None, opens: list[int]
) -> None:
    garden.net_out(a, {"protocol": UDP, "networks": networks})
    numbers = range(65, 70)
    assert reached(lab, a, UDP4, at(*numbers)) == [number in opens for number in numbers]


@pytest.mark.parametrize(
    ("networks", "opens"),
    [
        ([{"start": "2001:db8::66", "end": "2001:db8::68"}], [66, 67, 68]),
        ([{"start": "2001:DB8:0:0::67"}], [67]),
        ([{"end": "2001:db8::67"}], [67]),
        ([{"start": "2001:db8::68", "end": "2001:db8::66"}], []),
        ([{"start": "192.0.2.65"}, {"start": "2001:db8::65"}], [65]),
        ([{"start": "192.0.2.65"}], []),
        ([{}], [65, 66, 67, 68, 69]),
        ([], [65, 66, 67, 68, 69]),
    ],
    ids=str,
)
def test_a_rule_opens_its_ipv6_networks(
    lab: Lab, garden: Garden, a: Machine, networks: list[dict[str, str]], opens: list[int]
) -> None:
    garden.net_out(a, {"protocol": UDP, "networks": networks})
    numbers = range(65, 70)
    probes = [(f"2001:db8::{number}", SERVICE) for number in numbers]
    assert reached(lab, a, UDP6, probes) == [number in opens for number in numbers]


# Ports


@pytest.mark.parametrize("flow", [TCP4, UDP4, TCP6, UDP6], ids=str)
@pytest.mark.parametrize(
    ("wanted", "opens"),
    [
        ([{"start": 80, "end": 80}], [80]),
        ([{"start": 80, "end": 8081}], [80, 81, SERVICE, 8081]),
        ([{"start": 79, "end": 79}, {"start": 8081, "end": 8082}], [79, 8081, 8082]),
        ([{"start": 80, "end": 81}, {"start": 81, "end": SERVICE}], [80, 81, SERVICE]),
        ([{"start": 0, "end": 80}], [79, 80]),
        ([{"end": 80}], [79, 80]),
        ([{"start": 0, "end": 0}], []),
        ([{}], []),
        ([{}, {"start": 81, "end": 81}], [81]),
        ([], list(SERVED)),
    ],
    ids=str,
)
def test_a_rule_opens_its_ports(
    lab: Lab, garden: Garden, a: Machine, flow: Flow, wanted: list[dict[str, int]], opens: list[int]
) -> None:
    protocol = TCP if flow.protocol == "tcp" else UDP
    garden.net_out(a, to(OUTSIDE[flow.family], protocol=protocol, ports=wanted))
    probes = [(OUTSIDE[flow.family], port) for port in SERVED]
    assert reached(lab, a, flow, probes) == [port in opens for port in SERVED]


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [([{}], True), ([{"start": 0, "end": 0}], True), ([{"end": 80}], True), ([{"start": 80, "end": 80}], False)],
    ids=str,
)
def test_port_0_is_a_port(lab: Lab, garden: Garden, a: Machine, wanted: list[dict[str, int]], passes: bool) -> None:
    garden.net_out(a, to(OUTSIDE[4], protocol=TCP, ports=wanted))
    with Capture(lab.outside.netns) as capture:
        syn = segment(a.addresses[4], OUTSIDE[4], 7777, 0, flags=2)
        send(a.netns, ethernet(GATEWAY_MAC, a.mac, IPV4, syn))

        def arrived(frame: bytes) -> bool:
            return frame[12:14] == b"\x08\x00" and frame[23] == 6 and frame[36:38] == b"\0\0"

        seen = capture.until(arrived, PATIENCE_S if passes else SILENCE_S)
    assert any(map(arrived, seen)) is passes


def test_every_port_is_open_at_every_network(lab: Lab, garden: Garden, a: Machine) -> None:
    networks = [{"start": "192.0.2.65"}, {"start": "192.0.2.67", "end": "192.0.2.68"}]
    garden.net_out(a, {"protocol": TCP, "networks": networks, "ports": ports(80, 8081)})
    for number in range(65, 70):
        probes = [at(number, port=port)[0] for port in SERVED]
        opens = [number in (65, 67, 68) and port in (80, 8081) for port in SERVED]
        assert reached(lab, a, TCP4, probes) == opens, number


# ICMP

# Messages that ask for something, and so begin a connection: others pass as part of one alone.
ECHO, ECHO_3, TIMESTAMP, INFORMATION = MESSAGES = ((8, 0), (8, 3), (13, 0), (15, 0))


def arriving(lab: Lab, who: Machine, sent: Sequence[Message], expected: Sequence[Message]) -> list[Message]:
    """Which of these ICMP messages, type and code, get from the container to the machine outside."""
    found: set[Message] = set()

    def look(frame: bytes) -> bool:
        if frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[26:30] == socket.inet_aton(UP[4]):
            found.add((frame[34], frame[35]))
        return found.issuperset(expected)

    with Capture(lab.outside.netns) as capture:
        with who.netns.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            for kind, code in sent:
                parts = (kind, code, 0, kind, 1)
                summed = checksum(struct.pack(">BBHHH", *parts))
                sock.sendto(struct.pack(">BBHHH", *parts[:2], summed, *parts[3:]), (OUTSIDE[4], 0))
        if expected:
            capture.until(look, PATIENCE_S)
        for frame in capture.until(lambda frame: False, SILENCE_S):
            look(frame)
    return [message for message in sent if message in found]


@pytest.mark.parametrize(
    ("icmps", "opens"),
    [
        (None, [ECHO, ECHO_3, TIMESTAMP, INFORMATION]),
        ({"type": 8}, [ECHO, ECHO_3]),
        ({"type": 8, "code": None}, [ECHO, ECHO_3]),
        ({"type": 8, "code": 0}, [ECHO]),
        ({"type": 8, "code": 3}, [ECHO_3]),
        ({"type": 13}, [TIMESTAMP]),
        ({"type": 13, "code": 0}, [TIMESTAMP]),
        ({"type": 255, "code": 255}, [ECHO, ECHO_3, TIMESTAMP, INFORMATION]),
        ({"type": 255}, [ECHO, ECHO_3, TIMESTAMP, INFORMATION]),
        ({"type": 255, "code": 3}, [ECHO, ECHO_3, TIMESTAMP, INFORMATION]),
        ({}, []),
        ({"code": 0}, []),
        ({"type": 3, "code": 0}, []),
    ],
    ids=str,
)
def test_a_rule_opens_its_icmp_messages(
    lab: Lab, garden: Garden, a: Machine, icmps: dict[str, Any] | None, opens: list[Message]
) -> None:
    garden.net_out(a, to(OUTSIDE[4], protocol=ICMP, icmps=icmps))
    assert arriving(lab, a, MESSAGES, opens) == opens


@pytest.mark.parametrize(
    ("icmps", "opens"),
    [({"type": 128}, True), ({"type": 128, "code": 0}, True), ({"type": 128, "code": 1}, False), ({}, False)],
    ids=str,
)
def test_a_rule_opens_its_icmpv6_messages(
    lab: Lab, garden: Garden, a: Machine, icmps: dict[str, int], opens: bool
) -> None:
    garden.net_out(a, to(OUTSIDE[6], protocol=ICMPV6, icmps=icmps))
    assert echoes(a.netns, 6, OUTSIDE[6]) is opens


@pytest.mark.parametrize("icmps", [{}, {"type": 0}, {"code": 0}], ids=str)
def test_a_rule_for_the_echo_reply_is_kept_as_it_is(garden: Garden, a: Machine, icmps: dict[str, int]) -> None:
    garden.net_out(a, {"protocol": ICMP, "icmps": icmps})
    [rule] = garden.policy(a)["policy"]["net_out"]
    assert rule == {"protocol": "icmp", "icmps": {"type": 0} | ({"code": 0} if "code" in icmps else {})}


def test_an_echo_reply_nobody_asked_for_does_not_pass(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_out(a, {"protocol": ICMP, "icmps": {}})
    assert arriving(lab, a, [(0, 0)], []) == []
    assert echoes(lab.outside.netns, 4, a.addresses[4])  # what was asked for does
