"""Which part of a network this host gets, and from which of its addresses it reaches the other hosts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address

from conetd.driver import JSON, Exhausted, Host, Interface, Invalid, IPAddress, Lease, Network
from conetd.policy.leases import unfit
from conetd_vxlan.config import Peer, VxlanConfig

_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Part:
    """What one host has of a network: its parts of the subnets, its address on the underlay, the MTU there in bytes."""

    subnet: IPv4Network
    subnet6: IPv6Network | None
    underlay: IPAddress
    mtu: int


def part_of(network: Network[VxlanConfig]) -> Part:
    """What this host has of the network."""
    assert network.lease is not None, "the core plans only for networks with a lease for the host"
    return read_part(network.lease.data)


def read_part(data: JSON) -> Part:
    """What a host has, from the data of its lease."""
    return _read(data["subnet"], data.get("subnet6"), data["underlay"], data["mtu"])


@lru_cache(maxsize=8192)
def _read(subnet: str, subnet6: str | None, underlay: str, mtu: int) -> Part:
    return Part(IPv4Network(subnet), None if subnet6 is None else IPv6Network(subnet6), ip_address(underlay), mtu)


def allocate_host(network: Network[VxlanConfig], host: Host, current: Lease | None, held: Collection[str]) -> Lease:
    """Return the host's lease: the part it has, else that of its entry in `peers`, else the lowest that is free.

    Raises Invalid for a host without such an address or entry, Exhausted when every part is taken.
    """
    config = network.config
    entry = _entry(network, host) if config.peers else None
    interface, underlay = _underlay(network, host, entry)
    if underlay in (config.subnet if underlay.version == 4 else config.subnet6 or ()):
        raise unfit(network.name, "config.underlay", underlay, "lies within the network's own subnet")
    if current is not None:
        subnet = IPv4Network(current.data["subnet"])
    elif entry is not None:
        subnet = entry.subnet
    else:
        subnet = _lowest_part(network, held)
    data: JSON = {"subnet": str(subnet), "underlay": str(underlay), "mtu": interface.mtu}
    subnet6 = config.part6(subnet)
    if subnet6 is not None:
        data["subnet6"] = str(subnet6)
    return Lease(data, frozenset({f"subnet:{subnet}"}))


def _lowest_part(network: Network[VxlanConfig], held: Collection[str]) -> IPv4Network:
    config = network.config
    if not isinstance(held, (set, frozenset)):
        held = frozenset(held)
    count = 1 << (config.host_prefix - config.subnet.prefixlen)
    for start in range(0, count, _CHUNK):
        for claim in _claims(config.subnet, config.host_prefix, start, min(start + _CHUNK, count)):
            if claim not in held:
                return IPv4Network(claim.partition(":")[2])
    raise Exhausted(
        f'network "{network.name}" has no part left for another host: '
        f"all {count} of {config.subnet} with the prefix length {config.host_prefix} are taken"
    )


# To write the parts of a thousand hosts takes milliseconds, to look them up microseconds.
@lru_cache(maxsize=64)
def _claims(subnet: IPv4Network, prefix: int, first: int, end: int) -> tuple[str, ...]:
    base, size = int(subnet.network_address), 1 << (32 - prefix)
    return tuple(f"subnet:{IPv4Network((base + number * size, prefix))}" for number in range(first, end))


def _entry(network: Network[VxlanConfig], host: Host) -> Peer:
    mine = {address for interface in host.interfaces for address in interface.addresses}
    peers = network.config.peers
    found = next((peer for peer in peers if peer.underlay in mine), None)
    found = found or next((peer for peer in peers if peer.host == host.name), None)
    if found is None:
        raise _invalid(network, "config.peers", f'no entry is of this host, "{host.name}", {_has(host)}')
    return found


def _underlay(network: Network[VxlanConfig], host: Host, entry: Peer | None) -> tuple[Interface, IPAddress]:
    wanted = network.config.underlay
    if entry is not None:
        where = f"config.peers[{network.config.peers.index(entry)}].underlay"
        interface = _holder(network, host, entry.underlay, where)
        if wanted is not None and wanted not in (entry.underlay, interface.name):
            reason = f"{wanted} is neither {entry.underlay}, which this host has in peers, nor its interface"
            raise _invalid(network, "config.underlay", f"{reason}, {interface.name}")
        return interface, entry.underlay
    if wanted is None:
        if not host.sources:
            raise _invalid(network, "config.underlay", f"must be given: without a default route, a host {_has(host)}")
        return _holder(network, host, host.sources[0], "config.underlay"), host.sources[0]
    if isinstance(wanted, str):
        return _first_address(network, host, wanted)
    return _holder(network, host, wanted, "config.underlay"), wanted


def _holder(network: Network[VxlanConfig], host: Host, address: IPAddress, field: str) -> Interface:
    for interface in host.interfaces:
        if address in interface.addresses:
            return interface
    raise _invalid(network, field, f"{address} is no address of this host, {_has(host)}")


def _first_address(network: Network[VxlanConfig], host: Host, name: str) -> tuple[Interface, IPAddress]:
    for interface in host.interfaces:
        if interface.name == name:
            addresses = sorted(interface.addresses, key=lambda address: address.version)
            if not addresses:
                raise _invalid(network, "config.underlay", f"{name} has no address that other hosts can send to")
            return interface, addresses[0]
    raise _invalid(network, "config.underlay", f"{name} is no interface of this host, {_has(host)}")


def _has(host: Host) -> str:
    has = [f"{address} on {one.name}" for one in host.interfaces for address in one.addresses]
    return f"which has {', '.join(has) or 'no address'}"


def _invalid(network: Network[VxlanConfig], field: str, reason: str) -> Invalid:
    return Invalid(f'{field}: {reason} (network "{network.name}")', fields={field: reason})
