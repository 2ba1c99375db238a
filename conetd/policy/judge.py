"""Which rule decides a packet, and whether it may pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conetd.model import ICMP, ICMPV6, IPAddress, Rule, Verdict


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, after destination NAT. What the protocol has not got is None."""

    family: int
    protocol: int
    source: IPAddress
    destination: IPAddress
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    mark: int = 0


def judge(rules: Sequence[Rule], packet: Packet) -> Rule | None:
    """Return the first rule that matches, None if none does."""
    for rule in rules:
        if matches(rule, packet):
            return rule
    return None


def allowed(rules: Sequence[Rule], network_rules: Sequence[Rule], packet: Packet) -> bool:
    """Whether a packet passes an endpoint's own rules, then its network's; what no rule matches passes."""
    rule = judge(rules, packet) or judge(network_rules, packet)
    return rule is None or rule.verdict is Verdict.ACCEPT


def accepted(rules: Sequence[Rule], packet: Packet) -> bool:
    """Whether the rules accept a packet; what none matches they do not."""
    rule = judge(rules, packet)
    return rule is not None and rule.verdict is Verdict.ACCEPT


def matches(rule: Rule, packet: Packet) -> bool:
    """Whether all fields of the rule match. ICMP is of IPv4 and ICMPv6 of IPv6 alone."""
    if rule.protocol is not None:
        if rule.protocol != packet.protocol or rule.protocol == (ICMPV6 if packet.family == 4 else ICMP):
            return False
        if rule.icmp is not None and (
            rule.icmp.type != packet.icmp_type or rule.icmp.code not in (None, packet.icmp_code)
        ):
            return False
    if rule.marks and not any(one.first <= packet.mark & 0xFFFF <= one.last for one in rule.marks):
        return False
    if rule.ports and not any(
        packet.destination_port is not None and one.first <= packet.destination_port <= one.last for one in rule.ports
    ):
        return False
    if rule.destinations and not any(packet.destination in one for one in rule.destinations):
        return False
    return not rule.sources or any(packet.source in one for one in rule.sources)
