"""The first rule that matches decides; what none matches passes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from conetd.model import ICMP, TCP, UDP, AddressRange, Icmp, MarkRange, PortRange, Rule, Verdict
from conetd.policy.judge import Packet, allowed, judge, matches

WEB = Packet(4, TCP, ip_address("10.0.0.2"), ip_address("192.0.2.7"), 40000, 443, mark=0x12345)
PING = Packet(4, ICMP, ip_address("10.0.0.2"), ip_address("192.0.2.7"), icmp_type=8, icmp_code=0)


def rule(verdict: Verdict = Verdict.ACCEPT, to: str | None = None, **fields: Any) -> Rule:
    return Rule(verdict, destinations=(AddressRange.of(ip_network(to)),) if to else (), **fields)


@pytest.mark.parametrize(
    ("given", "packet", "wanted"),
    [
        (rule(), WEB, True),
        (rule(to="192.0.2.0/24"), WEB, True),
        (rule(to="198.51.100.0/24"), WEB, False),
        (rule(to="::/0"), WEB, False),
        (rule(protocol=UDP), WEB, False),
        (rule(protocol=TCP, ports=(PortRange(1, 2), PortRange(440, 450))), WEB, True),
        (rule(protocol=TCP, ports=(PortRange(444, 450),)), WEB, False),
        (rule(sources=(AddressRange.of(ip_network("10.0.0.0/24")),)), WEB, True),
        (rule(sources=(AddressRange.of(ip_network("10.0.1.0/24")),)), WEB, False),
        (rule(marks=(MarkRange(1, 2), MarkRange(0x2345, 0x2345))), WEB, True),
        (rule(marks=(MarkRange(0x12345, 0x12345),)), WEB, False),
        (rule(marks=(MarkRange(0x2346, 0xFFFF),)), WEB, False),
        (rule(protocol=ICMP), PING, True),
        (rule(protocol=ICMP, icmp=Icmp(8)), PING, True),
        (rule(protocol=ICMP, icmp=Icmp(8, 0)), PING, True),
        (rule(protocol=ICMP, icmp=Icmp(8, 1)), PING, False),
        (rule(protocol=ICMP, icmp=Icmp(0)), PING, False),
    ],
)
def test_a_rule_matches_when_all_its_fields_do(given: Rule, packet: Packet, wanted: bool) -> None:
    assert matches(given, packet) is wanted


def test_the_first_rule_that_matches_decides() -> None:
    rules = [rule(to="198.51.100.0/24"), rule(Verdict.REJECT, "192.0.2.0/24"), rule()]

    assert judge(rules, WEB) is rules[1]


def test_no_rule_decides_when_none_matches() -> None:
    assert judge([rule(protocol=UDP)], WEB) is None


@pytest.mark.parametrize(
    ("own", "networks", "wanted"),
    [
        ([], [], True),
        ([], [rule(Verdict.REJECT)], False),
        ([rule()], [rule(Verdict.REJECT)], True),
        ([rule(Verdict.DROP)], [rule()], False),
    ],
)
def test_own_rules_come_before_the_networks_and_what_none_matches_passes(
    own: list[Rule], networks: list[Rule], wanted: bool
) -> None:
    assert allowed(own, networks, WEB) is wanted
