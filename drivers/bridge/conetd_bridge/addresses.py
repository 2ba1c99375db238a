"""Which addresses an attachment gets: the lowest that are free, or those it asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address

from conetd.driver import Exhausted, Lease, Network, Requested
from conetd.policy.leases import derived_mac, lowest_free, mac_of, refuse_held, requested_mac, unfit
from conetd_bridge.config import BridgeConfig, is_host

PORTS_MAX = 1023  # BR_MAX_PORTS in net/bridge/br_private.h is 1024, and port number 0 stands for none
# At most PORTS_MAX addresses are held and three of a range reserved, so among this many one is free, or none at all.
_CANDIDATES = PORTS_MAX + 4


def allocate(network: Network[BridgeConfig], requested: Requested, held: Collection[str]) -> Lease:
    """Return a lease of one IPv4 address, one IPv6 address where the network has IPv6, and one MAC.

    The IPv6 address has the IPv4 address's place in its subnet where that is free, so that one tells the other. Raises
    Invalid, Conflict and Exhausted as the driver contract says.
    """
    config = network.config
    if not isinstance(held, (set, frozenset)):
        held = frozenset(held)
    if len(held) >= PORTS_MAX * (2 if config.subnet6 is None else 3):  # claims of one lease: ip, mac and maybe ip6
        raise Exhausted(f'network "{network.name}" is full: the kernel gives a bridge {PORTS_MAX} ports')
    ip = _requested_ip(network, requested, held) or _lowest_ip(network, held)
    ip6 = _requested_ip6(network, requested, held) or _matching_ip6(network, ip, held)
    mac = _requested_mac(network, requested, held) or derived_mac(network.name, ip, held)
    data = {"ip": str(ip), "mac": mac}
    claims = {f"ip:{ip}", f"mac:{mac}"}
    if ip6 is None:
        return Lease(data, frozenset(claims), frozenset({4}))
    return Lease(data | {"ip6": str(ip6)}, frozenset(claims | {f"ip:{ip6}"}), frozenset({4, 6}))


def _lowest_ip(network: Network[BridgeConfig], held: Collection[str]) -> IPv4Address:
    config = network.config
    first, last = int(config.range.first), int(config.range.last)
    reserved = frozenset(
        int(one) for one in (config.subnet.network_address, config.subnet.broadcast_address, config.gateway)
    )
    ip = lowest_free(first, min(last, first + _CANDIDATES), held, reserved)
    if ip is not None:
        return ip
    raise Exhausted(
        f'network "{network.name}" is full: every address from {config.range.first} to {config.range.last} is taken'
    )


def _matching_ip6(network: Network[BridgeConfig], ip: IPv4Address, held: Collection[str]) -> IPv6Address | None:
    config = network.config
    if config.subnet6 is None or config.gateway6 is None:
        return None
    for place in _places(int(ip) - int(config.subnet.network_address)):
        if place >= config.subnet6.num_addresses:
            continue
        ip6 = config.subnet6[place]
        if ip6 != config.gateway6 and f"ip:{ip6}" not in held:
            return ip6
    raise Exhausted(f'network "{network.name}" is full: no address of {config.subnet6} is free')


def _places(preferred: int) -> Iterator[int]:
    yield preferred
    yield from range(1, _CANDIDATES)  # 0 is the subnet's router anycast address, RFC 4291, 2.6.1


def _requested_ip(network: Network[BridgeConfig], requested: Requested, held: Collection[str]) -> IPv4Address | None:
    ip, config = requested.ip, network.config
    if ip is None:
        return None
    if not isinstance(ip, IPv4Address) or not is_host(ip, config.subnet):
        raise unfit(network.name, "ip", ip, f"is not an address for a host in {config.subnet}")
    if ip == config.gateway:
        raise unfit(network.name, "ip", ip, "is the network's gateway")
    refuse_held(network.name, "ip", f"ip:{ip}", held)
    return ip


def _requested_ip6(network: Network[BridgeConfig], requested: Requested, held: Collection[str]) -> IPv6Address | None:
    ip6, config = requested.ip6, network.config
    if ip6 is None:
        return None
    if config.subnet6 is None:
        raise unfit(network.name, "ip6", ip6, "cannot be had: the network has no subnet6")
    if not isinstance(ip6, IPv6Address) or ip6 not in config.subnet6 or ip6 == config.subnet6.network_address:
        raise unfit(network.name, "ip6", ip6, f"is not an address for a host in {config.subnet6}")
    if ip6 == config.gateway6:
        raise unfit(network.name, "ip6", ip6, "is the network's gateway")
    refuse_held(network.name, "ip6", f"ip:{ip6}", held)
    return ip6


def _requested_mac(network: Network[BridgeConfig], requested: Requested, held: Collection[str]) -> str | None:
    if requested.mac is not None and requested.mac == mac_of(network.config.gateway):
        raise unfit(network.name, "mac", requested.mac, "is the bridge's own")
    return requested_mac(network.name, requested, held)
