"""How the expressions of a rule are written: what is loaded, compared, looked up, and what becomes of the packet.

Registers are counted in four bytes from 0 (the kernel's NFT_REG32_00) to 15. A field of a concatenation begins at a
register of its own.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from conetd.kernel.netlink import attribute, nested, text
from conetd.kernel.nft.wire import GOTO, JUMP, LIST_ELEM, u32, value, verdict_data

_REG32 = 8
_VERDICT_REGISTER = 0
# linux/netfilter/nf_tables.h: nft_meta_keys, nft_ct_keys, nft_payload_bases
PROTOCOL, MARK, IIF, OIF, IIFNAME, OIFNAME, NFPROTO, L4PROTO, PKTTYPE, IIFGROUP = 1, 3, 4, 5, 6, 7, 15, 16, 19, 21
CT_STATE, CT_STATUS, CT_MARK, CT_EXPIRATION = 0, 2, 3, 5
LINK, NETWORK, TRANSPORT = 0, 1, 2
NFPROTO_OF = {4: 2, 6: 10}
# linux/netfilter/nf_conntrack_common.h; the state bits are nft's: 1 << (ctinfo % 3 + 1)
CT_ESTABLISHED_RELATED = 0x2 | 0x4
CT_INVALID, CT_ESTABLISHED, CT_UNTRACKED = 0x1, 0x2, 0x40
IPS_ASSURED, IPS_CONFIRMED, IPS_SRC_NAT, IPS_DST_NAT = 0x4, 0x8, 0x10, 0x20
_RTN_LOCAL = 2
_HTON = 1  # NFT_BYTEORDER_HTON
_RANDOM_FULLY = 0x10
SNAPLEN = 128  # bytes of a logged packet


def _register(number: int) -> int:
    return _REG32 + number


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(LIST_ELEM, text(1, name), nested(2, *attributes))


@lru_cache
def meta(key: int, register: int = 0) -> bytes:
    """Load something known of the packet; 32 bits in host order, names 16 bytes."""
    return _expression("meta", u32(2, key), u32(1, _register(register)))


def set_mark(register: int = 0) -> bytes:
    """Make the register the packet's mark."""
    return _expression("meta", u32(2, MARK), u32(3, _register(register)))


@lru_cache
def payload(base: int, offset: int, length: int, register: int = 0) -> bytes:
    """Load bytes of a header; the rule ends where the packet has no such header."""
    return _expression("payload", u32(1, _register(register)), u32(2, base), u32(3, offset), u32(4, length))


def ct(key: int, register: int = 0) -> bytes:
    """Load something of the packet's connection; the rule ends where it has none."""
    return _expression("ct", u32(2, key), u32(1, _register(register)))


def set_ct_mark(register: int = 0) -> bytes:
    """Make the register the mark of the packet's connection, if it has one."""
    return _expression("ct", u32(2, CT_MARK), u32(4, _register(register)))


def turned_round(register: int = 0) -> bytes:
    """Turn a number of 32 bits from host order into network order, whose bytes compare as it does, or back."""
    place = u32(1, _register(register)), u32(2, _register(register))
    return _expression("byteorder", *place, u32(3, _HTON), u32(4, 4), u32(5, 4))


@lru_cache(maxsize=4096)
def equal(data: bytes, register: int = 0, *, negate: bool = False) -> bytes:
    """Go on only if the register holds these bytes (or, negated, does not)."""
    return _expression("cmp", u32(1, _register(register)), u32(2, 1 if negate else 0), nested(3, value(data)))


def between(first: bytes, last: bytes, register: int = 0) -> bytes:
    """Go on only if the register holds a number, highest byte first, from `first` to `last`, both included."""
    if first == last:
        return equal(first, register)
    ends = (nested(3, value(first)), nested(4, value(last)))
    return _expression("range", u32(1, _register(register)), u32(2, 0), *ends)


def masked(mask: bytes, register: int = 0, xor: bytes = b"") -> bytes:
    """Keep the bits of the mask, then flip those of `xor`."""
    sized = (u32(1, _register(register)), u32(2, _register(register)), u32(3, len(mask)))
    return _expression("bitwise", *sized, nested(4, value(mask)), nested(5, value(xor or bytes(len(mask)))))


@lru_cache(maxsize=256)
def lookup(name: str, register: int = 0, *, into: int | None = None, negate: bool = False, set_id: int = 0) -> bytes:
    """Go on only if the set has (or, negated, has not) the key that begins at the register.

    Of a map the data goes `into` a register; `verdict_map` is the form for verdicts.
    """
    parts = [text(1, name), u32(2, _register(register))]
    if into is not None:
        parts.append(u32(3, _register(into)))
    if set_id:
        parts.append(u32(4, set_id))
    if negate:
        parts.append(u32(5, 1))
    return _expression("lookup", *parts)


def verdict_map(name: str, register: int = 0) -> bytes:
    """Do what the map says for the key; go on with the next rule where it has none."""
    return _expression("lookup", text(1, name), u32(2, _register(register)), u32(3, _VERDICT_REGISTER))


@lru_cache(maxsize=4096)
def verdict(code: int, chain: str = "") -> bytes:
    """End the rule with a verdict."""
    return _expression("immediate", u32(1, _VERDICT_REGISTER), nested(2, verdict_data(code, chain)))


def jump(chain: str) -> bytes:
    """Go through another chain and, at its end, come back."""
    return verdict(JUMP, chain)


def goto(chain: str) -> bytes:
    """Go on in another chain for good."""
    return verdict(GOTO, chain)


def reject_icmp(code: int) -> bytes:
    """Answer an IPv4 or IPv6 packet with a "destination unreachable" of this code of its own family."""
    return _expression("reject", u32(1, 0), attribute(2, bytes((code,))))


def reject_unreachable_port() -> bytes:
    """Answer with the port-unreachable of the packet's family."""
    return _expression("reject", u32(1, 2), attribute(2, b"\1"))


@lru_cache(maxsize=1024)
def log(group: int, prefix: str) -> bytes:
    """Send the beginning of the packet to an NFLOG group."""
    return _expression("log", attribute(1, struct.pack(">H", group)), text(2, prefix), u32(3, SNAPLEN))


def destination_is_local() -> bytes:
    """Go on only if the destination is an address of this host."""
    return _expression("fib", u32(1, _register(15)), u32(3, 2), u32(2, 3)) + equal(struct.pack("=I", _RTN_LOCAL), 15)


def dnat(family: int, address: int, port: int) -> bytes:
    """Change the destination to the address and port in these registers."""
    registers = (u32(3, _register(address)), u32(5, _register(port)))
    return _expression("nat", u32(1, 1), u32(2, NFPROTO_OF[family]), *registers)


def notrack() -> bytes:
    """Keep connection tracking from looking at the packet; of use only before it does, at the priority raw."""
    return nested(LIST_ELEM, text(1, "notrack"))


def masquerade() -> bytes:
    """Change the source to the address of the interface the packet leaves by, with a random port."""
    return _expression("masq", u32(1, _RANDOM_FULLY))


def counted(name: str, register: int = 0) -> bytes:
    """Add the key that begins at the register to a set, with a counter that counts this packet and all later ones."""
    counter = nested(7, text(1, "counter"))
    return _expression("dynset", text(1, name), u32(3, 0), u32(4, _register(register)), counter)


def sent_by(family: int, link: int, next_hop: int) -> bytes:
    """Send the packet, its hop limit reduced by one, to the next hop on the link that the registers say; nothing else
    sees it. For hooks of a device.
    """
    registers = u32(1, _register(link)), u32(2, _register(next_hop))
    return _expression("fwd", *registers, u32(3, NFPROTO_OF[family]))


@lru_cache
def family_is(family: int) -> bytes:
    """Go on only with packets of IP version 4 or 6."""
    return meta(NFPROTO) + equal(bytes((NFPROTO_OF[family],)))


def source(family: int, register: int = 0) -> bytes:
    """Load the source address."""
    return payload(NETWORK, 12, 4, register) if family == 4 else payload(NETWORK, 8, 16, register)


def destination(family: int, register: int = 0) -> bytes:
    """Load the destination address."""
    return payload(NETWORK, 16, 4, register) if family == 4 else payload(NETWORK, 24, 16, register)


def destination_port(register: int = 0) -> bytes:
    """Load the destination port of TCP or UDP; of another protocol, whatever its header has in that place."""
    return payload(TRANSPORT, 2, 2, register)
