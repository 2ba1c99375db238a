"""Which addresses an attachment gets: the lowest that are free of this host's part, or those it asked for."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from conetd.driver import Exhausted, IPAddress, Lease, Network, Requested
from conetd.policy.leases import derived_mac, lowest_free, refuse_held, requested_mac, unfit
from conetd_vxlan.config import VxlanConfig
from conetd_vxlan.hosts import Part, part_of

HOST_MAC = "0a:fe:00:00:00:01"  # of the host's end of every pair; nothing is derived from 0.0.0.1


def allocate(network: Network[VxlanConfig], requested: Requested, held: Collection[str]) -> Lease:
    """Return a lease of one IPv4 address, the IPv6 address with the same place where the network has IPv6, and a MAC.

    The first address of the host's part is the host's own. Raises Invalid, Conflict and Exhausted as the driver
    contract says.
    """
    if not isinstance(held, (set, frozenset)):
        held = frozenset(held)
    part = part_of(network)
    ip = _requested_ip(network, part, requested)
    if ip is None:
        ip = _lowest(network, part, held)
    ip6 = _place6(part, ip)
    for field, address in (("ip", ip), ("ip6", ip6)):
        if address is not None:
            refuse_held(network.name, field, f"ip:{address}", held)
    if requested.mac == HOST_MAC:
        raise unfit(network.name, "mac", HOST_MAC, "is that of the host's end")
    mac = requested_mac(network.name, requested, held) or derived_mac(network.name, ip, held)
    data = {"ip": str(ip), "mac": mac}
    claims = {f"ip:{ip}", f"mac:{mac}"}
    if ip6 is None:
        return Lease(data, frozenset(claims), frozenset({4}))
    return Lease(data | {"ip6": str(ip6)}, frozenset(claims | {f"ip:{ip6}"}), frozenset({4, 6}))


def _lowest(network: Network[VxlanConfig], part: Part, held: Collection[str]) -> IPv4Address:
    first = int(part.subnet.network_address)
    ip = lowest_free(first + 1, first + part.subnet.num_addresses - 1, held)
    if ip is None:
        raise Exhausted(
            f'network "{network.name}" is full on this host: every address of its part, {part.subnet}, is taken'
        )
    return ip


def _place6(part: Part, ip: IPv4Address) -> IPv6Address | None:
    return None if part.subnet6 is None else part.subnet6[int(ip) - int(part.subnet.network_address)]


def _requested_ip(network: Network[VxlanConfig], part: Part, requested: Requested) -> IPv4Address | None:
    """The IPv4 address that was asked for, be it as `ip` or by its place in the IPv6 part as `ip6`."""
    ip, ip6 = requested.ip, requested.ip6
    if ip is not None:
        _check_within(network, "ip", ip, part.subnet)
    if ip6 is not None:
        if part.subnet6 is None:
            raise unfit(network.name, "ip6", ip6, "cannot be had: the network has no subnet6")
        _check_within(network, "ip6", ip6, part.subnet6)
        place = part.subnet[int(ip6) - int(part.subnet6.network_address)]
        if ip not in (None, place):
            raise unfit(network.name, "ip6", ip6, f"has not the place of {ip}: it goes with {place}")
        return place
    return ip if isinstance(ip, IPv4Address) else None


def _check_within(
    network: Network[VxlanConfig], field: str, address: IPAddress, part: IPv4Network | IPv6Network
) -> None:
    if address.version != part.version or address not in part:
        reason = f"does not lie in {part}, this host's part: addresses are routed to hosts by their parts"
        raise unfit(network.name, field, address, reason)
    if address == part.network_address:
        raise unfit(network.name, field, address, "is the host's own")
