"""Which lines of a legacy chain say the same as one of our rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address

from conetd.kernel.filter import NFLOG_ALLOWED, NFLOG_DENIED
from conetd.kernel.iptables import entries
from conetd.kernel.iptables.entries import Extension, Line
from conetd.model import ICMP, ICMPV6, AddressRange, PortRange, Rule, Verdict, log_prefix

TOWARDS = "conetd-to"  # the chain that judges what goes to a container, where what a container may send goes on
_FAMILY_OF = {ICMP: 4, ICMPV6: 6}
_ANY_ICMP = 255  # the kernel's ipt_icmp takes this type for "any", where the rule means the reserved type 255


def lines(
    rule: Rule, family: int, accept: str, handle: str, *, log_denied: bool = False, ingress: bool = False
) -> list[Line]:
    """The lines for packets of one family, in their order; none when no packet of it can match.

    An accepted packet goes to `accept`, which is TOWARDS or "ACCEPT". `handle` precedes what is logged. With
    `log_denied` a rule that drops or rejects logs whether it says so or not. `ingress` only names the rule in the
    comment.
    """
    verdict = _verdict(rule, family, accept)
    log = rule.log or (log_denied and rule.verdict is not Verdict.ACCEPT)
    found = []
    for matching in _matching(rule, family):
        commented = dataclasses.replace(matching, comment=comment(handle, rule.origin, ingress))
        if log:
            found.append(_logging(commented, rule.verdict, handle))
        found.append(dataclasses.replace(commented, target=verdict, goto=verdict == TOWARDS))
    return found


def comment(handle: str, origin: str = "", ingress: bool = False) -> str:
    """What a line says about its owner: the handle, and where the rule stands in its document."""
    return " ".join(part for part in (handle, "ingress" if ingress else "", origin) if part)


def _verdict(rule: Rule, family: int, accept: str) -> Extension | str:
    match rule.verdict:
        case Verdict.ACCEPT:
            return accept
        case Verdict.DROP:
            return "DROP"
        case Verdict.REJECT:
            return entries.reject(family)


def _logging(line: Line, verdict: Verdict, handle: str) -> Line:
    if verdict is not Verdict.ACCEPT:
        return dataclasses.replace(line, target=entries.log_to(NFLOG_DENIED, log_prefix(handle)))
    # an unanswered connection stays new for the rules above, which let established ones pass
    once = (*line.matches, entries.first_packet())
    return dataclasses.replace(line, target=entries.log_to(NFLOG_ALLOWED, log_prefix(handle)), matches=once)


def _matching(rule: Rule, family: int) -> Iterator[Line]:
    if _FAMILY_OF.get(rule.protocol or 0, family) != family or (rule.icmp and rule.icmp.type == _ANY_ICMP):
        return
    common: tuple[Extension, ...] = ()
    if rule.icmp is not None and rule.protocol is not None:
        common += (entries.icmp_message(rule.protocol, rule.icmp),)
    for source in _ranges(rule.sources, family):
        for destination in _ranges(rule.destinations, family):
            for ports in _port_matches(rule):
                for marks in _mark_matches(rule):
                    yield _between(source, destination, rule.protocol or 0, ports + marks + common)


def _between(
    source: AddressRange | None, destination: AddressRange | None, protocol: int, matches: tuple[Extension, ...]
) -> Line:
    line = Line("DROP", protocol=protocol)
    if source and (masked := _as_network(source)):
        line, source = dataclasses.replace(line, source=masked), None
    if destination and (masked := _as_network(destination)):
        line, destination = dataclasses.replace(line, destination=masked), None
    if source or destination:
        matches = (entries.address_ranges(source, destination), *matches)
    return dataclasses.replace(line, matches=matches)


def _as_network(found: AddressRange) -> entries.Masked | None:
    low, high = int(found.first), int(found.last)
    size = high - low + 1
    if size & (size - 1) or low % size:
        return None
    return entries.Masked(low, (1 << found.first.max_prefixlen) - size)


def _ranges(wanted: tuple[AddressRange, ...], family: int) -> Sequence[AddressRange | None]:
    """What of the ranges is of this family, merged; one None for "any", nothing when none can match."""
    if not wanted:
        return (None,)
    spans = merge((int(one.first), int(one.last)) for one in wanted if one.family == family)
    width = 4 if family == 4 else 16
    return [AddressRange(*(ip_address(end.to_bytes(width, "big")) for end in span)) for span in spans]


def _port_matches(rule: Rule) -> Iterator[tuple[Extension, ...]]:
    if not rule.ports or rule.protocol is None:
        yield ()
        return
    batch: list[PortRange] = []
    used = 0
    for first, last in merge((port.first, port.last) for port in rule.ports):
        slots = 1 if first == last else 2
        if used + slots > entries.PORT_SLOTS:
            yield (entries.destination_ports(rule.protocol, batch),)
            batch, used = [], 0
        batch.append(PortRange(first, last))
        used += slots
    if batch:
        yield (entries.destination_ports(rule.protocol, batch),)


def _mark_matches(rule: Rule) -> Iterator[tuple[Extension, ...]]:
    """One match for each block of numbers that agree in their first bits: the kernel knows no ranges of marks."""
    if not rule.marks:
        yield ()
    for first, last in merge((one.first, one.last) for one in rule.marks):
        while first <= last:
            bits = min((first & -first).bit_length() - 1 if first else 16, (last - first + 1).bit_length() - 1)
            yield (entries.marked(first, 0xFFFF & -1 << bits),)
            first += 1 << bits


def merge(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in as few spans as can be, ascending. A reversed span holds none."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(span for span in spans if span[0] <= span[1]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged
