"""Which few groups of lookups decide like a long list of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Literal, TypeVar

from conetd.model import ICMP, ICMPV6, TCP, UDP, AddressRange, IPAddress, MarkRange, PortRange, Rule, Verdict
from conetd.policy.boxes import Box, Rectangle, Span, covers, layers, merge, subtract

T = TypeVar("T")
Kind = Literal["ports", "plain", "rule"]

_ANY_ADDRESS: dict[int, tuple[Span, ...]] = {4: ((0, 2**32 - 1),), 6: ((0, 2**128 - 1),)}
_ANY_PROTOCOL = (0, 255)
# Rules and their destinations. To look up a longer list takes as long as to compile it; to keep many takes gigabytes.
_REMEMBERED = 256
_COMPARED = 64  # rules; with more it is taken for granted that one of them meets a rule that logs
_PAIRS = 1 << 17  # of destinations, in one list; with more likewise. They take some 50 ms


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """Packets of one IP version that get one verdict by one lookup.

    `ports`: any of `boxes`, by protocol (TCP or UDP), destination and destination port. `plain`: any of `boxes`, by
    protocol and destination alone. Boxes of a group are disjoint and sorted, and there are some. `rule`: what `rule`
    says, the one group that looks at sources, ICMP types or marks, and the one that logs; its addresses are of this
    IP version, its ranges sorted and disjoint. `origin` names the rule, or the first and the last, it came from.
    """

    verdict: Verdict
    log: bool
    origin: str
    kind: Kind
    boxes: tuple[Box, ...] = ()
    rule: Rule | None = None


def compile_rules(rules: Sequence[Rule], family: int) -> tuple[RuleGroup, ...]:
    """Return groups of which the first that matches gives each packet of the family (4, 6) the rules' verdict.

    Consecutive rules of one verdict are a union, so they are merged, cut and sorted, and what others cover is left
    out. A rule that logs is a group of its own. It logs what no rule before it matches: those before it that may match
    the same come first, the others after it, so that few rules that log leave few groups. No group and no rule: no
    verdict.
    """
    if sum(len(rule.destinations) + 1 for rule in rules) > _REMEMBERED:
        return _compile(rules, family)
    return _recall(tuple(rules), family)


def concerns(rule: Rule, family: int) -> bool:
    """Whether packets of this IP version can match: ICMP is of IPv4 alone, ICMPv6 of IPv6."""
    return (
        rule.protocol != (ICMPV6 if family == 4 else ICMP)
        and (not rule.destinations or any(one.first.version == family for one in rule.destinations))
        and (not rule.sources or any(one.first.version == family for one in rule.sources))
    )


# Containers of a network share its default policy, whose rules are the very same objects each time.
@lru_cache(maxsize=256)
def _recall(rules: tuple[Rule, ...], family: int) -> tuple[RuleGroup, ...]:
    return _compile(rules, family)


def _compile(rules: Sequence[Rule], family: int) -> tuple[RuleGroup, ...]:
    found: list[RuleGroup] = []
    left = _PAIRS
    for verdict, run in groupby(rules, key=lambda rule: rule.verdict):
        silent: list[Rule] = []  # no group yet
        waiting = 0  # destinations of `silent`, anywhere counted as one
        for rule in run:
            if not concerns(rule, family):
                continue
            if not rule.log:
                silent.append(rule)
                waiting += max(len(rule.destinations), 1)
                continue
            left -= waiting * max(len(rule.destinations), 1)
            if len(silent) > _COMPARED or left < 0 or any(_meet(one, rule) for one in silent):
                found += _union(verdict, silent, family)
                silent, waiting = [], 0
            narrowed = _narrow(rule, family)
            if narrowed is not None:
                found.append(RuleGroup(verdict, True, rule.origin, "rule", rule=narrowed))
        found += _union(verdict, silent, family)
    return tuple(found)


def _meet(one: Rule, other: Rule) -> bool:
    """Whether a packet may match both. May say so when none can."""
    if None not in (one.protocol, other.protocol) and one.protocol != other.protocol:
        return False
    if one.ports and other.ports and not _overlap(one.ports, other.ports):
        return False
    if one.icmp and other.icmp and one.icmp.type != other.icmp.type:
        return False
    return not (one.destinations and other.destinations) or any(
        mine.family == theirs.family and int(mine.first) <= int(theirs.last) and int(theirs.first) <= int(mine.last)
        for mine in one.destinations
        for theirs in other.destinations
    )


def _overlap(some: Sequence[PortRange], others: Sequence[PortRange]) -> bool:
    return any(one.first <= other.last and other.first <= one.last for one in some for other in others)


def _union(verdict: Verdict, rules: Sequence[Rule], family: int) -> list[RuleGroup]:
    """The groups of rules that do not log."""
    single: list[Rule] = []
    plain: dict[Span, list[Span]] = {}
    rectangles: dict[int, list[Rectangle]] = {}
    plain_origins: list[str] = []
    port_origins: list[str] = []
    for rule in rules:
        if rule.sources or rule.icmp is not None or rule.marks:
            single.append(rule)
            continue
        addresses = _addresses(rule.destinations, family)
        if rule.ports:
            port_origins.append(rule.origin)
            rectangles.setdefault(_with_ports(rule), []).extend(
                (first, last, one.first, one.last)
                for first, last in addresses
                for one in rule.ports
                if one.first <= one.last
            )
        elif addresses:
            plain_origins.append(rule.origin)
            protocol = _ANY_PROTOCOL if rule.protocol is None else (rule.protocol, rule.protocol)
            plain.setdefault(protocol, []).extend(addresses)
    anything = merge(plain.pop(_ANY_PROTOCOL, ()))
    merged = {protocol: subtract(merge(spans), anything) for protocol, spans in plain.items()}
    ports = _port_groups(rectangles, anything, merged)
    merged[_ANY_PROTOCOL] = anything
    boxes = tuple(Box(*protocol, *span) for protocol, spans in sorted(merged.items()) for span in spans)
    groups = [RuleGroup(verdict, False, _span(port_origins), "ports", one) for one in ports]
    if boxes:
        groups.append(RuleGroup(verdict, False, _span(plain_origins), "plain", boxes))
    single = _joined(single, lambda rule: rule.marks, lambda rule, marks: replace(rule, marks=marks))
    single = _joined(single, lambda rule: rule.ports, lambda rule, ports: replace(rule, ports=ports))
    narrowed = (_narrow(rule, family) for rule in single)
    return groups + [RuleGroup(verdict, False, one.origin, "rule", rule=one) for one in narrowed if one is not None]


def _joined(
    rules: Sequence[Rule], get: Callable[[Rule], tuple[T, ...]], put: Callable[[Rule, tuple[T, ...]], Rule]
) -> list[Rule]:
    """The same as fewer rules: those that differ in one field alone are one. Empty, the field matches anything."""
    by_rest: dict[Rule, list[Rule]] = {}
    for rule in rules:
        by_rest.setdefault(replace(put(rule, ()), origin=""), []).append(rule)
    found = []
    for rest, alike in by_rest.items():
        values = [get(rule) for rule in alike]
        joined = tuple(one for value in values for one in value) if all(values) else ()
        found.append(replace(put(rest, joined), origin=_span([rule.origin for rule in alike])))
    return found


def _port_groups(
    rectangles: dict[int, list[Rectangle]], anything: list[Span], plain: dict[Span, list[Span]]
) -> list[tuple[Box, ...]]:
    """One tuple of disjoint boxes for each set that is needed, without what is open on all ports anyway."""
    groups: list[list[Box]] = []
    for protocol in sorted(rectangles):
        wide = merge(anything + plain.get((protocol, protocol), []))
        narrow = rectangles[protocol]
        if wide:
            narrow = [one for one in narrow if not covers(wide, one[0], one[1])]
        for number, layer in enumerate(layers(narrow)):
            if number == len(groups):
                groups.append([])
            groups[number] += [Box(protocol, protocol, *one) for one in sorted(layer)]
    return [tuple(group) for group in groups]


def _with_ports(rule: Rule) -> int:
    if rule.protocol not in (TCP, UDP):
        raise ValueError(f"rule {rule.origin}: ports need protocol 6 or 17, not {rule.protocol}")
    return rule.protocol


def _addresses(ranges: Sequence[AddressRange], family: int) -> Sequence[Span]:
    """The ranges of the family as integers; all there are when no range is given. Reversed ones hold none."""
    if not ranges:
        return _ANY_ADDRESS[family]
    spans = [(int(one.first), int(one.last)) for one in ranges if one.first.version == family]
    return [span for span in spans if span[0] <= span[1]]


def _narrow(rule: Rule, family: int) -> Rule | None:
    """The rule for one IP version, its ranges sorted and disjoint; None if it can match nothing."""
    destinations = _ranges(rule.destinations, family)
    sources = _ranges(rule.sources, family)
    if rule.ports:
        _with_ports(rule)
    ports = tuple(PortRange(*span) for span in merge((one.first, one.last) for one in rule.ports))
    marks = tuple(MarkRange(*span) for span in merge((one.first, one.last) for one in rule.marks))
    wanted, found = (rule.destinations, rule.sources, rule.ports, rule.marks), (destinations, sources, ports, marks)
    if any(before and not after for before, after in zip(wanted, found, strict=True)):
        return None
    return replace(rule, destinations=destinations, sources=sources, ports=ports, marks=marks)


def _ranges(ranges: Iterable[AddressRange], family: int) -> tuple[AddressRange, ...]:
    mine = tuple(one for one in ranges if one.first.version == family)
    if not mine or (len(mine) == 1 and mine[0].first <= mine[0].last):  # type: ignore[operator]  # both of one family
        return mine
    address: type[IPAddress] = type(mine[0].first)
    spans = merge((int(one.first), int(one.last)) for one in mine)
    return tuple(AddressRange(address(first), address(last)) for first, last in spans)


def _span(origins: Sequence[str]) -> str:
    if not origins:
        return ""
    return origins[0] if origins[0] == origins[-1] else f"{origins[0]} to {origins[-1]}"
