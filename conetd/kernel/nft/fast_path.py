"""The fast path: busy TCP connections through tunnels that pass this host beside the packet filter.

Each packet through the filter costs about as much again as carrying it does. So of connections that have been accepted
and carry much, the segments are sent on at the ingress hook of the link they come in by, by an element for exactly
that link, MAC, pair of addresses and pair of ports. A table of its own holds these elements (family netdev, where
nothing else can see the packet); each lapses by itself after `LASTS_S`, and the next segment is judged again. Segments
that begin or end a connection always go the long way, where connection tracking sees them.

Which connections are busy is found out by looking at all for a moment: another table, there for that long, counts the
segments of each after everybody else's rules have let them through.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from conetd.errors import KernelError
from conetd.kernel.netlink import NLM_F_CREATE, NLM_F_DUMP, Netlink, attributes, text
from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import wire
from conetd.kernel.nft.hooks import POSTROUTING
from conetd.kernel.nft.matches import state, status, words
from conetd.kernel.nft.sets import ADDRESS, IFINDEX, MAC, PORTS, TABLE, type_of
from conetd.model import IPAddress

LASTS_S = 60
"""After so long each connection is judged again: then also rules hold for it that others have made meanwhile."""
MOST = 4096
"""Connections and directions that may be on the fast path at a time, of either IP version."""

SAMPLE = "conetd_sample"
_SAMPLED_MOST = 512  # more are not counted: whoever is busy comes early, and reading each takes 15 µs
_HEADER = 4  # bytes of nfgenmsg before the attributes
_BOTH = (4, 6)
_INGRESS, _FIRST, _LAST = 0, -(2**31), 2**31 - 1  # NF_NETDEV_INGRESS; priorities
_ETHERTYPE = {4: b"\x08\0", 6: b"\x86\xdd"}
_TCP = b"\x06"
_FLAGS, _FIN_SYN_RST = 13, b"\x07"
_NEXT_HEADER, _FRAGMENT, _MORE_AND_OFFSET = 6, 6, b"\x3f\xff"  # in headers of IPv6, and of IPv4
_LINK_SOURCE = 6  # where the sender's MAC is in a frame
_NAT = e.IPS_SRC_NAT | e.IPS_DST_NAT
_SET_KEY, _SET_EXPRESSION, _SET_EXPRESSIONS = 1, 7, 11
_COUNTED_PACKETS = 2

Send = Callable[[Sequence[tuple[bytes, str]]], KernelError | None]
"""Sends messages as one batch, each with what it is for; returns why the kernel did not take it."""


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction of a TCP connection, as its segments come in: link (by index), MAC of the sender, and both ends."""

    inward: int
    mac: bytes
    source: IPAddress
    source_port: int
    destination: IPAddress
    destination_port: int

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.source.version

    @property
    def ends(self) -> tuple[IPAddress, int, IPAddress, int]:
        """Source and destination, each address and port."""
        return self.source, self.source_port, self.destination, self.destination_port

    @property
    def key(self) -> bytes:
        """As a key of both kinds of sets."""
        ends = self.source.packed + self.destination.packed
        ports = struct.pack(">HH", self.source_port, self.destination_port)
        return struct.pack("=I", self.inward) + self.mac + b"\0\0" + ends + ports


@dataclass(frozen=True, slots=True)
class Way:
    """Where packets go on to: a link, by index, and the next hop there."""

    link: int
    next_hop: IPAddress


class FastPath:
    """What is on the fast path in the opening thread's namespace. For one thread."""

    def __init__(self, netlink: Netlink, send: Send) -> None:
        self._netlink = netlink
        self._send = send
        self._sampling = self._standing = False
        self._links: set[str] = set()
        self.cleared = 0
        """How often it has been cleared: who decides on what was seen before that decides on old news."""
        self.look()

    def look(self) -> None:
        """Find out what an earlier run has left."""
        found: set[tuple[int, str]] = set()
        for _, payload in self._netlink.dump(wire.request(wire.GETTABLE, NLM_F_DUMP, 0, b"")):
            names = [bytes(value).rstrip(b"\0") for kind, value in attributes(payload, _HEADER) if kind == 1]
            found.update((payload[0], name.decode(errors="replace")) for name in names)
        self._standing = (wire.NETDEV, TABLE) in found
        self._sampling = (wire.INET, SAMPLE) in found

    def removal(self) -> list[bytes]:
        """The requests that clear it, for the batch of a change that may forbid what is on it."""
        found = [wire.delete_table(wire.NETDEV, TABLE)] if self._standing else []
        return found + ([wire.delete_table(wire.INET, SAMPLE)] if self._sampling else [])

    def removed(self) -> None:
        """Note that the batch with the removal is done."""
        self._standing = self._sampling = False
        self._links.clear()
        self.cleared += 1

    def clear(self) -> None:
        """Have everything judged again from the next packet on. Raises KernelError."""
        self.cleared += 1
        removal = self.removal()
        if removal:
            self._exchange(removal)
            self.removed()

    def sample(self, vteps: Iterable[int]) -> None:
        """Begin to count the segments of each connection through these links, by index. Raises KernelError."""
        found = [wire.delete_table(wire.INET, SAMPLE)] if self._sampling else []
        self._exchange([*found, *_sampler(vteps)])
        self._sampling = True

    def sampled(self, at_least: int) -> list[Direction]:
        """End counting; what had `at_least` so many segments, the busiest first, each with what answers it.

        Both directions or none: connection tracking that sees one alone takes it for unanswered. Raises KernelError.
        """
        if not self._sampling:
            return []
        counted = [one for family in _BOTH for one in _counted(self._netlink, family)]
        self._exchange([wire.delete_table(wire.INET, SAMPLE)])
        self._sampling = False
        by_ends = {one.ends: one for one, _ in counted}
        found: dict[Direction, None] = {}
        for one, packets in sorted(counted, key=lambda one: one[1], reverse=True):
            back = by_ends.get(one.ends[2:] + one.ends[:2])
            if packets >= at_least and back is not None:
                found.update({one: None, back: None})
        return list(found)

    def add(self, wanted: Sequence[tuple[Direction, str, Way]]) -> None:
        """Send the segments of these directions, which come in by the link of that name, on their way at once.

        One that is there already stays as it is. Raises KernelError, and then nothing has changed: ENOENT where a link
        is gone, or where the kernel cannot do it.
        """
        messages = [] if self._standing else [wire.new_table(wire.NETDEV, TABLE), *map(_map, _BOTH)]
        links = {name for _, name, _ in wanted} - self._links
        for name in sorted(links):
            messages += _chain(name)
        for family in _BOTH:
            elements = [
                wire.element(one.key, wire.value(struct.pack("=I", way.link) + way.next_hop.packed))
                for one, _, way in wanted
                if one.version == family
            ]
            where = wire.place(TABLE, f"fast{family}")
            messages += wire.set_elements(wire.NEWSETELEM, NLM_F_CREATE, wire.NETDEV, where, elements)
        self._exchange(messages)
        self._standing = True
        self._links |= links

    def _exchange(self, messages: Iterable[bytes]) -> None:
        refused = self._send([(one, "fast path") for one in messages])
        if refused is not None:
            raise refused


def _key(family: int) -> bytes:
    """Load the key of a packet's direction, from register 0 on."""
    width = words(family)
    offset, length = (12, 8) if family == 4 else (8, 32)
    ends = e.payload(e.NETWORK, offset, length, 3)  # both addresses
    ports = e.payload(e.TRANSPORT, 0, 4, 3 + 2 * width)
    return e.meta(e.IIF) + e.payload(e.LINK, _LINK_SOURCE, 6, 1) + ends + ports


def _set_key(family: int) -> tuple[int, int]:
    address = ADDRESS[family]
    return type_of((IFINDEX, MAC, address, address, PORTS))


def _segments(family: int) -> bytes:
    """Go on only with whole TCP segments that neither begin nor end a connection."""
    flags = e.payload(e.TRANSPORT, _FLAGS, 1) + e.masked(_FIN_SYN_RST) + e.equal(b"\0")
    if family == 6:  # no header between, of fragments neither
        return e.payload(e.NETWORK, _NEXT_HEADER, 1) + e.equal(_TCP) + flags
    whole = e.payload(e.NETWORK, _FRAGMENT, 2) + e.masked(_MORE_AND_OFFSET) + e.equal(bytes(2))
    return e.meta(e.L4PROTO) + e.equal(_TCP) + whole + flags


def _map(family: int) -> bytes:
    flags = wire.SET_MAP | wire.SET_TIMEOUT
    data = type_of((IFINDEX, ADDRESS[family]))
    name, key = f"fast{family}", _set_key(family)
    lasting = LASTS_S * 1000
    return wire.new_set(wire.NETDEV, TABLE, name, flags, key, family, data=data, size=MOST, timeout_ms=lasting)


def _chain(link: str) -> Iterator[bytes]:
    name = f"in-{link}"
    yield wire.new_base_chain(wire.NETDEV, TABLE, name, "filter", _INGRESS, _FIRST, device=link)
    for family in _BOTH:
        of_family = e.meta(e.PROTOCOL) + e.equal(_ETHERTYPE[family])
        way = e.lookup(f"fast{family}", into=0) + e.sent_by(family, 0, 1)
        comment = wire.comment(f"busy connections, IPv{family}")
        yield wire.new_rule(wire.NETDEV, TABLE, name, of_family + _segments(family) + _key(family) + way, comment)


def _sampler(vteps: Iterable[int]) -> Iterator[bytes]:
    """The table that counts: last of all at its hook, so that it sees only what nobody has dropped."""
    yield wire.new_table(wire.INET, SAMPLE)
    for family in _BOTH:
        name = f"busy{family}"
        yield wire.new_set(wire.INET, SAMPLE, name, wire.SET_EVAL, _set_key(family), family, size=_SAMPLED_MOST)
    yield wire.new_base_chain(wire.INET, SAMPLE, "count", "filter", POSTROUTING, _LAST)
    # one that is half closed is forgotten within a minute or two, and would be while nobody sees its segments
    remembered = (
        e.ct(e.CT_EXPIRATION) + e.turned_round() + e.between(struct.pack(">I", 2 * LASTS_S * 1000 + 1), b"\xff" * 4)
    )
    lasting = state(e.CT_ESTABLISHED) + status(e.IPS_ASSURED, on=True) + status(_NAT, on=False) + remembered
    for index in vteps:
        for way in (e.IIF, e.OIF):
            through = e.meta(way) + e.equal(struct.pack("=I", index))
            for family in _BOTH:
                what = through + e.family_is(family) + _segments(family) + lasting + _key(family)
                yield wire.new_rule(wire.INET, SAMPLE, "count", what + e.counted(f"busy{family}"), wire.comment("busy"))


def _counted(netlink: Netlink, family: int) -> Iterator[tuple[Direction, int]]:
    request = wire.request(wire.GETSETELEM, NLM_F_DUMP, wire.INET, text(1, SAMPLE) + text(2, f"busy{family}"))
    for _, payload in netlink.dump(request):
        for kind, value in attributes(payload, _HEADER):
            if kind == 3:
                for _, element in attributes(value):
                    key, packets = _key_and_packets(element)
                    yield _direction(key, family), packets


def _key_and_packets(element: memoryview) -> tuple[bytes, int]:
    key, packets = b"", 0
    for kind, value in attributes(element):
        if kind == _SET_KEY:
            key = next(bytes(part) for _, part in attributes(value))
        elif kind == _SET_EXPRESSION:
            packets = _packets(value)
        elif kind == _SET_EXPRESSIONS:
            packets = max(_packets(one) for _, one in attributes(value))
    return key, packets


def _direction(key: bytes, family: int) -> Direction:
    length = ADDRESS[family].length
    source, destination = key[12 : 12 + length], key[12 + length : 12 + 2 * length]
    source_port, destination_port = struct.unpack_from(">HH", key, 12 + 2 * length)
    (inward,) = struct.unpack_from("=I", key)
    ends = ip_address(source), source_port, ip_address(destination), destination_port
    return Direction(inward, key[4:10], *ends)


def _packets(expression: memoryview) -> int:
    told = dict(attributes(expression))
    counts = {kind: int.from_bytes(value, "big") for kind, value in attributes(told[2])}
    return counts.get(_COUNTED_PACKETS, 0)
