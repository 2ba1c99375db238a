"""Compiled groups decide every packet as the list of rules does."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conetd.model import ICMP, ICMPV6, TCP, UDP, AddressRange, Icmp, IPAddress, MarkRange, PortRange, Rule, Verdict
from conetd.policy.boxes import Box
from conetd.policy.compile import RuleGroup, compile_rules
from conetd.policy.judge import Packet, judge, matches

BASE = {4: int(IPv4Address("10.0.0.0")), 6: int(IPv6Address("fd00::"))}
KIND: dict[int, type[IPAddress]] = {4: IPv4Address, 6: IPv6Address}


def addresses(family: int) -> st.SearchStrategy[IPAddress]:
    return st.integers(0, 15).map(lambda number: KIND[family](BASE[family] + number))


def ranges(family: int) -> st.SearchStrategy[AddressRange]:
    return st.tuples(addresses(family), addresses(family)).map(lambda pair: AddressRange(*pair))


any_range = ranges(4) | ranges(6)
port_ranges = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda pair: PortRange(*pair))
mark_ranges = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda pair: MarkRange(*pair))
marks_of_rule = st.lists(mark_ranges, max_size=3).map(tuple)
ranges_of_rule = st.lists(any_range, max_size=3).map(tuple)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    protocol = draw(st.sampled_from([None, TCP, UDP, ICMP, ICMPV6, 47]))
    rule = Rule(
        draw(st.sampled_from(Verdict)),
        protocol,
        draw(ranges_of_rule),
        draw(st.just(()) | ranges_of_rule),
        log=draw(st.integers(0, 5)) == 0,
        marks=draw(st.just(()) | st.just(()) | marks_of_rule),
    )
    if protocol in (TCP, UDP):
        return replace(rule, ports=tuple(draw(st.lists(port_ranges, max_size=3))))
    if protocol in (ICMP, ICMPV6) and draw(st.booleans()):
        return replace(rule, icmp=Icmp(draw(st.integers(0, 3)), draw(st.none() | st.integers(0, 2))))
    return rule


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    family = draw(st.sampled_from([4, 6]))
    protocol = draw(st.sampled_from([TCP, UDP, ICMP, ICMPV6, 47]))
    ported = protocol in (TCP, UDP)
    echo = protocol in (ICMP, ICMPV6)
    return Packet(
        family,
        protocol,
        draw(addresses(family)),
        draw(addresses(family)),
        draw(st.integers(0, 9)) if ported else None,
        draw(st.integers(0, 9)) if ported else None,
        draw(st.integers(0, 3)) if echo else None,
        draw(st.integers(0, 2)) if echo else None,
        draw(st.integers(0, 4)),
    )


def in_group(group: RuleGroup, packet: Packet) -> bool:
    if group.rule is not None:
        return matches(group.rule, packet)
    return any(
        box.protocol_first <= packet.protocol <= box.protocol_last
        and box.address_first <= int(packet.destination) <= box.address_last
        and (group.kind == "plain" or box.port_first <= (packet.destination_port or 0) <= box.port_last)
        for box in group.boxes
    )


def overlap(one: Box, other: Box) -> bool:
    return all(one[at] <= other[at + 1] and other[at] <= one[at + 1] for at in (0, 2, 4))


def rule(destination: str | None = None, protocol: int | None = TCP, *ports: int, **more: Any) -> Rule:
    ranges = (AddressRange.of(ip_network(destination)),) if destination else ()
    return Rule(
        more.pop("verdict", Verdict.ACCEPT), protocol, ranges, ports=tuple(PortRange(one, one) for one in ports), **more
    )


@settings(max_examples=400)
@given(st.lists(rules(), max_size=12), st.lists(packets(), min_size=1, max_size=20))
def test_groups_give_every_packet_the_verdict_the_rules_give(
    given_rules: list[Rule], given_packets: list[Packet]
) -> None:
    for packet in given_packets:
        wanted = judge(given_rules, packet)
        groups = compile_rules(given_rules, packet.family)
        found = next((group for group in groups if in_group(group, packet)), None)

        assert (found and found.verdict) == (wanted and wanted.verdict)


@given(st.lists(rules(), max_size=20), st.sampled_from([4, 6]))
def test_boxes_of_a_group_are_disjoint_sorted_and_some(given_rules: list[Rule], family: int) -> None:
    for group in compile_rules(given_rules, family):
        assert (group.rule is None) == bool(group.boxes)
        assert list(group.boxes) == sorted(group.boxes)
        assert not any(overlap(one, other) for one, other in combinations(group.boxes, 2))


@given(st.lists(rules(), max_size=20), st.sampled_from([4, 6]))
def test_single_rules_keep_disjoint_ranges_of_the_family_only(given_rules: list[Rule], family: int) -> None:
    for group in compile_rules(given_rules, family):
        for given_ranges in (group.rule.destinations, group.rule.sources) if group.rule else ():
            assert all(one.family == family for one in given_ranges)
            assert all(int(left.last) < int(right.first) for left, right in pairwise(given_ranges))


def test_a_hundred_web_rules_become_one_group() -> None:
    given_rules = [rule(f"10.{number}.0.0/16", TCP, 80, 443 + number) for number in range(100)]

    assert [group.kind for group in compile_rules(given_rules, 4)] == ["ports"]


def test_a_change_of_verdict_starts_a_new_group() -> None:
    given_rules = [rule("10.0.0.1/32"), rule("10.0.0.0/8", verdict=Verdict.REJECT), rule("10.0.0.0/24")]

    found = [group.verdict for group in compile_rules(given_rules, 4)]

    assert found == [Verdict.ACCEPT, Verdict.REJECT, Verdict.ACCEPT]


@settings(max_examples=400)
@given(st.lists(rules(), max_size=12), st.lists(packets(), min_size=1, max_size=20))
def test_what_is_logged_is_decided_by_the_first_rule_that_matches(
    given_rules: list[Rule], given_packets: list[Packet]
) -> None:
    for packet in given_packets:
        wanted = judge(given_rules, packet)
        groups = compile_rules(given_rules, packet.family)
        found = next((group for group in groups if in_group(group, packet)), None)

        assert (found is not None and found.log) == (wanted is not None and wanted.log)


def test_rules_that_log_stand_before_those_that_have_nothing_in_common_with_them() -> None:
    given_rules = [
        rule("10.0.0.0/8", origin="a"),
        rule("11.0.0.0/8", log=True, origin="b"),
        rule(None, UDP, log=True, origin="c"),
        rule("10.1.0.0/16", log=True, origin="d"),
        rule("12.0.0.0/8", origin="e"),
    ]

    found = [(group.origin, group.log) for group in compile_rules(given_rules, 4)]

    assert found == [("b", True), ("c", True), ("a", False), ("d", True), ("e", False)]


def test_with_many_rules_before_it_a_rule_that_logs_is_not_compared_with_each() -> None:
    given_rules = [rule(f"10.0.{number}.0/24", origin="many") for number in range(65)] + [rule("11.0.0.0/8", log=True)]

    assert [group.log for group in compile_rules(given_rules, 4)] == [False, True]


@pytest.mark.parametrize(("count", "logs"), [(300, [True, False]), (400, [False, True])])
def test_rules_of_very_many_destinations_are_not_compared_with_each_other(count: int, logs: list[bool]) -> None:
    def scattered(network: int) -> tuple[AddressRange, ...]:
        base = int(IPv4Address(f"{network}.0.0.0"))
        return tuple(AddressRange(IPv4Address(base + 2 * one), IPv4Address(base + 2 * one)) for one in range(count))

    silent, logging = (Rule(Verdict.ACCEPT, TCP, scattered(network)) for network in (10, 11))

    assert [group.log for group in compile_rules([silent, replace(logging, log=True)], 4)] == logs


def test_ports_of_a_destination_that_is_open_anyway_are_left_out() -> None:
    assert [group.kind for group in compile_rules([rule("10.0.0.5/32", TCP, 80), rule("10.0.0.0/8")], 4)] == ["plain"]


def test_a_protocol_that_is_open_with_all_others_is_left_out() -> None:
    (group,) = compile_rules([rule("10.0.0.5/32", TCP), rule("10.0.0.0/8", None)], 4)

    assert [box[:2] for box in group.boxes] == [(0, 255)]


def test_a_group_names_the_first_and_the_last_rule_it_came_from() -> None:
    (group,) = compile_rules([rule("10.0.0.1/32", origin="net_out[0]"), rule("10.0.0.9/32", origin="net_out[7]")], 4)

    assert group.origin == "net_out[0] to net_out[7]"


@pytest.mark.parametrize(
    "nothing",
    [
        rule("fd00::/64"),
        rule("fd00::/64", log=True),
        rule(None, ICMPV6),
        Rule(Verdict.ACCEPT, TCP, (AddressRange(IPv4Address(9), IPv4Address(1)),)),
        Rule(Verdict.ACCEPT, TCP, (AddressRange(IPv4Address(9), IPv4Address(1)),), log=True),
        Rule(Verdict.ACCEPT, TCP, ports=(PortRange(9, 1),)),
    ],
)
def test_a_rule_that_no_packet_of_the_family_can_match_makes_no_group(nothing: Rule) -> None:
    assert compile_rules([nothing], 4) == ()


def test_ports_without_a_protocol_that_has_them_are_refused() -> None:
    with pytest.raises(ValueError, match=r"net_out\[2\]: ports need protocol 6 or 17"):
        compile_rules([rule(None, None, 80, origin="net_out[2]")], 4)


def of(*numbers: int, origin: str = "", **fields: Any) -> Rule:
    return Rule(Verdict.ACCEPT, marks=tuple(MarkRange(one, one) for one in numbers), origin=origin, **fields)


def test_rules_that_differ_in_their_marks_alone_are_one_and_then_those_that_differ_in_their_ports() -> None:
    web, db = (PortRange(80, 80),), (PortRange(5432, 5432),)
    groups = compile_rules(
        [
            of(3, origin="policies[0]", protocol=TCP, ports=web),
            of(5, origin="policies[1]", protocol=TCP, ports=db),
            of(4, 9, origin="policies[2]", protocol=TCP, ports=web),
            of(3, 4, 9, origin="policies[3]", protocol=TCP, ports=db),
        ],
        4,
    )
    assert [(group.origin, group.rule and (group.rule.marks, group.rule.ports)) for group in groups] == [
        ("policies[0] to policies[2]", ((MarkRange(3, 4), MarkRange(9, 9)), web)),
        ("policies[1] to policies[3]", ((MarkRange(3, 5), MarkRange(9, 9)), db)),
    ]


def test_rules_of_the_same_identities_are_one_with_all_their_ports() -> None:
    (group,) = compile_rules([of(3, 4, protocol=TCP, ports=(PortRange(port, port),)) for port in (80, 81, 443)], 4)
    assert group.rule is not None
    assert group.rule.ports == (PortRange(80, 81), PortRange(443, 443))


def test_a_rule_for_any_identity_takes_in_the_one_for_some() -> None:
    sources = (AddressRange(IPv4Address("10.0.0.0"), IPv4Address("10.0.0.9")),)
    (group,) = compile_rules([of(3, sources=sources), of(sources=sources)], 4)
    assert group.rule is not None
    assert not group.rule.marks
