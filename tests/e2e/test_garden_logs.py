"""Which packets NetOut rules log: of which protocols, how often, by which of several rules, and under which name."""

from __future__ import annotations

from typing import Any

import pytest
from garden import ALL, ICMP, ICMPV6, TCP, TCP4, TCP6, UDP, UDP4, UDP6, Garden, events, ports, refusal, to
from onehost import DENIED, EVERYTHING, OUTSIDE, SERVICE, UP, Lab, Machine
from traffic import PATIENCE_S, REFUSED, Flow, Talk, echoes
from world import eventually

LAST = 8081  # what is sent there at the end of a test is logged: before it nothing else was
LONG = "a-handle.of:forty@bytes_1234567890123456"
PREFIX = "a-handle.of:forty@bytes_1234"
MANY = 150  # more than are told at once


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b and one with a long handle on blue, which denies everything; o on gray, which denies nothing."""
    lab = bare_lab
    lab.daemon.network("blue", subnet6="fd00:10::/64", deny_networks=EVERYTHING)
    lab.daemon.network("gray", subnet="10.30.0.0/24")
    for name, network in {"a": "blue", "b": "blue", LONG: "blue", "o": "gray"}.items():
        lab.container(name, network)
    for flow in (TCP4, UDP4, TCP6, UDP6):
        for port in (SERVICE, LAST):
            lab.serve(lab.outside, flow, port)
            lab.serve(lab.containers["a"], flow, port)
    return lab


@pytest.fixture
def o(lab: Lab) -> Machine:
    return lab.containers["o"]


def logged(lab: Lab, who: Machine, flow: Flow, since: int) -> list[dict[str, str]]:
    """What was logged of the container since then: a last packet, which is logged, is sent and waited for."""
    assert lab.reach(who, flow, OUTSIDE[flow.family], LAST) == f"outside {UP[flow.family]}"
    found = events(lab, since, 1)
    while found[-1].get("destination_port") != str(LAST):
        found = events(lab, since, len(found) + 1)
    return found[:-1]


def last(flow: Flow) -> dict[str, Any]:
    """The rule that logs the last packet."""
    return {"protocol": TCP if flow.protocol == "tcp" else UDP, "ports": ports(LAST), "log": True}


# Of which protocols


@pytest.mark.parametrize("protocol", ["all", "its-own"])
def test_a_rule_that_logs_tells_of_a_new_connection(
    lab: Lab, garden: Garden, a: Machine, flow: Flow, protocol: str
) -> None:
    number = ALL if protocol == "all" else TCP if flow.protocol == "tcp" else UDP
    garden.net_out(a, last(flow), to(OUTSIDE[flow.family], protocol=number, log=True))
    since = len(lab.daemon.log)
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
    [event] = logged(lab, a, flow, since)
    assert event["handle"] == "a"
    assert event["protocol"] == flow.protocol
    assert event["source"] == a.addresses[flow.family]
    assert (event["destination"], event["destination_port"]) == (OUTSIDE[flow.family], str(SERVICE))
    assert event["out"] == "up0"


@pytest.mark.parametrize(
    ("family", "number", "icmps", "kind"),
    [
        (4, ICMP, None, "8"),
        (4, ICMP, {"type": 8, "code": 0}, "8"),
        (4, ALL, None, "8"),
        (6, ICMPV6, None, "128"),
        (6, ICMPV6, {"type": 128}, "128"),
        (6, ALL, None, "128"),
    ],
)
def test_a_rule_that_logs_tells_of_icmp(
    lab: Lab, garden: Garden, a: Machine, family: int, number: int, icmps: dict[str, int] | None, kind: str
) -> None:
    flow = Flow("tcp", family)
    garden.net_out(a, last(flow), to(OUTSIDE[family], protocol=number, icmps=icmps, log=True))
    since = len(lab.daemon.log)
    assert echoes(a.netns, family, OUTSIDE[family])
    [event] = logged(lab, a, flow, since)
    assert event["protocol"] == {4: "icmp", 6: "icmpv6"}[family]
    assert (event["icmp_type"], event["icmp_code"]) == (kind, "0")


def test_a_bulk_s_rules_log_as_single_ones_do(lab: Lab, garden: Garden, a: Machine, flow: Flow) -> None:
    garden.bulk(a, [last(flow), to(OUTSIDE[flow.family], log=True)])
    since = len(lab.daemon.log)
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
    assert len(logged(lab, a, flow, since)) == 1


def test_where_nothing_is_denied_a_rule_does_nothing_but_log(lab: Lab, garden: Garden, o: Machine) -> None:
    garden.net_out(o, last(TCP4), to(OUTSIDE[4], log=True))
    since = len(lab.daemon.log)
    assert lab.reach(o, TCP4, DENIED[4], 8099) == REFUSED  # by the machine itself: nothing answers there
    assert lab.reach(o, TCP4, OUTSIDE[4]) == f"outside {UP[4]}"
    assert [event["destination"] for event in logged(lab, o, TCP4, since)] == [OUTSIDE[4]]


# How often


def test_a_connection_is_told_of_once(lab: Lab, garden: Garden, a: Machine, flow: Flow) -> None:
    garden.net_out(a, last(flow), to(OUTSIDE[flow.family], log=True))
    since = len(lab.daemon.log)
    with Talk(a.netns, flow, OUTSIDE[flow.family], SERVICE) as first:
        assert [first.say() for _ in range(3)] == [first.first] * 3
        with Talk(a.netns, flow, OUTSIDE[flow.family], SERVICE) as second:
            assert [first.say(), second.say()] == [first.first, second.first]
            found = [event["source_port"] for event in logged(lab, a, flow, since)]
            assert found == [str(first.port), str(second.port)]


def test_datagrams_that_nobody_answers_are_told_of_once(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_out(a, last(TCP4), to(OUTSIDE[4], log=True))
    since = len(lab.daemon.log)
    with UDP4.open(lab.outside.netns) as sink, UDP4.open(a.netns) as sock:
        sink.bind(("", 9001))
        sink.settimeout(PATIENCE_S)
        for _ in range(3):
            sock.sendto(b"x", (OUTSIDE[4], 9001))
            sink.recv(64)
        assert [event["destination_port"] for event in logged(lab, a, TCP4, since)] == ["9001"]


def test_a_connection_that_was_open_before_the_rule_is_not_told_of(
    lab: Lab, garden: Garden, a: Machine, flow: Flow
) -> None:
    garden.net_out(a, to(OUTSIDE[flow.family]))
    with Talk(a.netns, flow, OUTSIDE[flow.family], SERVICE) as talk:
        garden.net_out(a, last(flow), to(OUTSIDE[flow.family], log=True))
        since = len(lab.daemon.log)
        assert talk.say() == talk.first
        assert logged(lab, a, flow, since) == []


def test_what_comes_in_is_not_told_of_nor_are_its_answers(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_in(a, 7010, SERVICE)
    garden.net_out(a, {"log": True})
    since = len(lab.daemon.log)
    assert lab.reach(lab.outside, TCP4, UP[4], 7010).startswith("a ")
    assert logged(lab, a, TCP4, since) == []


def test_what_is_refused_is_not_told_of(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    garden.net_out(a, to(OUTSIDE[4], log=True))
    garden.net_out(b, to(OUTSIDE[4]))
    since = len(lab.daemon.log)
    assert lab.reach(a, TCP4, DENIED[4]) == REFUSED
    assert lab.reach(b, TCP4, OUTSIDE[4]) == f"outside {UP[4]}"
    assert logged(lab, a, TCP4, since) == []
    assert "packet denied" not in lab.daemon.log[since:]


def test_one_container_s_packets_do_not_flood_the_log(lab: Lab, garden: Garden, a: Machine) -> None:
    busy = lab.container("busy", "blue")
    garden.net_out(busy, {"log": True})
    garden.net_out(a, last(TCP4), to(OUTSIDE[4], log=True))
    since = len(lab.daemon.log)
    with UDP4.open(busy.netns) as sock:
        for number in range(MANY):
            sock.sendto(b"x", (OUTSIDE[4], 9000 + number))
    assert lab.reach(a, TCP4, OUTSIDE[4]) == f"outside {UP[4]}"

    def told(event: str) -> list[dict[str, str]]:
        return [one for one in events(lab, since, 1, event) if one["handle"] == "busy"]

    def counted() -> int:
        return len(told("packet allowed")) + sum(int(one["count"]) for one in told("packets not logged"))

    eventually(lambda: counted() == MANY, "every packet is told of, or counted")
    assert len(told("packet allowed")) < MANY
    assert len(events(lab, since, 1)) == len(told("packet allowed")) + 1
    lab.remove(busy)


# By which rule


@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
@pytest.mark.parametrize("log_on_top", [True, False], ids=["log", "silent"])
def test_the_rule_on_top_says_whether_a_packet_is_logged(
    lab: Lab, garden: Garden, a: Machine, flow: Flow, bulk: bool, log_on_top: bool
) -> None:
    protocol = TCP if flow.protocol == "tcp" else UDP
    wide = to(OUTSIDE[flow.family], log=not log_on_top)
    narrow = to(OUTSIDE[flow.family], protocol=protocol, ports=ports(SERVICE), log=log_on_top)
    rules = [wide, narrow, last(flow)]
    if bulk:
        garden.bulk(a, rules)
    else:
        garden.net_out(a, *rules)
    since = len(lab.daemon.log)
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
    assert len(logged(lab, a, flow, since)) == log_on_top


def test_a_rule_on_top_of_one_that_logs_silences_what_it_matches_alone(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_out(a, {"log": True}, to("192.0.2.65", protocol=UDP), to("192.0.2.66", protocol=TCP))
    since = len(lab.daemon.log)
    for flow in (TCP4, UDP4):
        for number in (65, 66):
            assert lab.reach(a, flow, f"192.0.2.{number}") == f"outside {UP[4]}"
    found = [(event["protocol"], event["destination"]) for event in logged(lab, a, TCP4, since)]
    assert found == [("tcp", "192.0.2.65"), ("udp", "192.0.2.66")]


def test_rules_above_those_of_the_policy_say_whether_a_packet_is_logged(lab: Lab, garden: Garden, a: Machine) -> None:
    lab.policy(a, blue={"net_out": [last(TCP4), {"protocol": "udp", "log": True}]})
    garden.net_out(a, to(OUTSIDE[4], protocol=UDP), to("192.0.2.65", protocol=TCP, log=True))
    since = len(lab.daemon.log)
    assert lab.reach(a, UDP4, OUTSIDE[4]) == f"outside {UP[4]}"
    assert lab.reach(a, UDP4, DENIED[4]) == f"outside {UP[4]}"
    assert lab.reach(a, TCP4, "192.0.2.65") == f"outside {UP[4]}"
    found = [(event["protocol"], event["destination"]) for event in logged(lab, a, TCP4, since)]
    assert found == [("udp", DENIED[4]), ("tcp", "192.0.2.65")]


# Under which name


def test_a_long_handle_is_told_by_its_first_28_bytes(lab: Lab, garden: Garden, flow: Flow) -> None:
    assert (len(LONG), len(PREFIX)) == (40, 28)
    who = lab.containers[LONG]
    garden.bulk(who, [last(flow), {"log": True}])
    since = len(lab.daemon.log)
    assert lab.reach(who, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
    assert [event["handle"] for event in logged(lab, who, flow, since)] == [PREFIX]


def test_every_character_of_a_handle_is_fit_for_a_bulk(lab: Lab, garden: Garden) -> None:
    for handle in ("-j", "--to", "x:y@z", "..a", "0" * 255):
        who = lab.container(handle, "blue")
        garden.bulk(who, [{"log": True}])
        garden.net_in(who, 7010, SERVICE)
        since = len(lab.daemon.log)
        assert logged(lab, who, TCP4, since) == []
        assert events(lab, since, 1)[0]["handle"] == handle[:28]
        lab.remove(who)


@pytest.mark.parametrize("handle", ["a%20b", "a+b", "a%22b", "a%27b", "a%0Ab", "a%2Fb", "%C3%A9", "a%00b", "..", "%25"])
def test_a_handle_that_would_need_quoting_cannot_be(lab: Lab, garden: Garden, handle: str) -> None:
    assert lab.daemon.put(f"/containers/{handle}/config", {"attach_to": ["blue"]}).status in (404, 422)
    assert lab.daemon.up(handle, lab.containers["a"].netns).status in (404, 422)
    answer = garden.try_bulk(handle, [{"log": True}])
    assert answer.status == 404
    if handle != "..":
        assert refusal(answer, "ContainerNotFoundError", answer.body["Handle"], 404).startswith("unknown handle: ")
