"""What the rules of the inet table ask of a packet, beyond what one expression says."""

from __future__ import annotations

import struct

from conetd.kernel.nft import expressions as e
from conetd.kernel.nft.sets import ADDRESS

_ICMPV6, _TCP, _UDP = b"\x3a", b"\x06", b"\x11"
_TCP_FLAGS = 13  # their byte in the header
_SYN, _SYN_AND_ACK = b"\x02", b"\x12"


def words(family: int) -> int:
    """How many registers an address takes."""
    return ADDRESS[family].length // 4


def pair(family: int, name: str, *, negate: bool = False) -> bytes:
    """Go on only if the set of pairs has the packet's source and destination."""
    loads = e.source(family) + e.destination(family, words(family))
    return e.family_is(family) + loads + e.lookup(name, negate=negate)


def interface_and_source(family: int) -> bytes:
    """Load the input interface and the source address of a packet of the family."""
    return e.family_is(family) + e.meta(e.IIFNAME) + e.source(family, 4)


def destination_and_port(family: int) -> bytes:
    """Load destination address, protocol and destination port."""
    width = words(family)
    return e.destination(family) + e.meta(e.L4PROTO, width) + e.destination_port(width + 1)


def status(bit: int, *, on: bool) -> bytes:
    """Go on only if the packet's connection has this bit set, or not set."""
    return e.ct(e.CT_STATUS) + e.masked(struct.pack("=I", bit)) + e.equal(bytes(4), negate=on)


def state(bits: int) -> bytes:
    """Go on only if the packet's connection is in one of these states."""
    return e.ct(e.CT_STATE) + e.masked(struct.pack("=I", bits)) + e.equal(bytes(4), negate=True)


def known_flow() -> bytes:
    """Go on only with packets of connections that have been answered, and with what is related to them."""
    return state(e.CT_ESTABLISHED_RELATED)


def unconfirmed() -> bytes:
    """Go on only with the very first packet of a connection: later ones find it confirmed, with or without a reply."""
    return status(e.IPS_CONFIRMED, on=False)


def udp() -> bytes:
    """Go on only with UDP."""
    return e.meta(e.L4PROTO) + e.equal(_UDP)


def icmpv6(kind: int) -> bytes:
    """Go on only with ICMPv6 of this type."""
    protocol = e.meta(e.L4PROTO) + e.equal(_ICMPV6)
    return e.family_is(6) + protocol + e.payload(e.TRANSPORT, 0, 1) + e.equal(bytes((kind,)))


def tcp_that_begins_nothing() -> bytes:
    """Go on only with TCP segments that are no connection's first: anything but a SYN without ACK."""
    flags = e.payload(e.TRANSPORT, _TCP_FLAGS, 1) + e.masked(_SYN_AND_ACK) + e.equal(_SYN, negate=True)
    return e.meta(e.L4PROTO) + e.equal(_TCP) + flags


def link_local(address: bytes) -> bytes:
    """Go on only if the IPv6 address that these expressions load is link-local."""
    return e.family_is(6) + address + e.masked(b"\xff\xc0" + bytes(14)) + e.equal(b"\xfe\x80" + bytes(14))


# ip_forward() takes unicast frames alone: others are on their way through a bridge and br_netfilter shows them to us.
# The bridge table has judged them, and without br_netfilter we should not see them.
GROUP_FRAME = e.meta(e.PKTTYPE) + e.equal(b"\0", negate=True)
"""Go on only with frames to many."""
