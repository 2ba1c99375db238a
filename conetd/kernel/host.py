"""What the host's own side of the network looks like: its addresses, its default route, and where that leads."""

from __future__ import annotations

import socket as sockets
import struct
from dataclasses import dataclass
from ipaddress import ip_address

from conetd.kernel import links, routes
from conetd.kernel.netlink import NETLINK_ROUTE, Netlink, attributes
from conetd.kernel.sysctls import has_ipv6
from conetd.model import IPAddress

MTU = 1500  # bytes; of a host without a default route

_RTM = struct.Struct("=BBBBBBBBI")
_IFA = struct.Struct("=BBBBI")
_U32 = struct.Struct("=I")
_RTN_UNICAST, _SCOPE_GLOBAL = 1, 0
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
    for version in (4, 6) if has_ipv6() else (4,):
        found = []
        for _, payload in netlink.dump(routes.list_routes(version)):
            _, length, _, _, _, _, _, kind, _ = _RTM.unpack_from(payload)
            if length == 0 and kind == _RTN_UNICAST:
                found.append(_read(version, payload))
        if found:
            return min(found, key=lambda route: route.metric)
    return None


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
    for _, payload in netlink.dump(links.get_link_at(route.index)):
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
    if route is None or route.source is not None:
        return None if route is None else route.source
    if route.version == 4 and route.gateway is not None:
        # Connecting a UDP socket sends nothing and makes the kernel choose among several addresses of the link.
        with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as probe:
            probe.connect((str(route.gateway), 9))
            return ip_address(probe.getsockname()[0])
    for _, payload in netlink.dump(routes.list_addresses(route.index)):
        _, _, _, scope, index = _IFA.unpack_from(payload)
        address = _address(payload)
        if index == route.index and scope == _SCOPE_GLOBAL and address and address.version == route.version:
            return address
    return None


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
