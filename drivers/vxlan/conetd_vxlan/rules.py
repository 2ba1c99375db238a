"""Which rules a policy becomes on a network, given which containers and networks there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from conetd.driver import Identity, IPAddress, Network, Selector
from conetd.plan import AddressRange, IPNetwork, MarkRange, Rule, Verdict
from conetd.policy.boxes import merge
from conetd.policy.common import deny
from conetd_vxlan.config import VxlanConfig
from conetd_vxlan.policy import Entry, VxlanPolicy

IDENTITY_MAX = 65535  # sixteen bits travel in a VXLAN header (draft-smith-vxlan-group-policy)
_ANY_IDENTITY = (MarkRange(1, IDENTITY_MAX),)


def outward(network: Network[VxlanConfig], policy: VxlanPolicy) -> tuple[Rule, ...]:
    """What the container may send beyond the network: what is opened, then what is closed."""
    opened = [
        replace(entry.rule, destinations=there)
        for entry in policy.policies
        if entry.outbound and (there := _beyond(network, entry))
    ]
    return (*policy.net_out, *opened, *deny(policy.deny_networks, "deny_networks"))


def inside(network: Network[VxlanConfig], policy: VxlanPolicy) -> tuple[Rule, ...] | None:
    """What the container may send within the network; None if the policy does not limit it."""
    outbound = [entry for entry in policy.policies if entry.outbound]
    if not outbound:
        return None
    return tuple(
        replace(entry.rule, destinations=there) for entry in outbound if (there := _destinations(network, entry))
    )


def ingress(network: Network[VxlanConfig], policy: VxlanPolicy) -> tuple[Rule, ...]:
    """What the container receives. Containers are known by the marks of their identities, wherever they run."""
    found = [rule for entry in policy.policies if not entry.outbound for rule in _received(network, entry)]
    if policy.default_ingress == "allow":
        found.append(Rule(Verdict.ACCEPT, origin="default_ingress"))
    return tuple(found)


def _received(network: Network[VxlanConfig], entry: Entry) -> Iterator[Rule]:
    # Nobody to receive from makes no rule: one without marks or sources would let everybody in.
    peer = entry.peer
    own = _ranges(network.config.subnets)
    if isinstance(peer, Selector):
        marks = _marks(network.identities.select(peer))
        if marks:
            yield replace(entry.rule, marks=marks, sources=own)
    elif peer == network.name:
        # without agreed numbers nothing tells a container of another host from what that host sends itself
        yield replace(entry.rule, marks=_ANY_IDENTITY if network.agreed else (), sources=own)
    else:
        sources = _beyond(network, entry)
        if sources:
            yield replace(entry.rule, sources=sources)


def _beyond(network: Network[VxlanConfig], entry: Entry) -> tuple[AddressRange, ...]:
    """The addresses of a peer that is no container of the network; none if it is, or if there is no such network."""
    if isinstance(entry.peer, Selector) or entry.peer == network.name:
        return ()
    if isinstance(entry.peer, str):
        return _ranges(network.subnets.get(entry.peer, ()))
    return (AddressRange.of(entry.peer),)


def _destinations(network: Network[VxlanConfig], entry: Entry) -> tuple[AddressRange, ...]:
    if isinstance(entry.peer, Selector):
        return _merged(address for one in network.identities.select(entry.peer) for address in one.addresses)
    if entry.peer == network.name:
        return _ranges(network.config.subnets)
    return _beyond(network, entry)


def _ranges(subnets: Iterable[IPNetwork]) -> tuple[AddressRange, ...]:
    return tuple(AddressRange.of(subnet) for subnet in subnets)


def _marks(identities: Iterable[Identity]) -> tuple[MarkRange, ...]:
    return tuple(MarkRange(*span) for span in merge((one.number, one.number) for one in identities))


def _merged(addresses: Iterable[IPAddress]) -> tuple[AddressRange, ...]:
    four: list[tuple[int, int]] = []
    six: list[tuple[int, int]] = []
    for address in addresses:
        (four if address.version == 4 else six).append((int(address), int(address)))
    return (
        *(AddressRange(IPv4Address(first), IPv4Address(last)) for first, last in merge(four)),
        *(AddressRange(IPv6Address(first), IPv6Address(last)) for first, last in merge(six)),
    )
