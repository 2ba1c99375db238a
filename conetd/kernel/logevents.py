"""What a packet that a rule logged says of itself. Pure, but for the logger."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from conetd.kernel.netlink import attributes
from conetd.model import ICMP, ICMPV6, PROTOCOL_NAMES, TCP, UDP, IPAddress

log = logging.getLogger("conetd.packets")

# linux/netfilter/nfnetlink_log.h
_IN, _OUT, _PAYLOAD, _PREFIX, _SEQUENCE = 4, 5, 9, 10, 12
_PORTS = frozenset({TCP, UDP, 132, 136, 33})  # SCTP, UDP-Lite and DCCP begin with two ports as well
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS = 0, 43, 44, 51, 60


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A packet that a rule logged. `prefix` begins with the container's handle, cut to 28 bytes.

    Ports are 0 where the protocol, or a later fragment, has none. `icmp_type` and `icmp_code` are set for ICMP and
    ICMPv6 alone. `in_index` and `out_index` are interface indexes, 0 for none.
    """

    verdict: str
    prefix: str
    protocol: int
    source: IPAddress
    source_port: int
    destination: IPAddress
    destination_port: int
    icmp_type: int | None = None
    icmp_code: int | None = None
    in_index: int = 0
    out_index: int = 0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many packets went unreported: of one prefix because they were too many, or (prefix None) lost on the way."""

    prefix: str | None
    count: int


def parse(payload: memoryview, verdict: str) -> tuple[LogEvent | None, int | None]:
    """The event in one message of the kernel (nfgenmsg and attributes), and the message's number in its group.

    No event where the packet is not IP, or is cut off before its addresses end.
    """
    found = dict(attributes(payload, 4))
    sequence = found.get(_SEQUENCE)
    number = None if sequence is None else int.from_bytes(sequence, "big")
    packet = bytes(found.get(_PAYLOAD, b""))
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        return _ipv4(packet, verdict, found), number
    if version == 6 and len(packet) >= 40:
        return _ipv6(packet, verdict, found), number
    return None, number


def _ipv4(packet: bytes, verdict: str, found: Mapping[int, memoryview]) -> LogEvent:
    later_fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    transport = b"" if later_fragment else packet[(packet[0] & 0xF) * 4 :]
    return _event(verdict, found, packet[9], IPv4Address(packet[12:16]), IPv4Address(packet[16:20]), transport)


def _ipv6(packet: bytes, verdict: str, found: Mapping[int, memoryview]) -> LogEvent:
    kind, transport = packet[6], packet[40:]
    while kind in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _OPTIONS) and len(transport) >= 8:
        if kind == _FRAGMENT:
            size = 8
            if int.from_bytes(transport[2:4], "big") & 0xFFF8:  # a later one: what follows is no header
                kind, transport = transport[0], b""
                break
        elif kind == _AUTHENTICATION:
            size = (transport[1] + 2) * 4
        else:
            size = (transport[1] + 1) * 8
        kind, transport = transport[0], transport[size:]
    return _event(verdict, found, kind, IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), transport)


def _event(
    verdict: str,
    found: Mapping[int, memoryview],
    protocol: int,
    source: IPAddress,
    destination: IPAddress,
    transport: bytes,
) -> LogEvent:
    with_ports = protocol in _PORTS and len(transport) >= 4
    with_type = protocol in (ICMP, ICMPV6) and len(transport) >= 2
    return LogEvent(
        verdict=verdict,
        prefix=bytes(found.get(_PREFIX, b"")).rstrip(b"\0").decode(errors="replace"),
        protocol=protocol,
        source=source,
        source_port=int.from_bytes(transport[0:2], "big") if with_ports else 0,
        destination=destination,
        destination_port=int.from_bytes(transport[2:4], "big") if with_ports else 0,
        icmp_type=transport[0] if with_type else None,
        icmp_code=transport[1] if with_type else None,
        in_index=int.from_bytes(found.get(_IN, b""), "big"),
        out_index=int.from_bytes(found.get(_OUT, b""), "big"),
    )


def log_event(event: LogEvent | LeftOut) -> None:
    """Write the event as one line of the logger `conetd.packets`, INFO; what was left out, WARNING.

    Interfaces are named as they are called in the calling thread's namespace now.
    """
    if isinstance(event, LeftOut):
        if event.prefix is None:
            log.warning("packets lost before they could be logged", extra={"count": event.count})
        else:
            log.warning("packets not logged", extra={"handle": event.prefix.strip(), "count": event.count})
        return
    told: dict[str, object] = {
        "handle": event.prefix.strip(),
        "protocol": PROTOCOL_NAMES.get(event.protocol, event.protocol),
        "source": str(event.source),
        "destination": str(event.destination),
    }
    if event.protocol in _PORTS:
        told |= {"source_port": event.source_port, "destination_port": event.destination_port}
    if event.icmp_type is not None:
        told |= {"icmp_type": event.icmp_type, "icmp_code": event.icmp_code}
    for key, index in (("in", event.in_index), ("out", event.out_index)):
        if index:
            told[key] = _interface(index)
    log.info("packet %s", event.verdict, extra=told)


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # gone since
        return str(index)
