"""What the host's own side of the network looks like: its addresses, its default route, and where that leads."""

from __future__ import annotations

import socket as sockets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from conetd.kernel import links, routes, seen
from conetd.kernel.holdings import versions
from conetd.kernel.netlink import NETLINK_ROUTE, Netlink, attributes
from conetd.model import Interface, IPAddress

MTU = 1500  # bytes; of a host without a default route

_RTM = struct.Struct("=BBBBBBBBI")
_IFA = struct.Struct("=BBBBI")
_U32 = struct.Struct("=I")
_RTN_UNICAST, _SCOPE_GLOBAL = 1, 0
_LO = 1  # the first link of every namespace
_IFA_F_TEMPORARY = 0x01
_PASSING = 0x08 | 0x20 | 0x40  # duplicate found, deprecated, tentative (linux/if_addr.h)
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_MULTIPATH = 4, 5, 6, 7, 9


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route: its IP version, metric and link; `gateway` and `source` as far as it says so itself."""

    version: int
    metric: int
    index: int
    gateway: IPAddress | None
    source: IPAddress | None


def default_route(netlink: Netlink) -> DefaultRoute | None:
    """The IPv4 default route of the main table with the lowest metric, else the IPv6 one, else None."""
    for version in versions():
        route = _default_route(netlink, version)
        if route is not None:
            return route
    return None


def _default_route(netlink: Netlink, version: int) -> DefaultRoute | None:
    found = []
    for _, payload in netlink.dump(routes.list_routes(version)):
        _, length, _, _, _, _, _, kind, _ = _RTM.unpack_from(payload)
        if length == 0 and kind == _RTN_UNICAST:
            found.append(_read(version, payload))
    return min(found, key=lambda route: route.metric, default=None)


def _read(version: int, payload: bytes) -> DefaultRoute:
    values = dict(attributes(payload, _RTM.size))
    gateway, source = values.get(_RTA_GATEWAY), values.get(_RTA_PREFSRC)
    if _RTA_OIF in values:
        index = _U32.unpack(values[_RTA_OIF])[0]
    else:  # several ways: the first rtnexthop says length, flags, hops, index
        index = _U32.unpack_from(values[_RTA_MULTIPATH], 4)[0] if _RTA_MULTIPATH in values else 0
    return DefaultRoute(
        version,
        _U32.unpack(values[_RTA_PRIORITY])[0] if _RTA_PRIORITY in values else 0,
        index,
        ip_address(bytes(gateway)) if gateway is not None else None,
        ip_address(bytes(source)) if source is not None else None,
    )


def default_route_mtu(netlink: Netlink) -> int:
    """The MTU of the interface with the default route, in bytes; 1500 without one."""
    route = default_route(netlink)
    if route is None:
        return MTU
    return next((_mtu(payload) for _, payload in netlink.dump(links.get_link_at(route.index))), MTU)


def _mtu(payload: bytes) -> int:
    for kind, value in attributes(payload, 16):
        if kind == links.IFLA_MTU:
            mtu: int = _U32.unpack(value)[0]
            return mtu
    return MTU


def default_route_source(netlink: Netlink) -> IPAddress | None:
    """The address from which this host speaks to the rest of the world; None without a default route.

    The calling thread must be in the socket's namespace.
    """
    route = default_route(netlink)
    return None if route is None else _source(netlink, route)


def sources(netlink: Netlink) -> tuple[IPAddress, ...]:
    """The addresses from which this host speaks by its default routes: at most one of each IP version, IPv4 first.

    The calling thread must be in the socket's namespace.
    """
    ways = (_default_route(netlink, version) for version in versions())
    found = (_source(netlink, route) for route in ways if route is not None)
    return tuple(address for address in found if address is not None)


def _source(netlink: Netlink, route: DefaultRoute) -> IPAddress | None:
    if route.source is not None:
        return route.source
    if route.version == 4 and route.gateway is not None:
        # Connecting a UDP socket sends nothing and makes the kernel choose among several addresses of the link.
        with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as probe:
            probe.connect((str(route.gateway), 9))
            return ip_address(probe.getsockname()[0])
    for index, address in _lasting_addresses(netlink, route.index):
        if index == route.index and address.version == route.version:
            return address
    return None


def interfaces(netlink: Netlink) -> tuple[Interface, ...]:
    """The host's own interfaces, up or not, in the order of their making; lo and those of conetd are left out.

    Of their addresses those that others can reach and that are to stay: of global scope, neither tentative nor about
    to go. Lists all links: 20 ms with a thousand of them.
    """
    addresses: dict[int, list[IPAddress]] = {}
    for index, address in _lasting_addresses(netlink):
        addresses.setdefault(index, []).append(address)
    found = [
        (label.index, Interface(label.name, _mtu(payload), tuple(addresses.get(label.index, ()))))
        for label, payload in seen.labelled(netlink)
        if not label.ours and label.index != _LO
    ]
    return tuple(interface for _, interface in sorted(found, key=lambda one: one[0]))


def _lasting_addresses(netlink: Netlink, index: int = 0) -> Iterator[tuple[int, IPAddress]]:
    """The global addresses of one link, of all without one, each with its link's index."""
    for _, payload in netlink.dump(routes.list_addresses(index)):
        _, _, flags, scope, at = _IFA.unpack_from(payload)
        address = _address(payload)
        if address is None or scope != _SCOPE_GLOBAL:
            continue
        told = dict(attributes(payload, _IFA.size)).get(routes.IFA_FLAGS)
        flags = flags if told is None else _U32.unpack(told)[0]
        # To IPv4 the flag of a temporary address means the second one of its subnet.
        passing = _PASSING | _IFA_F_TEMPORARY if address.version == 6 else _PASSING
        if not flags & passing:
            yield at, address


def local_addresses() -> frozenset[IPAddress]:
    """Every address of this host, of the calling thread's namespace."""
    with Netlink(NETLINK_ROUTE) as netlink:
        found = (_address(payload) for _, payload in netlink.dump(routes.list_addresses()))
        return frozenset(address for address in found if address is not None)


def _address(payload: bytes) -> IPAddress | None:
    values = dict(attributes(payload, _IFA.size))
    # On a point-to-point link IFA_ADDRESS is the other end's; IPv6 says IFA_LOCAL only there.
    value = values.get(routes.IFA_LOCAL, values.get(routes.IFA_ADDRESS))
    return None if value is None else ip_address(bytes(value))
