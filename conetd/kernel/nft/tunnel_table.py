"""How the inet table judges what comes from other hosts: who may send it, encapsulated, and who speaks once it is out.

An encapsulated packet passes twice: before routing and at the input hook as the datagram it is, by the address of the
host that sent it; then, out of the tunnel, at every hook as the packet that was inside. The connection tracking of the
datagrams would cost as much as that of what is inside, and tell nothing: it is left out.
"""

from __future__ import annotations

import struct

from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import wire
from conetd.kernel.nft.chain import Chain, KernelRule
from conetd.kernel.nft.hooks import accept, drop, interface, rules
from conetd.kernel.nft.matches import pair, state, status, udp, words

IDENTITY_BITS = 0xFFFF  # of the mark
_BOTH = (4, 6)
# Bytes from the start of the UDP header (RFC 7348, section 5): one before the VNI, and the MAC of the sender inside
_BEFORE_VNI, _INNER_SOURCE = 11, 22
_LOOPBACK = b"lo".ljust(16, b"\0")


def mark_with(identity: int) -> bytes:
    """Make this the low 16 bits of the packet's mark; the others are not ours."""
    others = struct.pack("=I", ~IDENTITY_BITS & 0xFFFFFFFF)
    return e.meta(e.MARK) + e.masked(others, xor=struct.pack("=I", identity)) + e.set_mark()


def encapsulated() -> bytes:
    """Go on only with UDP to the port and with the VNI of a network of ours."""
    return udp() + _port_and_vni() + e.lookup("vnis")


def from_strangers() -> bytes:
    """Go on only with what goes into a tunnel and comes from no container of this host."""
    return _into_tunnel() + interface("ours", negate=True)


def at_once() -> tuple[str, bytes]:
    """What is asked first of all: whether it is a datagram of another host.

    Links of ours are in a group (conetd.kernel.links); a look by the name of the interface would cost ten times as
    much. Whatever else is in a group is asked the same later.
    """
    return "may be encapsulated, by a link in no group", udp() + _in_no_group() + e.jump("untracked")


def judged_before() -> tuple[str, bytes]:
    """Of datagrams for this host the rules before routing have left only other hosts' untracked."""
    untracked = state(e.CT_UNTRACKED) + _in_no_group() + _unmarked()
    return "looked at before", udp() + untracked + accept()


def entry() -> tuple[tuple[str, bytes], ...]:
    """What is asked of packets that come from no interface of ours and out of no tunnel."""
    return (
        ("may be encapsulated", udp() + e.jump("untracked")),
        ("of an IP version that tunnels carry", e.meta(e.NFPROTO) + e.lookup("overlaid") + e.goto("overlay")),
    )


def own_rules() -> tuple[KernelRule, ...]:
    """What becomes of the host's own packets before connection tracking: of what it encapsulates there is none.

    The kernel leaves the mark of what is inside on the datagram around it, where it would mean something else to
    somebody's rules; and to other hosts, if the host sends that datagram through a tunnel of ours in turn.
    """
    return rules(
        ("encapsulated by the host", encapsulated() + mark_with(0) + e.notrack() + accept()),
        ("without a mark", _unmarked() + accept()),
        ("into a tunnel", _into_tunnel() + mark_with(0)),
    )


def leaving_rules() -> tuple[KernelRule, ...]:
    """Take the mark from what goes into a tunnel and comes from no container of its network.

    Marks mean something only beside the addresses that were marked: on the other host the sender would pass for a
    container of the tunnel's network. The mark is looked at first, for a look by name costs more; of a datagram that
    the host has encapsulated it is gone by now.
    """
    into_tunnel = _into_tunnel() + mark_with(0)
    return rules(
        ("without a mark", _unmarked() + accept()),
        ("into a tunnel from the host", e.meta(e.IIF) + e.equal(bytes(4)) + into_tunnel),
        ("into a tunnel with another source", status(e.IPS_SRC_NAT, on=True) + into_tunnel),
    )


def _in_no_group() -> bytes:
    return e.meta(e.IIFGROUP) + e.equal(bytes(4))


def _to_vtep(family: int) -> bytes:
    return e.destination(family) + e.lookup(f"vtep_addresses{family}")


def _into_tunnel() -> bytes:
    return interface("vteps", e.OIFNAME)


def _unmarked() -> bytes:
    return e.meta(e.MARK) + e.masked(struct.pack("=I", IDENTITY_BITS)) + e.equal(bytes(4))


def chains() -> tuple[Chain, ...]:
    """The fixed chains that others lead to."""
    untrack = e.notrack() + accept()
    untracked = rules(
        # by the host itself alone: what passes through is not ours to judge
        *(
            (f"from another host to where it sends, IPv{family}", _sender(family) + _to_vtep(family) + untrack)
            for family in _BOTH
        ),
        *(
            (f"from another host, IPv{family}", _sender(family) + e.destination_is_local() + untrack)
            for family in _BOTH
        ),
        # here, too: somebody else's rule may leave it untracked, and `judged_before` would let it in
        ("from a stranger", encapsulated() + e.destination_is_local() + drop()),
    )
    overlay = rules(
        ("the host to itself", e.meta(e.IIFNAME) + e.equal(_LOOPBACK) + accept()),
        *(
            (f"a container's by another way, IPv{family}", pair(family, f"overlay{family}") + drop())
            for family in _BOTH
        ),
    )
    # A packet without an identity goes without one inside, and comes out with the mark of the one around it.
    without_identity = mark_with(0)
    outer = rules(
        *((f"from another host, IPv{family}", _sender(family) + without_identity + accept()) for family in _BOTH),
        ("from a stranger", encapsulated() + drop()),
    )
    return Chain("untracked", untracked), Chain("overlay", overlay), Chain("outer", outer)


def member_rule(family: int, prefix: int, *, marks: bool) -> bytes:
    """Accept what comes out of a tunnel with the MAC of another host and a source in that host's part, its mark with
    it or not.
    """
    length = words(family) * 4
    bits = length * 8
    mask = ((1 << bits) - (1 << bits - prefix)).to_bytes(length)
    sender = e.meta(e.IIFNAME) + e.payload(e.LINK, 6, 6, 4) + e.source(family, 6) + e.masked(mask, 6)
    known = e.family_is(family) + sender + e.lookup(f"tunnel{family}")
    return known + (b"" if marks else mark_with(0)) + e.verdict(wire.ACCEPT)


def _port_and_vni() -> bytes:
    vni = e.payload(e.TRANSPORT, _BEFORE_VNI, 4, 1) + e.masked(b"\0\xff\xff\xff", 1) + e.turned_round(1)
    return e.destination_port() + vni


def _sender(family: int) -> bytes:
    inner = e.payload(e.TRANSPORT, _INNER_SOURCE, 6, 2 + words(family))
    return e.family_is(family) + _port_and_vni() + e.source(family, 2) + inner + e.lookup(f"underlay{family}")
