"""Which kernel rules decide like a list of rules: one for each group the compiler makes of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache

from conetd.kernel.filter import NFLOG_ALLOWED, NFLOG_DENIED
from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import wire
from conetd.kernel.nft.chain import AnonymousSet, KernelRule
from conetd.kernel.nft.sets import ADDRESS, MARK, PORT, PROTOCOL, type_of
from conetd.model import MarkRange, Rule, Verdict
from conetd.policy.boxes import Box
from conetd.policy.compile import RuleGroup, compile_rules

_FULL = {4: (0, 2**32 - 1), 6: (0, 2**128 - 1)}
_ALL_PORTS = (0, 65535)
_ALL_PROTOCOLS = (0, 255)
# Up to so many marks each is an element of its own: what a set of intervals costs the kernel grows with the square of
# their number.
_SINGLE_MARKS_MAX = 8192

# An element of an interval: its nest, the nest and value header of the first key, the key, the same for the last.
_NEST = 0x8000


def _element_frame(key_length: int) -> tuple[bytes, bytes]:
    header = struct.Struct("=HH").pack
    value = header(4 + key_length, 1)
    first = header(4 * 5 + 2 * key_length, wire.LIST_ELEM | _NEST) + header(8 + key_length, 1 | _NEST) + value
    return first, header(8 + key_length, 10 | _NEST) + value


_KEYS_V4 = {True: struct.Struct(">B3xIH2x"), False: struct.Struct(">B3xI")}
_KEYS_V6 = {True: struct.Struct(">B3x16sH2x"), False: struct.Struct(">B3x16s")}
_FRAMES = {length: _element_frame(length) for length in (8, 12, 20, 24)}


def elements(boxes: Sequence[Box], family: int, *, ports: bool) -> tuple[bytes, ...]:
    """The boxes as elements of a set of protocol . address, with `ports` . port, as the wire has them."""
    if family == 4:
        key = _KEYS_V4[ports]
        first, last = _FRAMES[key.size]
        if ports:
            return tuple(first + key.pack(p, a, low) + last + key.pack(q, b, high) for p, q, a, b, low, high in boxes)
        return tuple(first + key.pack(p, a) + last + key.pack(q, b) for p, q, a, b, _, _ in boxes)
    key = _KEYS_V6[ports]
    first, last = _FRAMES[key.size]
    written = ((box, box.address_first.to_bytes(16), box.address_last.to_bytes(16)) for box in boxes)
    if ports:
        return tuple(
            first
            + key.pack(box.protocol_first, a, box.port_first)
            + last
            + key.pack(box.protocol_last, b, box.port_last)
            for box, a, b in written
        )
    return tuple(
        first + key.pack(box.protocol_first, a) + last + key.pack(box.protocol_last, b) for box, a, b in written
    )


def verdict_rules(
    rules: Sequence[Rule], family: int, *, prefix: str, log_denied: bool, log_chain: str, subject: str
) -> Iterator[KernelRule]:
    """The kernel rules for packets of one IP version.

    Logged are what rules with `log` decide and, with `log_denied`, all that is not accepted. An accepted packet that
    is to be logged goes to the chain `log_chain`. `subject` names whose rules they are in the comments.
    """
    for group in compile_rules(rules, family):
        match = _rule_match(group.rule, family) if group.rule is not None else _boxes_match(group, family)
        end = _end(group, prefix, log_denied=log_denied, log_chain=log_chain)
        yield KernelRule(f"{subject} {group.origin}".strip(), (e.family_is(family), *match, end))


def logs_accepted(rules: Sequence[Rule]) -> bool:
    """Whether some of the rules log what they accept, and so need a log chain."""
    return any(rule.log and rule.verdict is Verdict.ACCEPT for rule in rules)


def _end(group: RuleGroup, prefix: str, *, log_denied: bool, log_chain: str) -> bytes:
    if group.verdict is Verdict.ACCEPT:
        return e.goto(log_chain) if group.log else e.verdict(wire.ACCEPT)
    log = group.log or log_denied
    if group.verdict is Verdict.DROP:
        return deny(prefix, log=log)
    return (e.log(NFLOG_DENIED, prefix) if log else b"") + e.reject_unreachable_port()


def deny(prefix: str, *, log: bool) -> bytes:
    """Drop the packet, and log it if so wanted."""
    return (e.log(NFLOG_DENIED, prefix) if log else b"") + e.verdict(wire.DROP)


def announce(prefix: str) -> bytes:
    """Log a connection that is accepted."""
    return e.log(NFLOG_ALLOWED, prefix)


def _boxes_match(group: RuleGroup, family: int) -> tuple[bytes | AnonymousSet, ...]:
    return _match(group.boxes, family, ports=group.kind == "ports")


def _match(boxes: Sequence[Box], family: int, *, ports: bool) -> tuple[bytes | AnonymousSet, ...]:
    if len(boxes) == 1:
        return (_one_box(boxes[0], family, ports=ports),)
    width = ADDRESS[family].length // 4
    loads = e.meta(e.L4PROTO) + e.destination(family, 1) + (e.destination_port(1 + width) if ports else b"")
    return loads, _set(elements(boxes, family, ports=ports), family, ports=ports)


def _set(written: tuple[bytes, ...], family: int, *, ports: bool) -> AnonymousSet:
    fields = (PROTOCOL, ADDRESS[family], PORT) if ports else (PROTOCOL, ADDRESS[family])
    return AnonymousSet(type_of(fields), tuple(field.length for field in fields), written)


def _one_box(box: Box, family: int, *, ports: bool) -> bytes:
    # comparisons cost the kernel less than a set for one element
    found = b""
    if box[:2] != _ALL_PROTOCOLS:
        found += e.meta(e.L4PROTO) + e.between(bytes((box.protocol_first,)), bytes((box.protocol_last,)))
    if box[2:4] != _FULL[family]:
        length = ADDRESS[family].length
        ends = box.address_first.to_bytes(length), box.address_last.to_bytes(length)
        found += e.destination(family) + e.between(*ends)
    if ports and box[4:] != _ALL_PORTS:
        found += e.destination_port() + e.between(box.port_first.to_bytes(2), box.port_last.to_bytes(2))
    return found


def _rule_match(rule: Rule, family: int) -> tuple[bytes | AnonymousSet, ...]:
    found: list[bytes | AnonymousSet] = []
    protocol = _ALL_PROTOCOLS if rule.protocol is None else (rule.protocol, rule.protocol)
    if rule.marks:
        found += _marks_match(rule.marks)
    addresses = [(int(one.first), int(one.last)) for one in rule.destinations] or [_FULL[family]]
    ports = [(one.first, one.last) for one in rule.ports] or [_ALL_PORTS]
    boxes = [Box(*protocol, *address, *port) for address in addresses for port in ports]
    found += _match(boxes, family, ports=bool(rule.ports))
    if rule.icmp is not None:
        wanted = bytes((rule.icmp.type,)) if rule.icmp.code is None else bytes((rule.icmp.type, rule.icmp.code))
        found.append(e.payload(e.TRANSPORT, 0, len(wanted)) + e.equal(wanted))
    if rule.sources:
        found += _sources_match(rule, family)
    return tuple(found)


def _marks_match(marks: Sequence[MarkRange]) -> tuple[bytes | AnonymousSet, ...]:
    bits = e.masked(struct.pack("=I", 0xFFFF))
    if len(marks) == 1:
        first, last = marks[0].first, marks[0].last
        if first == last:
            return (e.meta(e.MARK) + bits + e.equal(struct.pack("=I", first)),)
        ends = first.to_bytes(4), last.to_bytes(4)
        return (e.meta(e.MARK) + bits + e.turned_round() + e.between(*ends),)
    if sum(one.last - one.first + 1 for one in marks) <= _SINGLE_MARKS_MAX:
        singles = dict.fromkeys(mark for one in marks for mark in range(one.first, one.last + 1))
        return e.meta(e.MARK) + bits, AnonymousSet(type_of((MARK,)), (), tuple(map(_mark_element, singles)))
    # the protocol only because a set of intervals needs two fields; a mark is as long as an IPv4 address
    loads = e.meta(e.MARK, 1) + e.masked(struct.pack("=I", 0xFFFF), 1) + e.turned_round(1) + e.meta(e.L4PROTO)
    boxes = [Box(*_ALL_PROTOCOLS, one.first, one.last) for one in marks]
    written = elements(boxes, 4, ports=False)
    return loads, AnonymousSet(type_of((PROTOCOL, MARK)), (PROTOCOL.length, MARK.length), written)


@lru_cache(maxsize=1 << 16)
def _mark_element(mark: int) -> bytes:
    return wire.element(struct.pack("=I", mark))


def _sources_match(rule: Rule, family: int) -> tuple[bytes | AnonymousSet, ...]:
    boxes = [Box(*_ALL_PROTOCOLS, int(one.first), int(one.last)) for one in rule.sources]
    if len(boxes) == 1:
        length = ADDRESS[family].length
        ends = boxes[0].address_first.to_bytes(length), boxes[0].address_last.to_bytes(length)
        return (e.source(family) + e.between(*ends),)
    # the protocol only because a set of intervals needs two fields
    loads = e.meta(e.L4PROTO) + e.source(family, 1)
    return loads, _set(elements(boxes, family, ports=False), family, ports=False)
