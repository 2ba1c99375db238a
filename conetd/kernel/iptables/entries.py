"""How one rule of a legacy table looks in bytes: the kernel's structures, packed from a `Line`.

python-iptables' own Rule is not used. Its IPv6 rules compare one bit of each character of an interface's name (a mask
of 0x01 for 0xff), it hands libxtables pointers into memory it has freed, and it takes a millisecond a rule. Packed
here, a rule read from the kernel and a wanted one can also be compared byte by byte.

Layouts are those of linux/netfilter/x_tables.h and its neighbours on 64 bit machines.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from conetd.model import ICMPV6, TCP, AddressRange, Icmp, IPAddress, IPNetwork, PortRange

CHAIN_NAME_MAX = 28  # bytes; 29 with the NUL, XT_EXTENSION_MAXNAMELEN
COMMENT_MAX = 255  # bytes; XT_MAX_COMMENT_LEN is 256 with the NUL
PORT_SLOTS = 15  # XT_MULTI_PORTS; a range takes two

# Bits of xt_conntrack's state mask: 1 << (number of the state + 1), and its own for the rest
INVALID, ESTABLISHED, RELATED, NEW, DNATED = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 7

# enum ipt_reject_with, enum ip6t_reject_with
_PORT_UNREACHABLE = {4: 3, 6: 4}
_ADMINISTRATIVELY = {4: 6, 6: 1}  # icmp-host-prohibited, icmp6-adm-prohibited

_STATE, _STATUS = 1 << 0, 1 << 6  # XT_CONNTRACK_STATE, XT_CONNTRACK_STATUS
_CONFIRMED = 1 << 3  # IPS_CONFIRMED
_LOCAL = 1 << 2  # XT_ADDRTYPE_LOCAL
_MAP_IPS, _PROTO_SPECIFIED, _RANDOM_FULLY = 1, 2, 16  # NF_NAT_RANGE_…
_RANGE_SOURCE, _RANGE_DESTINATION = 1, 2  # IPRANGE_SRC, IPRANGE_DST
_INVERT_DESTINATION = 0x10  # IPT_INV_DSTIP, IP6T_INV_DSTIP

_HEADER = struct.Struct("=H29sB")  # struct xt_entry_match, xt_entry_target
HEADER_SIZE = _HEADER.size
STANDARD_SIZE = 40  # struct xt_standard_target, aligned


class Shape(NamedTuple):
    """Where the parts of a rule's first structure lie, in bytes: struct ipt_entry, struct ip6t_entry."""

    size: int
    cache: int  # nfcache, 4 bytes
    offsets: int  # target_offset and next_offset, 2 bytes each; comefrom and the counters stand behind
    flags: int
    goto: int  # the flag itself


SHAPES = {
    4: Shape(size=112, cache=84, offsets=88, flags=82, goto=0x02),
    6: Shape(size=168, cache=136, offsets=140, flags=131, goto=0x04),
}
_IP6_HAS_PROTOCOL = 0x01


class Masked(NamedTuple):
    """Addresses that agree with `value` in the bits of `mask`; the mask need not be a prefix."""

    value: int
    mask: int


class Extension(NamedTuple):
    """A match or target of a kernel module."""

    name: str
    revision: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Line:
    """One rule. All given fields must match.

    `target` is a module's, or the name of a verdict or of a chain, which `goto` enters without coming back.
    `comment` is for readers and tells equal rules of different owners apart.
    """

    target: Extension | str
    goto: bool = False
    source: Masked | None = None
    destination: Masked | None = None
    other_destination: bool = False  # any destination but this
    incoming: str = ""
    outgoing: str = ""
    protocol: int = 0
    matches: tuple[Extension, ...] = ()
    comment: str = ""


def within(network: IPNetwork) -> Masked:
    """The addresses of a network."""
    return Masked(int(network.network_address), int(network.netmask))


def exactly(address: IPAddress) -> Masked:
    """One address."""
    return Masked(int(address), (1 << address.max_prefixlen) - 1)


def pack(line: Line, family: int) -> bytes:
    """The rule as libiptc appends it: a chain or verdict as the target's name, no counters."""
    matches = b"".join(_extension(*match) for match in line.matches)
    if line.comment:
        matches += _comment(line.comment)
    target = standard_target(line.target) if isinstance(line.target, str) else _extension(*line.target)
    shape = SHAPES[family]
    target_offset = shape.size + len(matches)
    head = bytearray(shape.size)
    head[: shape.cache] = _address_part(line, family)
    if line.goto:
        head[shape.flags] |= shape.goto
    struct.pack_into("=HH", head, shape.offsets, target_offset, target_offset + len(target))
    return bytes(head) + matches + target


def normal(raw: bytes, family: int, label: str) -> bytes:
    """A rule as read from the kernel in the form of `pack`. `label` is the verdict or chain of a standard target.

    Counters and caches become zero, and so does what stands behind the names: the kernel leaves it unwritten.
    """
    shape = SHAPES[family]
    buffer = bytearray(raw)
    target_offset, _end = struct.unpack_from("=HH", buffer, shape.offsets)
    buffer[shape.cache : shape.offsets] = bytes(4)
    buffer[shape.offsets + 4 : shape.size] = bytes(shape.size - shape.offsets - 4)
    offset = shape.size
    while offset < target_offset:
        size, name, _revision = _HEADER.unpack_from(buffer, offset)
        buffer[offset + 2 : offset + 31] = name[: name.index(0)].ljust(29, b"\0")
        offset += size
    _size, name, _revision = _HEADER.unpack_from(buffer, target_offset)
    if name[0] == 0:
        return bytes(buffer[:target_offset]) + standard_target(label)
    buffer[target_offset + 2 : target_offset + 31] = name[: name.index(0)].ljust(29, b"\0")
    return bytes(buffer)


def target_name(packed: bytes, family: int) -> str:
    """The verdict, chain or module a packed rule ends in."""
    (offset,) = struct.unpack_from("=H", packed, SHAPES[family].offsets)
    name = packed[offset + 2 : offset + 31]
    return name[: name.index(0)].decode(errors="replace")


def incoming_interface(packed: bytes, family: int) -> str:
    """The name of the interface a packed rule is for, empty for any."""
    start = 16 if family == 4 else 64
    return packed[start : start + 16].rstrip(b"\0").decode(errors="replace")


@lru_cache(maxsize=4096)
def standard_target(label: str) -> bytes:
    """A verdict or a jump, named; libiptc puts the number in."""
    return _HEADER.pack(STANDARD_SIZE, label.encode(), 0) + bytes(STANDARD_SIZE - HEADER_SIZE)


def _address_part(line: Line, family: int) -> bytes:
    size = 4 if family == 4 else 16
    source, destination = line.source or Masked(0, 0), line.destination or Masked(0, 0)
    addresses = b"".join(
        number.to_bytes(size, "big")
        for number in (source.value & source.mask, destination.value & destination.mask, source.mask, destination.mask)
    )
    names = line.incoming.encode(), line.outgoing.encode()
    # The mask covers the NUL behind the name too: the whole name is meant, not a beginning.
    interfaces = b"".join(name.ljust(16, b"\0") for name in names)
    interfaces += b"".join((b"\xff" * (len(name) + 1 if name else 0)).ljust(16, b"\0") for name in names)
    inverted = _INVERT_DESTINATION if line.other_destination else 0
    if family == 4:
        return addresses + interfaces + struct.pack("=HBB", line.protocol, 0, inverted)
    flags = _IP6_HAS_PROTOCOL if line.protocol else 0
    return addresses + interfaces + struct.pack("=HBBB3x", line.protocol, 0, flags, inverted)


@lru_cache(maxsize=4096)
def _extension(name: str, revision: int, data: bytes) -> bytes:
    size = HEADER_SIZE + len(data) + 7 & ~7
    return (_HEADER.pack(size, name.encode(), revision) + data).ljust(size, b"\0")


def _comment(text: str) -> bytes:
    return _extension("comment", 0, text.encode()[:COMMENT_MAX].ljust(COMMENT_MAX + 1, b"\0"))


# ---------------------------------------------------------------------------------------------- matches


def ctstate(mask: int) -> Extension:
    """Connections in one of these states."""
    return _conntrack(_STATE, 0, mask, 0)


def first_packet() -> Extension:
    """The very first packet of a connection: later ones find it confirmed, with or without a reply."""
    return _conntrack(_STATUS, _STATUS, 0, _CONFIRMED)


def _conntrack(matched: int, inverted: int, state: int, status: int) -> Extension:
    # struct xt_conntrack_mtinfo3: 8 addresses, 2 u32 and 5 u16 before these, 4 u16 and padding behind
    return Extension("conntrack", 3, bytes(128 + 8 + 10) + struct.pack("=HHHH8x2x", matched, inverted, state, status))


def to_local() -> Extension:
    """Destinations that are an address of this host."""
    return Extension("addrtype", 1, struct.pack("=HHI", 0, _LOCAL, 0))


def to_many() -> Extension:
    """Broadcast and multicast frames."""
    return Extension("pkttype", 0, struct.pack("=ii", 0, 1))  # not PACKET_HOST


def from_mac(mac: str) -> Extension:
    """Frames with this source address."""
    return Extension("mac", 0, struct.pack("=6s2xi", bytes.fromhex(mac.replace(":", "")), 0))


def address_ranges(source: AddressRange | None, destination: AddressRange | None) -> Extension:
    """Ranges that are no networks."""
    data = b""
    flags = 0
    for found, flag in ((source, _RANGE_SOURCE), (destination, _RANGE_DESTINATION)):
        for address in (found.first, found.last) if found else (None, None):
            data += (address.packed if address else b"").ljust(16, b"\0")
        flags |= flag if found else 0
    return Extension("iprange", 1, data + struct.pack("=B3x", flags))


def destination_ports(protocol: int, ports: Sequence[PortRange]) -> Extension:
    """Destination ports of tcp or udp, at most PORT_SLOTS slots; a range of more than one port takes two."""
    if len(ports) == 1:
        first, last = ports[0].first, ports[0].last
        if protocol == TCP:
            return Extension("tcp", 0, struct.pack("=HHHH4x", 0, 0xFFFF, first, last))
        return Extension("udp", 0, struct.pack("=HHHH2x", 0, 0xFFFF, first, last))
    numbers: list[int] = []
    starts: list[int] = []
    for port in ports:
        alone = port.first == port.last
        numbers += [port.first] if alone else [port.first, port.last]
        starts += [0] if alone else [1, 0]
    missing = [0] * (PORT_SLOTS - len(numbers))
    # struct xt_multiport_v1: flags 1 is XT_MULTIPORT_DESTINATION
    return Extension(
        "multiport", 1, struct.pack("=BB15H15BB", 1, len(numbers), *numbers, *missing, *starts, *missing, 0)
    )


def icmp_message(protocol: int, icmp: Icmp) -> Extension:
    """One ICMP or ICMPv6 type, of one code or any."""
    low, high = (0, 255) if icmp.code is None else (icmp.code, icmp.code)
    return Extension("icmp6" if protocol == ICMPV6 else "icmp", 0, struct.pack("=BBBB", icmp.type, low, high, 0))


def marked(mark: int, mask: int = 0xFFFF) -> Extension:
    """Packet marks that are `mark` in the bits of the mask."""
    return Extension("mark", 1, struct.pack("=IIB3x", mark, mask, 0))


def tcp_that_begins_nothing() -> Extension:
    """TCP segments that are no connection's first: anything but a SYN without ACK."""
    # struct xt_tcp: ports, option, mask of flags, flags wanted, what is inverted (XT_TCP_INV_FLAGS)
    return Extension("tcp", 0, struct.pack("=HHHHBBBB", 0, 0xFFFF, 0, 0xFFFF, 0, 0x12, 0x02, 0x04))


# ---------------------------------------------------------------------------------------------- targets


def reject(family: int) -> Extension:
    """Refuse with port-unreachable."""
    return Extension("REJECT", 0, struct.pack("=I", _PORT_UNREACHABLE[family]))


def prohibit(family: int) -> Extension:
    """Refuse with icmp-host-prohibited or icmp6-adm-prohibited."""
    return Extension("REJECT", 0, struct.pack("=I", _ADMINISTRATIVELY[family]))


def log_to(group: int, prefix: str) -> Extension:
    """Hand the packet's record to an NFLOG group and go on."""
    return Extension("NFLOG", 0, struct.pack("=IHHHH64s", 0, group, 0, 0, 0, prefix.encode()[:63]))


def set_mark(mark: int) -> Extension:
    """Set the low 16 bits of the packet mark and leave the others."""
    return Extension("MARK", 2, struct.pack("=II", mark, 0xFFFF))


def destination_nat(to: IPAddress, port: int) -> Extension:
    """Send the connection to this address and port."""
    # struct nf_nat_range2: both ends of the addresses, then of the ports, then a base port for shifted ranges
    ends = to.packed.ljust(16, b"\0") * 2 + struct.pack(">HH", port, port)
    return Extension("DNAT", 2, struct.pack("=I", _MAP_IPS | _PROTO_SPECIFIED) + ends + bytes(4))


def masquerade(family: int) -> Extension:
    """Give the connection the address of the interface it leaves by, and a port nobody can guess."""
    if family == 4:
        return Extension("MASQUERADE", 0, struct.pack("=II12x", 1, _RANDOM_FULLY))
    return Extension("MASQUERADE", 0, struct.pack("=I36x", _RANDOM_FULLY))


def link_local(mac: str) -> IPAddress:
    """The IPv6 link-local address an interface makes from its MAC (EUI-64, RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ip_address(b"\xfe\x80" + bytes(6) + identifier)
