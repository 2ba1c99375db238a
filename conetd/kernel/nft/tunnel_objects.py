"""Which elements and chains a network's tunnel and the hosts behind it come to. Pure: values in, values out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

from conetd.kernel.nft.chain import Chain, KernelRule
from conetd.kernel.nft.elements import (
    NOTHING,
    Contribution,
    Element,
    goes_to,
    mac_key,
    name_key,
    to_anything,
    version_key,
)
from conetd.kernel.nft.hooks import drop
from conetd.kernel.nft.tunnel_table import member_rule
from conetd.plan import NetworkFilter, Tunnel, TunnelPeer


def of_peer(peer: TunnelPeer | None) -> Contribution:
    """What another host comes to: elements alone, so that one more costs the same however many there are."""
    if peer is None:
        return NOTHING
    mac = mac_key(peer.mac)
    sender = _port_and_vni(peer.port, peer.vni) + peer.underlay.packed + mac
    elements: list[Element] = [(f"underlay{peer.underlay.version}", sender, b"")]
    interface = name_key(peer.interface)
    for part in peer.subnets:
        elements.append((f"tunnel{part.version}", interface + mac + part.network_address.packed, b""))
    return Contribution(tuple(elements))


def of_tunnel(network: NetworkFilter, tunnel: Tunnel) -> Contribution:
    """What a network's tunnel comes to, without its peers."""
    chain = _chain(network, tunnel)
    return Contribution(tuple(_elements(network, tunnel, chain)), (chain,))


def _elements(network: NetworkFilter, tunnel: Tunnel, chain: Chain) -> Iterator[Element]:
    interface = name_key(tunnel.interface)
    yield "vteps", interface, b""
    yield "entry", interface, goes_to(chain)
    yield "vnis", _port_and_vni(tunnel.port, tunnel.vni), b""
    if tunnel.local is not None:
        yield f"vtep_addresses{tunnel.local.version}", tunnel.local.packed, b""
    for subnet in network.subnets:
        yield f"overlay{subnet.version}", to_anything(subnet), b""
    for family in sorted({subnet.version for subnet in network.subnets}):
        yield "overlaid", version_key(family), b""
    if network.host_access:
        yield "host_access", interface, b""


@lru_cache(maxsize=256)
def _chain(network: NetworkFilter, tunnel: Tunnel) -> Chain:
    subject = f"tunnel of {network.name or network.key}"
    rules = [
        KernelRule(f"{subject}: from another host, IPv{family}", (member_rule(family, prefix, marks=tunnel.marks),))
        for family, prefix in sorted(tunnel.prefixes)
    ]
    return Chain.addressed(f"t-{network.key}", (*rules, KernelRule(f"{subject}: of nobody", (drop(),))))


def _port_and_vni(port: int, vni: int) -> bytes:
    return struct.pack(">H2x", port) + struct.pack("=I", vni)
