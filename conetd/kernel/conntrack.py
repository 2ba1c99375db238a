"""Which tracked connections concern an address or a port, and how to end them.

The kernel keeps one table for all namespaces and walks the whole of it for each dump, so what is wanted is said in
the request (CTA_FILTER, Linux 5.8). Reading is by hand, and only of what is needed: pyroute2 takes seconds for a table
of 60 000. Constants: linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_internals.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from conetd.errors import KernelError
from conetd.kernel.flows import Flow
from conetd.kernel.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_DUMP,
    Netlink,
    attribute,
    attributes,
    message,
    nested,
)
from conetd.model import IPAddress

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE, _GET_STATS = (_SUBSYSTEM | kind for kind in (0, 1, 2, 5))
_ORIG, _REPLY, _STATUS, _PROTOINFO, _TIMEOUT, _MARK, _ID, _ZONE, _FILTER = 1, 2, 3, 4, 7, 8, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCES, _IP_DESTINATIONS = (1, 3), (2, 4)  # IPv4, IPv6
_PROTO_NUM, _PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT = 1, 2, 3
_PROTO_ICMP_TYPES, _PROTO_ICMP_CODES = (5, 8), (6, 9)  # ICMP, ICMPv6
_FILTER_ORIG, _FILTER_REPLY = 1, 2
_MATCH_SOURCE, _MATCH_PROTOCOL, _MATCH_DESTINATION_PORT = 1 << 0, 1 << 3, 1 << 5
_PROTOINFO_TCP, _TCP_STATE, _TCP_FLAGS_ORIGINAL, _TCP_FLAGS_REPLY = 1, 1, 4, 5
_ESTABLISHED, _ENDING_S = 3, 120  # TCP_CONNTRACK_ESTABLISHED; as long as the kernel keeps TIME_WAIT
# struct nf_ct_tcp_flags: IP_CT_TCP_FLAG_BE_LIBERAL, and which flags are meant: IP_CT_TCP_FLAG_MAXACK_SET and
# _DATA_UNACKNOWLEDGED are taken away, else a reset would be judged by what had been acknowledged before
_BE_LIBERAL = bytes((0x08, 0x08 | 0x10 | 0x20))
_LASTING = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
_STATS_ENTRIES = 1
_AT_ONCE = 1000  # deletions in one buffer
# Up to so many entries one walk that reads all of them is quicker than three walks that read few: a walk takes
# 10 ms (262 144 buckets), an entry 3 µs.
_FEW = 5000
_FEW_QUESTIONS = 10  # a filtered walk costs a tenth of reading a table of 60 000 whole

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
TcpEnds = tuple[IPAddress, int, IPAddress, int]
"""Source and destination of a segment, each address and port."""


class Conntrack:
    """The connection table of the namespace of the thread that opens this. Not for two threads at a time."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)

    def __enter__(self) -> Conntrack:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. Closing twice is fine."""
        self._netlink.close()

    def count(self) -> int:
        """How many connections this namespace has. Costs no walk through the table."""
        # Its one answer says "more follow" and none does: the acknowledgement is what ends it.
        for _kind, payload in self._netlink.dump(message(_GET_STATS, NLM_F_ACK, _header(socket.AF_UNSPEC))):
            for kind, value in attributes(payload, 4):
                if kind == _STATS_ENTRIES:
                    return int.from_bytes(value, "big")
        raise KernelError("count", "tracked connections", errno.ENODATA)

    def flows_from(self, address: IPAddress) -> list[Flow]:
        """The connections that `address` opened: its packets carry it as their source, before source NAT."""
        wanted = nested(_ORIG, _source(address)) + _matches(_FILTER_ORIG, _MATCH_SOURCE)
        return self._flows_with(wanted, address, lambda flow: flow.source == address)

    def flows_reply_from(self, address: IPAddress) -> list[Flow]:
        """The connections opened towards `address`: by its own name, or sent there by destination NAT."""
        wanted = nested(_REPLY, _source(address)) + _matches(_FILTER_REPLY, _MATCH_SOURCE)
        return self._flows_with(wanted, address, lambda flow: flow.reply_source == address)

    def flows_to_port(self, protocol: int, host_port: int, family: int) -> list[Flow]:
        """The connections of IP version `family` (4 or 6) opened towards any address and that port, before NAT."""
        wanted = nested(_ORIG, nested(_TUPLE_PROTO, attribute(_PROTO_NUM, bytes([protocol])), _port(host_port)))
        wanted += _matches(_FILTER_ORIG, _MATCH_PROTOCOL | _MATCH_DESTINATION_PORT)
        return self._flows(
            wanted,
            _FAMILIES[family],
            [_port(host_port)[:6]],
            lambda flow: (flow.protocol, flow.destination_port) == (protocol, host_port),
        )

    def flows_of(self, addresses: Collection[IPAddress], ports: Collection[tuple[int, int, int]] = ()) -> list[Flow]:
        """What the three methods above find for any of these addresses and (protocol, host port, family), each once.

        One walk through the table instead of one for each, where few connections are tracked or much is asked.
        """
        questions = 2 * len(addresses) + len(ports)
        if questions <= _FEW_QUESTIONS and self.count() > _FEW:
            parts = [find(address) for address in addresses for find in (self.flows_from, self.flows_reply_from)]
            parts += [self.flows_to_port(*port) for port in ports]
            return list(dict.fromkeys(flow for part in parts for flow in part))
        needles = [address.packed for address in addresses] + [_port(port)[:6] for _protocol, port, _family in ports]
        wanted_addresses, wanted_ports = frozenset(addresses), frozenset(ports)
        return self._flows(
            b"",
            socket.AF_UNSPEC,
            needles,
            lambda flow: (
                flow.source in wanted_addresses
                or flow.reply_source in wanted_addresses
                or (flow.protocol, flow.destination_port, flow.destination.version) in wanted_ports
            ),
        )

    def delete(self, flows: Iterable[Flow]) -> int:
        """End these connections and no others; return how many there still were.

        What is gone already is success. A new connection between the same ends, made since the flow was read, stays
        unless the kernel put it into the same place in memory: their ids are equal then. What the kernel refuses does
        not keep the rest from being deleted; raises KernelError for the first of it at the end.
        """
        requests = [_deletion(flow) for flow in flows]
        deleted = 0
        refused: KernelError | None = None
        for start in range(0, len(requests), _AT_ONCE):
            for answer in self._netlink.exchange(requests[start : start + _AT_ONCE]):
                if not answer.errno:
                    deleted += 1
                elif answer.errno != errno.ENOENT and refused is None:
                    refused = KernelError("delete", "a tracked connection", answer.errno, answer.detail)
        if refused is not None:
            raise refused
        return deleted

    def follow_loosely(self, ends: Sequence[TcpEnds]) -> list[bool]:
        """Have segments of these TCP connections, seen from either side, taken for theirs whatever their numbers.

        The kernel does the same for a connection whose segments go beside it for a while. And none is forgotten sooner
        than an idle one. Returns of each whether it is tracked, in zone 0, with a timeout that can be set, and not
        ended by either side. Raises KernelError for anything else that keeps it from that.
        """
        loosely = [attribute(kind, _BE_LIBERAL) for kind in (_TCP_FLAGS_ORIGINAL, _TCP_FLAGS_REPLY)]
        # the last segment seen may have left it five minutes, if nobody had acknowledged it yet
        lasting = attribute(_TIMEOUT, struct.pack(">I", int(_LASTING.read_text())))
        tracked = self._change(ends, nested(_PROTOINFO, nested(_PROTOINFO_TCP, *loosely)) + lasting)
        # What ended meanwhile would last as long; what ends from now on is given its time by its own last segments.
        states = [self._tcp_state(one) if there else 0 for one, there in zip(ends, tracked, strict=True)]
        ended = [one for one, state in zip(ends, states, strict=True) if state not in (0, _ESTABLISHED)]
        self._change(ended, attribute(_TIMEOUT, struct.pack(">I", _ENDING_S)))
        return [state == _ESTABLISHED for state in states]

    def _change(self, ends: Sequence[TcpEnds], said: bytes) -> list[bool]:
        requests = [message(_NEW, NLM_F_ACK, _tcp(one) + said) for one in ends]
        answers = self._netlink.exchange(requests) if requests else []
        for answer in answers:
            # gone, about to go, or given a timeout for good
            if answer.errno not in (0, errno.ENOENT, errno.ETIME, errno.EPERM):
                raise KernelError("change", "a tracked connection", answer.errno, answer.detail)
        return [not answer.errno for answer in answers]

    def _tcp_state(self, ends: TcpEnds) -> int:
        """TCP_CONNTRACK_…, 0 for what is not tracked."""
        try:
            # its one answer says "more follow", as above
            found = self._netlink.dump(message(_GET, NLM_F_ACK, _tcp(ends)))
        except KernelError as err:
            if err.errno != errno.ENOENT:
                raise
            return 0
        for _, payload in found:
            for kind, info in attributes(payload, 4):
                if kind == _PROTOINFO:
                    for _, tcp in attributes(info):
                        return next((value[0] for part, value in attributes(tcp) if part == _TCP_STATE), 0)
        return 0

    def _flows_with(self, wanted: bytes, address: IPAddress, matches: Callable[[Flow], bool]) -> list[Flow]:
        if address.version == 6:
            # Linux (seen with 6.18) has this comparison the wrong way round: it answers with every flow but those of
            # the address. Ports are compared rightly, and IPv4 addresses.
            wanted = b""
        return self._flows(wanted, _FAMILIES[address.version], [address.packed], matches)

    def _flows(
        self, wanted: bytes, family: int, needles: Collection[bytes], matches: Callable[[Flow], bool]
    ) -> list[Flow]:
        if not needles or not self.count():
            return []
        try:
            found = self._netlink.dump(message(_GET, NLM_F_DUMP, _header(family) + wanted))
        except KernelError as err:
            if not wanted or err.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            found = self._netlink.dump(message(_GET, NLM_F_DUMP, _header(family)))
        return [flow for flow in _parsed(found, needles) if matches(flow)]


def _parsed(found: Iterable[tuple[int, bytes]], needles: Collection[bytes]) -> Iterator[Flow]:
    # A kernel that does not know CTA_FILTER answers with everything: the needles keep that from being slow.
    for _kind, payload in found:
        if any(needle in payload for needle in needles):
            flow = parse(payload)
            if flow is not None:
                yield flow


def _deletion(flow: Flow) -> bytes:
    # Without a tuple the kernel would understand "flush everything".
    if not flow.original:
        raise ValueError(f"a flow that was not read from the kernel cannot be deleted: {flow}")
    payload = _header(_FAMILIES[flow.source.version]) + nested(_ORIG, flow.original)
    if flow.zone:
        payload += attribute(_ZONE, struct.pack(">H", flow.zone))
    payload += attribute(_ID, struct.pack(">I", flow.id))
    return message(_DELETE, NLM_F_ACK, payload)


def _header(family: int) -> bytes:
    return bytes([family, 0, 0, 0])  # struct nfgenmsg


def _tcp(ends: TcpEnds) -> bytes:
    source, source_port, destination, destination_port = ends
    header = _header(_FAMILIES[source.version])
    which = source.version == 6
    addresses = attribute(_IP_SOURCES[which], source.packed) + attribute(_IP_DESTINATIONS[which], destination.packed)
    protocol = attribute(_PROTO_NUM, bytes((socket.IPPROTO_TCP,)))
    protocol += attribute(_PROTO_SOURCE_PORT, struct.pack(">H", source_port)) + _port(destination_port)
    return header + nested(_ORIG, nested(_TUPLE_IP, addresses), nested(_TUPLE_PROTO, protocol))


def _source(address: IPAddress) -> bytes:
    return nested(_TUPLE_IP, attribute(_IP_SOURCES[address.version == 6], address.packed))


def _port(host_port: int) -> bytes:
    return attribute(_PROTO_DESTINATION_PORT, struct.pack(">H", host_port))


def _matches(side: int, flags: int) -> bytes:
    return nested(_FILTER, attribute(side, struct.pack("=I", flags)))


@dataclass(slots=True)
class _Ends:
    source: bytes = b""
    destination: bytes = b""
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None


def _ends(payload: memoryview) -> _Ends:
    ends = _Ends()
    for part, value in attributes(payload):
        if part == _TUPLE_IP:
            for kind, address in attributes(value):
                if kind in _IP_SOURCES:
                    ends.source = bytes(address)
                elif kind in _IP_DESTINATIONS:
                    ends.destination = bytes(address)
        elif part == _TUPLE_PROTO:
            for kind, number in attributes(value):
                if kind == _PROTO_NUM:
                    ends.protocol = number[0]
                elif kind == _PROTO_SOURCE_PORT:
                    ends.source_port = int.from_bytes(number, "big")
                elif kind == _PROTO_DESTINATION_PORT:
                    ends.destination_port = int.from_bytes(number, "big")
                elif kind in _PROTO_ICMP_TYPES:
                    ends.icmp_type = number[0]
                elif kind in _PROTO_ICMP_CODES:
                    ends.icmp_code = number[0]
    return ends


def parse(payload: bytes) -> Flow | None:
    """The flow in one answer of the kernel (nfgenmsg and attributes); None if it lacks an end."""
    original = b""
    there, back = _Ends(), _Ends()
    status = zone = mark = identity = 0
    for kind, value in attributes(payload, 4):
        if kind == _ORIG:
            original = bytes(value)
            there = _ends(value)
        elif kind == _REPLY:
            back = _ends(value)
        elif kind == _STATUS:
            status = int.from_bytes(value, "big")
        elif kind == _MARK:
            mark = int.from_bytes(value, "big")
        elif kind == _ID:
            identity = int.from_bytes(value, "big")
        elif kind == _ZONE:
            zone = int.from_bytes(value, "big")
    if not (there.source and there.destination and back.source and back.destination):
        return None
    address: type[IPv4Address] | type[IPv6Address] = IPv4Address if len(there.source) == 4 else IPv6Address
    return Flow(
        protocol=there.protocol,
        source=address(there.source),
        source_port=there.source_port,
        destination=address(there.destination),
        destination_port=there.destination_port,
        reply_source=address(back.source),
        reply_source_port=back.source_port,
        reply_destination=address(back.destination),
        reply_destination_port=back.destination_port,
        status=status,
        icmp_type=there.icmp_type,
        icmp_code=there.icmp_code,
        zone=zone,
        mark=mark,
        id=identity,
        original=original,
    )
