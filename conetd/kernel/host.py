"""What the host's own side of the network looks like: its addresses, its default route, and where that leads."""

from __future__ import annotations

import socket as sockets
import struct
from dataclasses import dataclass
from ipaddress import ip_address

from conetd.errors import KernelError
from conetd.kernel import links, routes
from conetd.kernel.netlink import NETLINK_ROUTE, Netlink, attributes
from conetd.model import IPAddress

MTU = 1500  # bytes; of a host without a default route

_RTM = struct.Struct("=BBBBBBBBI")
_RTN_UNICAST = 1
_RTA_OIF, _RTA_PRIORITY, _RTA_MULTIPATH = 4, 6, 9
# Documentation prefixes (RFC 5737, RFC 3849): reached by the default route, and connecting a UDP socket sends nothing.
_ELSEWHERE = {4: (sockets.AF_INET, "192.0.2.1"), 6: (sockets.AF_INET6, "2001:db8::1")}


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route: its IP version and the index of its link."""

    version: int
    index: int


def default_route(netlink: Netlink) -> DefaultRoute | None:
    """The IPv4 default route of the main table with the lowest metric, else the IPv6 one, else None."""
    for version in (4, 6):
        best: tuple[int, int] | None = None
        try:
            found = netlink.dump(routes.list_routes(version))
        except KernelError:
            if version == 6:  # a kernel without IPv6
                return None
            raise
        for _, payload in found:
            _, length, _, _, _, _, _, kind, _ = _RTM.unpack_from(payload)
            if length == 0 and kind == _RTN_UNICAST:
                index, metric = _way(payload)
                if index and (best is None or metric < best[0]):
                    best = (metric, index)
        if best is not None:
            return DefaultRoute(version, best[1])
    return None


def _way(payload: bytes) -> tuple[int, int]:
    index = metric = 0
    for kind, value in attributes(payload, _RTM.size):
        if kind == _RTA_OIF:
            index = struct.unpack("=I", value)[0]
        elif kind == _RTA_PRIORITY:
            metric = struct.unpack("=I", value)[0]
        elif kind == _RTA_MULTIPATH and not index:
            index = struct.unpack_from("=i", value, 4)[0]  # rtnexthop: length, flags, hops, index
    return index, metric


def default_route_mtu(netlink: Netlink) -> int:
    """The MTU of the interface with the default route, in bytes; 1500 without one."""
    route = default_route(netlink)
    if route is None:
        return MTU
    for _, payload in netlink.dump(links.get_link_at(route.index)):
        for kind, value in attributes(payload, 16):
            if kind == links.IFLA_MTU:
                mtu: int = struct.unpack("=I", value)[0]
                return mtu
    return MTU


def default_route_source(netlink: Netlink) -> IPAddress | None:
    """The address from which this host speaks to the rest of the world; None without a default route.

    The calling thread must be in the socket's namespace.
    """
    route = default_route(netlink)
    if route is None:
        return None
    family, elsewhere = _ELSEWHERE[route.version]
    with sockets.socket(family, sockets.SOCK_DGRAM) as probe:
        try:
            probe.connect((elsewhere, 9))
        except OSError:
            return None
        return ip_address(probe.getsockname()[0])


def local_addresses() -> frozenset[IPAddress]:
    """Every address of this host, of the calling thread's namespace."""
    found = set()
    with Netlink(NETLINK_ROUTE) as netlink:
        for _, payload in netlink.dump(routes.list_addresses()):
            values = dict(attributes(payload, 8))
            local = values.get(routes.IFA_LOCAL, values.get(routes.IFA_ADDRESS))
            if local is not None:
                found.add(ip_address(bytes(local)))
    return frozenset(found)
