"""What the kernel's tables hold, read back in the form in which it was written."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from conetd.errors import KernelError
from conetd.kernel.netlink import NLM_F_DUMP, Netlink, attributes, text
from conetd.kernel.nft import wire
from conetd.kernel.nft.chain import PREFIXES, recognised
from conetd.kernel.nft.sets import SETS, TABLE, type_of
from conetd.kernel.nft.skeleton import FIXED, HOOKS, OPTIONAL
from conetd.kernel.nft.wire import INET

_HEADER = 4  # bytes of nfgenmsg before the attributes


@dataclass(slots=True)
class Listing:
    """Both tables. `unsound` says of each table that cannot be kept, why; nothing else is listed then."""

    present: tuple[int, ...] = ()
    unsound: dict[int, str] = field(default_factory=dict)
    chains: dict[str, str] = field(default_factory=dict)
    """Fingerprint of each chain that is not fixed, empty if its rules are not as they were written."""
    optional: set[str] = field(default_factory=set)
    """The optional chains that are there."""
    elements: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    """Of each set the data of each key."""


def generation(netlink: Netlink) -> int:
    """The number of the rule set: the kernel adds one at each transaction, whoever makes it."""
    for _, payload in netlink.dump(wire.request(wire.GETGEN, 0, 0, b"")):
        for kind, value in attributes(payload, _HEADER):
            if kind == 1:
                return int(struct.unpack(">I", value)[0])
    raise KernelError("read", "nf_tables' generation", errno.EPROTO)


def read(netlink: Netlink) -> Listing:
    """List both tables. Raises KernelError."""
    listing = Listing()
    listing.present = tuple(_tables(netlink, listing.unsound))
    for family in FIXED:
        if family not in listing.present:
            listing.unsound[family] = "does not exist"
        elif family not in listing.unsound:
            _read_table(netlink, family, listing)
    if not listing.unsound:
        for name, spec in SETS.items():
            listing.elements[name] = dict(_elements(netlink, spec.family, name))
    return listing


def _tables(netlink: Netlink, unsound: dict[int, str]) -> Iterator[int]:
    for _, payload in netlink.dump(wire.request(wire.GETTABLE, NLM_F_DUMP, 0, b"")):
        found = {kind: bytes(value) for kind, value in attributes(payload, _HEADER)}
        if _string(found[1]) == TABLE and payload[0] in FIXED:
            if _number(found.get(2, bytes(4))):
                unsound[payload[0]] = "has flags set, such as dormant"
            yield payload[0]


def _read_table(netlink: Netlink, family: int, listing: Listing) -> None:
    hooks = dict(_chains(netlink, family))
    rules: dict[str, list[str]] = {name: [] for name in hooks}
    for chain, comment in _rules(netlink, family):
        rules.setdefault(chain, []).append(comment)
    fingerprints = {chain: recognised(comments) for chain, comments in rules.items()}
    reason = _unsound(family, hooks, fingerprints, _sets(netlink, family))
    if reason:
        listing.unsound[family] = reason
        return
    if family == INET:
        listing.optional.update(OPTIONAL.keys() & hooks.keys())
    listing.chains.update(
        (name, mark)
        for name, mark in fingerprints.items()
        if name not in FIXED[family] and name not in listing.optional
    )


def _unsound(
    family: int, hooks: Mapping[str, object], fingerprints: Mapping[str, str], sets: Mapping[str, tuple[int, int, int]]
) -> str:
    optional = {name: one.chain.fingerprint for name, one in OPTIONAL.items() if family == INET and name in hooks}
    known = {**FIXED[family], **optional}
    for name, wanted in known.items():
        if name not in hooks:
            return f"lacks its chain {name}"
        if hooks[name] != HOOKS[family].get(name):
            return f"has its chain {name} at another hook or with another policy"
        if fingerprints[name] != wanted:
            return f"has other rules in its chain {name}"
    for name in hooks:
        if name not in known and (family != INET or name[:2] not in PREFIXES):
            return f"has a chain {name} that is none of ours"
    wanted_sets = {spec.name: (spec.flags, *type_of(spec.key)) for spec in SETS.values() if spec.family == family}
    if sets != wanted_sets:
        differing = sorted(name for name in {*sets, *wanted_sets} if sets.get(name) != wanted_sets.get(name))
        return f"has other sets: {', '.join(differing)}"
    return ""


def _chains(netlink: Netlink, family: int) -> Iterator[tuple[str, tuple[str, int, int, int] | None]]:
    for _, payload in netlink.dump(wire.request(wire.GETCHAIN, NLM_F_DUMP, family, text(1, TABLE))):
        found = {kind: bytes(value) for kind, value in attributes(payload, _HEADER)}
        if payload[0] != family or _string(found[1]) != TABLE:
            continue
        hook = None
        if 4 in found:
            where = {kind: bytes(value) for kind, value in attributes(found[4])}
            priority = struct.unpack(">i", where[2])[0]
            hook = (_string(found[7]), _number(where[1]), priority, _number(found[5]))
        yield _string(found[3]), hook


def _rules(netlink: Netlink, family: int) -> Iterator[tuple[str, str]]:
    for _, payload in netlink.dump(wire.request(wire.GETRULE, NLM_F_DUMP, family, text(1, TABLE))):
        chain = comment = ""
        for kind, value in attributes(payload, _HEADER):
            if kind == 2:
                chain = _string(bytes(value))
            elif kind == 7:
                comment = wire.comment_text(bytes(value))
        yield chain, comment


def _sets(netlink: Netlink, family: int) -> dict[str, tuple[int, int, int]]:
    sets = {}
    for _, payload in netlink.dump(wire.request(wire.GETSET, NLM_F_DUMP, family, text(1, TABLE))):
        found = {kind: bytes(value) for kind, value in attributes(payload, _HEADER)}
        flags = _number(found.get(3, bytes(4)))  # left out when there are none
        if not flags & wire.SET_ANONYMOUS:
            sets[_string(found[2])] = (flags, _number(found[4]), _number(found[5]))
    return sets


def _elements(netlink: Netlink, family: int, name: str) -> Iterator[tuple[bytes, bytes]]:
    request = wire.request(wire.GETSETELEM, NLM_F_DUMP, family, text(1, TABLE) + text(2, name))
    for _, payload in netlink.dump(request):
        for kind, value in attributes(payload, _HEADER):
            if kind == 3:
                for _, element in attributes(value):
                    yield _element(element)


def _element(element: memoryview) -> tuple[bytes, bytes]:
    key = end = data = b""
    for kind, value in attributes(element):
        if kind == 1:
            key = _value(value)
        elif kind == 10:
            end = _value(value)
        elif kind == 2:
            data = _data(value)
    return key + end, data


def _value(nest: memoryview) -> bytes:
    return next((bytes(value) for kind, value in attributes(nest) if kind == 1), b"")


def _data(nest: memoryview) -> bytes:
    for kind, value in attributes(nest):
        if kind == 1:
            return wire.value(bytes(value))
        found = {inner: bytes(one) for inner, one in attributes(value)}
        return wire.verdict_data(struct.unpack(">i", found[1])[0], _string(found[2]) if 2 in found else "")
    return b""


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes) -> int:
    return int(struct.unpack(">I", value)[0])
