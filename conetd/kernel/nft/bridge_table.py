"""How the bridge table judges frames: stateless, by the link behind the port they come from or go to.

A kernel need not be able to tell a port's bridge (CONFIG_NFT_BRIDGE_META is optional), so what is between one of our
ports and a stranger's is found by the stranger's absence from `ports`, and a link whose endpoint is gone by its
presence in `closed_ports`.
"""

from __future__ import annotations

import struct

from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import wire
from conetd.kernel.nft.chain import Chain, KernelRule
from conetd.kernel.nft.hooks import FORWARD, POSTROUTING, PREROUTING, BaseChain, drop, interface, rules

MAPPED_BIT = 0x8000
"""The bit of the mark that the inet table sets on what a port mapping sent into an isolated network."""

# linux/netfilter_bridge.h: br_netfilter runs at 0
_FIRST, _FILTER = -300, -200
_ARP_OF_ETHERNET_AND_IP = b"\x00\x01\x08\x00\x06\x04"
_SOLICITATION, _ADVERTISEMENT, _ROUTER_ADVERTISEMENT, _REDIRECT = 135, 136, 134, 137


def _ethertype(number: int) -> bytes:
    # of the header, not of the packet: a VLAN tag in front of it does not match
    return e.payload(e.LINK, 12, 2) + e.equal(struct.pack(">H", number))


def _owns(family: int, mac: bytes, address: bytes) -> bytes:
    return e.meta(e.IIFNAME) + mac + address + e.lookup(f"port{family}")


_SENDER = e.payload(e.LINK, 6, 6, 4)
_TARGET = e.payload(e.TRANSPORT, 8, 16, 6)  # of a neighbour solicitation or advertisement
_ACCEPT = e.verdict(wire.ACCEPT)
_TYPE = e.payload(e.TRANSPORT, 0, 1)


def _type_is(number: int) -> bytes:
    return _TYPE + e.equal(bytes((number,)))


def _identity() -> tuple[KernelRule, ...]:
    arp_address = e.payload(e.NETWORK, 14, 4, 6)
    arp_sender = _owns(4, e.payload(e.NETWORK, 8, 6, 4), arp_address) + _owns(4, _SENDER, arp_address)
    arp = _ethertype(0x0806) + e.payload(e.NETWORK, 0, 6) + e.equal(_ARP_OF_ETHERNET_AND_IP) + arp_sender
    return rules(
        ("IPv4", _ethertype(0x0800) + _owns(4, _SENDER, e.source(4, 6)) + _ACCEPT),
        ("ARP", arp + _ACCEPT),
        ("no other ethertype than IPv6", e.payload(e.LINK, 12, 2) + e.equal(b"\x86\xdd", negate=True) + drop()),
        ("ICMPv6", e.meta(e.L4PROTO) + e.equal(b"\x3a") + e.jump("neighbours")),
        ("IPv6", _owns(6, _SENDER, e.source(6, 6)) + _ACCEPT),
        ("of nobody", drop()),
    )


def _neighbours() -> tuple[KernelRule, ...]:
    own_target = _owns(6, _SENDER, _TARGET)
    return rules(
        ("router advertisement", _type_is(_ROUTER_ADVERTISEMENT) + drop()),
        ("redirect", _type_is(_REDIRECT) + drop()),
        (
            "duplicate address detection of its own",
            _type_is(_SOLICITATION) + e.source(6) + e.equal(bytes(16)) + own_target + _ACCEPT,
        ),
        (
            "advertisement of its own",
            _type_is(_ADVERTISEMENT) + own_target + _owns(6, _SENDER, e.source(6, 6)) + _ACCEPT,
        ),
        ("advertisement of another's", _type_is(_ADVERTISEMENT) + drop()),
    )


def chains() -> tuple[Chain | BaseChain, ...]:
    """Every fixed chain; one that others lead to stands before them."""
    unmapped = e.meta(e.MARK) + e.masked(struct.pack("=I", MAPPED_BIT)) + e.equal(bytes(4))
    ports_in, ports_out = interface("ports"), interface("ports", e.OIFNAME)
    no_port_in, no_port_out = interface("ports", negate=True), interface("ports", e.OIFNAME, negate=True)
    isolated = interface("isolated_ports") + interface("isolated_ports", e.OIFNAME)
    prerouting = rules(
        ("from a link that is shut", interface("closed_ports") + drop()),
        ("from a container", ports_in + e.goto("identity")),
    )
    forward = rules(
        ("from a stranger to a container", ports_out + no_port_in + drop()),
        ("from a container to a stranger", ports_in + no_port_out + drop()),
        ("isolated", isolated + unmapped + drop()),
    )
    postrouting = rules(("to a link that is shut", interface("closed_ports", e.OIFNAME) + drop()))
    return (
        Chain("neighbours", _neighbours()),
        Chain("identity", _identity()),
        BaseChain("filter", PREROUTING, _FIRST, Chain("prerouting", prerouting)),
        BaseChain("filter", FORWARD, _FILTER, Chain("forward", forward)),
        BaseChain("filter", POSTROUTING, _FILTER, Chain("postrouting", postrouting)),
    )
