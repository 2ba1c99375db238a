"""What a link holds: its addresses, routes, neighbours and forwarding entries, each kind listed once and read by hand.

A VTEP has some entries for every other host, thousands in all. So what the kernel tells is kept as the bytes it comes
in, and compared as such; only what somebody wants to hear of becomes an object.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from functools import cached_property
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple

from conetd.kernel import routes, sysctls
from conetd.kernel.links import mac_bytes
from conetd.kernel.netlink import Netlink
from conetd.kernel.routes import Entry
from conetd.model import IPNetwork
from conetd.plan import Address, FdbEntry, Neighbour, Route, Side

_AttributeHead = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_ANY = {2: bytes(4), 10: bytes(16)}  # by address family: what a default route leads to
_OTHERWISE = {routes.NDA_PORT, routes.NDA_VNI, routes.NDA_IFINDEX}  # a forwarding entry that leaves not as its VTEP


class RouteKey(NamedTuple):
    """A route but for its link: addresses as bytes, empty where it has none."""

    destination: bytes
    length: int
    via: bytes
    source: bytes
    onlink: bool


class OurRoute(NamedTuple):
    """A route that carries our protocol number, and the index of its link."""

    key: RouteKey
    oif: int


def values(payload: bytes, offset: int) -> dict[int, bytes]:
    """The attributes of a message by their type, from `offset` on."""
    found = {}
    end = len(payload)
    unpack = _AttributeHead.unpack_from
    while offset + 4 <= end:
        size, kind = unpack(payload, offset)
        if size < 4:
            break
        found[kind & 0x3FFF] = payload[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return found


def route_key(route: Route) -> RouteKey:
    """The route as the kernel tells of it."""
    destination, via, source = route.destination, route.via, route.source
    return RouteKey(
        destination.network_address.packed,
        destination.prefixlen,
        b"" if via is None else via.packed,
        b"" if source is None else source.packed,
        route.onlink,
    )


def route_of(key: RouteKey, link: str, side: Side) -> Route:
    """The route of that key by that link."""
    via, source = key.via, key.source
    return Route(
        ip_network((key.destination, key.length)),
        link,
        via=ip_address(via) if via else None,
        source=ip_address(source) if source else None,
        onlink=key.onlink,
        side=side,
    )


def _routes(socket: Netlink, request: bytes) -> Iterator[tuple[RouteKey, int, int, int]]:
    """The main table's routes: each with its type, its protocol and its link's index."""
    for _, payload in socket.dump(request):
        family, length, _, _, table, protocol, _, kind, flags = routes.ROUTE.unpack_from(payload)
        if table != routes.RT_TABLE_MAIN:
            continue
        told = values(payload, routes.ROUTE.size)
        key = RouteKey(
            told.get(routes.RTA_DST) or _ANY[family],
            length,
            told.get(routes.RTA_GATEWAY, b""),
            told.get(routes.RTA_PREFSRC, b""),
            bool(flags & routes.RTNH_F_ONLINK),
        )
        yield key, kind, protocol, _U32.unpack(told[routes.RTA_OIF])[0] if routes.RTA_OIF in told else 0


def our_routes(socket: Netlink, version: int) -> dict[tuple[bytes, int], list[OurRoute]]:
    """The unicast routes of one IP version that carry our protocol number, by destination and prefix length."""
    found: dict[tuple[bytes, int], list[OurRoute]] = {}
    for key, kind, protocol, index in _routes(socket, routes.list_routes(version, protocol=routes.PROTOCOL)):
        if kind == routes.RTN_UNICAST and protocol == routes.PROTOCOL:
            found.setdefault((key.destination, key.length), []).append(OurRoute(key, index))
    return found


def our_unreachable(socket: Netlink) -> frozenset[IPNetwork]:
    """The destinations of our unreachable routes."""
    found = set()
    for version in versions():
        request = routes.list_routes(version, protocol=routes.PROTOCOL, kind=routes.RTN_UNREACHABLE)
        for key, kind, protocol, _ in _routes(socket, request):
            if kind == routes.RTN_UNREACHABLE and protocol == routes.PROTOCOL:
                found.add(ip_network((key.destination, key.length)))
    return frozenset(found)


def versions() -> tuple[int, ...]:
    """The IP versions the kernel speaks."""
    return (4, 6) if sysctls.has_ipv6() else (4,)


class Holdings:
    """What one link holds, as it was when each kind was first asked for."""

    def __init__(self, socket: Netlink, index: int) -> None:
        self._socket = socket
        self.index = index

    def has(self, entry: Entry) -> bool:
        """Whether exactly this entry is there."""
        if isinstance(entry, Route):
            return route_key(entry) in self._routes
        if isinstance(entry, Neighbour):
            return self._neighbours.get(entry.address.packed) == mac_bytes(entry.mac.lower())
        if isinstance(entry, FdbEntry):
            return self._fdb.get(mac_bytes(entry.mac.lower())) == [(entry.to.packed, True)]
        return (entry.interface.packed, entry.interface.network.prefixlen) in self._addresses

    def surplus_addresses(self, link: str, side: Side, wanted: Collection[Entry]) -> list[Entry]:
        """The addresses with our mark that are not wanted."""
        keys = {(one.interface.packed, one.interface.network.prefixlen) for one in wanted if isinstance(one, Address)}
        left = [key for key, ours in self._addresses.items() if ours and key not in keys]
        return [Address(link, ip_interface(key), side) for key in left]

    def surplus_routes(self, link: str, side: Side, wanted: Collection[Entry]) -> list[Entry]:
        """The routes with our protocol number that are not wanted."""
        keys = {route_key(one) for one in wanted if isinstance(one, Route)}
        return [route_of(key, link, side) for key, ours in self._routes.items() if ours and key not in keys]

    def surplus_hosts(self, link: str, wanted: Collection[Entry]) -> list[Entry]:
        """The permanent neighbours and the forwarding entries, whosever, that are not wanted on a VTEP.

        One for the address or the MAC of a wanted one is not surplus: it is to be replaced.
        """
        known = {one.address.packed for one in wanted if isinstance(one, Neighbour)}
        macs = {mac_bytes(one.mac.lower()) for one in wanted if isinstance(one, FdbEntry)}
        found: list[Entry] = []
        for address, mac in self._neighbours.items():
            if address not in known:
                found.append(Neighbour(link, ip_address(address), mac.hex(":")))
        for mac, ways in self._fdb.items():
            if mac not in macs:
                found += [FdbEntry(link, mac.hex(":"), ip_address(to)) for to, _ in ways if to]
        return found

    @cached_property
    def _addresses(self) -> dict[tuple[bytes, int], bool]:
        """Of each address whether it carries our mark."""
        found = {}
        for _, payload in self._socket.dump(routes.list_addresses(self.index)):
            _, length, _, _, index = routes.ADDRESS.unpack_from(payload)
            told = values(payload, routes.ADDRESS.size)
            value = told.get(routes.IFA_LOCAL) or told.get(routes.IFA_ADDRESS)
            if index == self.index and value:
                found[value, length] = told.get(routes.IFA_PROTO) == bytes((routes.PROTOCOL,))
        return found

    @cached_property
    def _routes(self) -> dict[RouteKey, bool]:
        """Of each unicast route of the main table whether it carries our protocol number."""
        return {
            key: protocol == routes.PROTOCOL
            for version in versions()
            for key, kind, protocol, index in _routes(self._socket, routes.list_routes(version, self.index))
            if kind == routes.RTN_UNICAST and index == self.index
        }

    @cached_property
    def _neighbours(self) -> dict[bytes, bytes]:
        """The MAC of each permanent neighbour."""
        found = {}
        for _, payload in self._socket.dump(routes.list_neighbours(self.index)):
            _, index, state, _, _ = routes.NEIGHBOUR.unpack_from(payload)
            if index == self.index and state & routes.NUD_PERMANENT:
                told = values(payload, routes.NEIGHBOUR.size)
                found[told.get(routes.NDA_DST, b"")] = told.get(routes.NDA_LLADDR, b"")
        return found

    @cached_property
    def _fdb(self) -> dict[bytes, list[tuple[bytes, bool]]]:
        """Where a VTEP sends the frames for each MAC, and whether for good and as it sends everything."""
        found: dict[bytes, list[tuple[bytes, bool]]] = {}
        for _, payload in self._socket.dump(routes.list_fdb(self.index)):
            _, index, state, flags, _ = routes.NEIGHBOUR.unpack_from(payload)
            if index == self.index and flags & routes.NTF_SELF:
                told = values(payload, routes.NEIGHBOUR.size)
                plain = bool(state & routes.NUD_PERMANENT) and _OTHERWISE.isdisjoint(told)
                way = told.get(routes.NDA_DST, b""), plain
                found.setdefault(told.get(routes.NDA_LLADDR, b""), []).append(way)
        return found
