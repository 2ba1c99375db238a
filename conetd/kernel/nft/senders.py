"""Which packets and frames are an endpoint's own, and where they get its mark. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterator

from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import tunnel_table, wire
from conetd.kernel.nft.chain import Chain, KernelRule
from conetd.kernel.nft.elements import Contribution, Element, goes_to, link_local, mac_bytes, mac_key, name_key
from conetd.kernel.nft.hooks import accept, drop
from conetd.plan import Endpoint, NetworkFilter

FROM_BRIDGE = wire.verdict_data(wire.GOTO, "source")
"""The data in `entry` of an interface that endpoints share."""
_NOBODY = wire.verdict_data(wire.DROP)
_ACCEPTED = wire.verdict_data(wire.ACCEPT)


def subject_of(endpoint: Endpoint) -> str:
    """How the comments of an endpoint's rules begin."""
    return f"{endpoint.handle[:48]}:"


def is_behind_bridge(endpoint: Endpoint, network: NetworkFilter | None) -> bool:
    """Whether others come in by the endpoint's interface, too."""
    return endpoint.port is not None or (network is not None and network.interface == endpoint.interface)


def of_sender(endpoint: Endpoint, network: NetworkFilter | None, *, may_speak: bool) -> Contribution:
    """What tells an endpoint's packets from all others that come in by its interface; none are, unless `may_speak`."""
    elements: list[Element] = []
    chains: list[Chain] = []
    interface = name_key(endpoint.interface)
    if may_speak and endpoint.port is not None:
        frames = name_key(endpoint.port) + mac_key(endpoint.mac)
        elements += [(f"port{version}", frames + packed, b"") for version, packed in _sources(endpoint)]
    if not is_behind_bridge(endpoint, network):
        # one look by the interface's name is all its packets cost
        if may_speak:
            chains.append(Chain.addressed(f"s-{endpoint.key}", tuple(_own_chain(endpoint))))
        elements.append(("entry", interface, goes_to(chains[0]) if chains else _NOBODY))
        return Contribution(tuple(elements), tuple(chains))
    elements.append(("entry", interface, FROM_BRIDGE))
    if may_speak:
        known = _ACCEPTED
        if endpoint.mark:
            # a chain and no number in the map: before Linux 6.13 no bits can be put together from two registers
            chains.append(
                Chain.addressed(
                    f"m-{endpoint.key}", (KernelRule(f"{subject_of(endpoint)} mark", (_spoken(endpoint),)),)
                )
            )
            known = goes_to(chains[0])
        own = {one.packed for one in endpoint.addresses}
        for version, packed in _sources(endpoint):
            elements.append((f"source{version}", interface + packed, known if packed in own else _ACCEPTED))
    return Contribution(tuple(elements), tuple(chains))


def _sources(endpoint: Endpoint) -> list[tuple[int, bytes]]:
    """Its addresses by IP version, and the link-local one if it has IPv6."""
    found: list[tuple[int, bytes]] = [(one.version, one.packed) for one in endpoint.addresses]
    if any(version == 6 for version, _ in found):
        found.append((6, link_local(mac_bytes(endpoint.mac))))
    return found


def _own_chain(endpoint: Endpoint) -> Iterator[KernelRule]:
    """Judge what comes in by an interface that no other endpoint has."""
    words = subject_of(endpoint)
    yield KernelRule(f"{words} encapsulated", (tunnel_table.encapsulated() + drop(),))
    own = {one.packed for one in endpoint.addresses}
    for version, packed in _sources(endpoint):
        match = e.family_is(version) + e.source(version) + e.equal(packed)
        yield KernelRule(f"{words} own address", (match + (_spoken(endpoint) if packed in own else accept()),))
    yield KernelRule(f"{words} no own address", (e.goto("unspecified"),))


def _spoken(endpoint: Endpoint) -> bytes:
    return (tunnel_table.mark_with(endpoint.mark) if endpoint.mark else b"") + accept()
