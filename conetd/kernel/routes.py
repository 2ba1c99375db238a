"""How addresses, routes, neighbours and forwarding entries are said to the kernel: their rtnetlink messages."""

from __future__ import annotations

import struct
from ipaddress import IPv4Interface, IPv6Interface

from conetd.kernel.links import mac_bytes, u32
from conetd.kernel.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, attribute, message
from conetd.model import IPAddress, IPNetwork
from conetd.plan import Address, FdbEntry, Neighbour, Route

PROTOCOL = 157
"""Marks our routes and addresses (`ip route show proto 157`). Nobody's in linux/rtnetlink.h or iproute2's rt_protos."""

# linux/rtnetlink.h, linux/if_addr.h, linux/neighbour.h
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
AF_BRIDGE = 7
RT_TABLE_MAIN = 254
RTNH_F_ONLINK = 4
_RTM_F_FIB_MATCH = 0x2000
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NTF_SELF, NTF_MASTER = 0x02, 0x04
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_PROTO = 1, 2, 8, 11
_IFA_F_NODAD = 0x02
RTA_DST, _RTA_SRC, _RTA_IIF, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_MULTIPATH, _RTA_TABLE = 1, 2, 3, 4, 5, 7, 9, 15
RTN_UNICAST, RTN_UNREACHABLE = 1, 7
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RT_SCOPE_NOWHERE = 0, 253, 255  # the last, in a deletion: any scope
NDA_DST, NDA_LLADDR, NDA_PORT, NDA_VNI, NDA_IFINDEX, _NDA_PROTOCOL = 1, 2, 6, 7, 8, 12

Entry = Address | Neighbour | FdbEntry | Route

_FAMILY = {4: 2, 6: 10}
ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type

_NEW = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
_PUT = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE


def _address(interface: IPv4Interface | IPv6Interface, index: int) -> bytes:
    packed = interface.ip.packed
    family = 2 if interface.version == 4 else 10
    body = ADDRESS.pack(family, interface.network.prefixlen, 0, 0, index) + attribute(IFA_LOCAL, packed)
    return body + attribute(IFA_ADDRESS, packed)


def add_address(wanted: Address, index: int) -> bytes:
    """Add an address with our mark, usable at once. Fails with EEXIST when the link has it."""
    body = _address(wanted.interface, index) + attribute(IFA_PROTO, bytes((PROTOCOL,)))
    if wanted.interface.version == 6:
        body += u32(IFA_FLAGS, _IFA_F_NODAD)
    return message(RTM_NEWADDR, _NEW, body)


def delete_address(there: Address, index: int) -> bytes:
    """Delete an address. Fails with EADDRNOTAVAIL when the link has it not."""
    return message(RTM_DELADDR, NLM_F_ACK, _address(there.interface, index))


def _route(route: Route, index: int, protocol: int, scope: int) -> bytes:
    family = 2 if route.destination.version == 4 else 10
    length = route.destination.prefixlen
    flags = RTNH_F_ONLINK if route.onlink else 0
    return (
        ROUTE.pack(family, length, 0, 0, RT_TABLE_MAIN, protocol, scope, RTN_UNICAST, flags)
        + (attribute(RTA_DST, route.destination.network_address.packed) if length else b"")
        + u32(RTA_OIF, index)
        + (attribute(RTA_GATEWAY, route.via.packed) if route.via is not None else b"")
        + (attribute(RTA_PREFSRC, route.source.packed) if route.source is not None else b"")
    )


def add_route(wanted: Route, index: int) -> bytes:
    """Add a route of ours to the main table. Fails with EEXIST when there is one to that destination."""
    direct = wanted.via is None and wanted.destination.version == 4
    scope = _RT_SCOPE_LINK if direct else _RT_SCOPE_UNIVERSE
    return message(RTM_NEWROUTE, _NEW, _route(wanted, index, PROTOCOL, scope))


def delete_route(there: Route, index: int) -> bytes:
    """Delete that route of ours and no other. Fails with ESRCH when it is not there."""
    return message(RTM_DELROUTE, NLM_F_ACK, _route(there, index, PROTOCOL, _RT_SCOPE_NOWHERE))


def _unreachable(destination: IPNetwork, scope: int) -> bytes:
    length = destination.prefixlen
    head = (_FAMILY[destination.version], length, 0, 0, RT_TABLE_MAIN, PROTOCOL, scope, RTN_UNREACHABLE, 0)
    return ROUTE.pack(*head) + attribute(RTA_DST, destination.network_address.packed)


def add_unreachable(destination: IPNetwork) -> bytes:
    """Add a route of ours that refuses what goes there. Fails with EEXIST when there is one to that destination."""
    return message(RTM_NEWROUTE, _NEW, _unreachable(destination, _RT_SCOPE_UNIVERSE))


def delete_unreachable(destination: IPNetwork) -> bytes:
    """Delete that route of ours and no other. Fails with ESRCH when it is not there."""
    return message(RTM_DELROUTE, NLM_F_ACK, _unreachable(destination, _RT_SCOPE_NOWHERE))


def put_neighbour(wanted: Neighbour, index: int) -> bytes:
    """Add a permanent neighbour with our mark, or replace what is known of that address."""
    body = NEIGHBOUR.pack(_FAMILY[wanted.address.version], index, NUD_PERMANENT, 0, RTN_UNICAST)
    body += attribute(NDA_DST, wanted.address.packed) + attribute(NDA_LLADDR, mac_bytes(wanted.mac))
    body += attribute(_NDA_PROTOCOL, bytes((PROTOCOL,)))
    return message(RTM_NEWNEIGH, _PUT, body)


def delete_neighbour(there: Neighbour, index: int) -> bytes:
    """Delete a neighbour. Fails with ENOENT when it is not there."""
    body = NEIGHBOUR.pack(_FAMILY[there.address.version], index, 0, 0, 0)
    return message(RTM_DELNEIGH, NLM_F_ACK, body + attribute(NDA_DST, there.address.packed))


def put_fdb(wanted: FdbEntry, index: int) -> bytes:
    """Add a permanent forwarding entry of a VTEP, or replace the one for that MAC."""
    body = NEIGHBOUR.pack(AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF, 0)
    return message(
        RTM_NEWNEIGH,
        _PUT,
        body + attribute(NDA_LLADDR, mac_bytes(wanted.mac)) + attribute(NDA_DST, wanted.to.packed),
    )


def delete_fdb(there: FdbEntry, index: int) -> bytes:
    """Delete the forwarding entry of a VTEP for that MAC. Fails with ENOENT when it is not there."""
    body = NEIGHBOUR.pack(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0)
    return message(RTM_DELNEIGH, NLM_F_ACK, body + attribute(NDA_LLADDR, mac_bytes(there.mac)))


def put_port_mac(mac: str, index: int) -> bytes:
    """Say that this MAC lives behind this port of a bridge; a locked port lets no other in."""
    body = NEIGHBOUR.pack(AF_BRIDGE, index, NUD_NOARP, NTF_MASTER, 0)
    return message(RTM_NEWNEIGH, _PUT, body + attribute(NDA_LLADDR, mac_bytes(mac)))


def add_entry(wanted: Entry, index: int) -> bytes:
    """Add an address, route, neighbour or forwarding entry."""
    if isinstance(wanted, Address):
        return add_address(wanted, index)
    if isinstance(wanted, Route):
        return add_route(wanted, index)
    return put_neighbour(wanted, index) if isinstance(wanted, Neighbour) else put_fdb(wanted, index)


def delete_entry(there: Entry, index: int) -> bytes:
    """Delete an address, route, neighbour or forwarding entry."""
    if isinstance(there, Address):
        return delete_address(there, index)
    if isinstance(there, Route):
        return delete_route(there, index)
    return delete_neighbour(there, index) if isinstance(there, Neighbour) else delete_fdb(there, index)


def get_fdb(mac: str, index: int, flags: int) -> bytes:
    """Ask for the forwarding entry of a MAC: NTF_SELF in a VTEP, NTF_MASTER in the bridge of a port."""
    body = NEIGHBOUR.pack(AF_BRIDGE, index, 0, flags, 0)
    return message(RTM_GETNEIGH, 0, body + attribute(NDA_LLADDR, mac_bytes(mac)))


def list_neighbours(index: int) -> bytes:
    """Ask for the neighbours of one link, of both IP versions."""
    return message(RTM_GETNEIGH, NLM_F_DUMP, NEIGHBOUR.pack(0, 0, 0, 0, 0) + u32(NDA_IFINDEX, index))


def list_fdb(index: int) -> bytes:
    """Ask for the forwarding entries of a VTEP."""
    return message(RTM_GETNEIGH, NLM_F_DUMP, NEIGHBOUR.pack(AF_BRIDGE, index, 0, 0, 0))


def list_addresses(index: int = 0) -> bytes:
    """Ask for the addresses of one link, 0 for all links, of both families."""
    return message(RTM_GETADDR, NLM_F_DUMP, ADDRESS.pack(0, 0, 0, 0, index))


def list_routes(version: int, index: int = 0, protocol: int = 0, kind: int = 0) -> bytes:
    """Ask for the main table's routes of one IP version; of one link, protocol and type (RTN_…) unless they are 0."""
    body = ROUTE.pack(_FAMILY[version], 0, 0, 0, RT_TABLE_MAIN, protocol, 0, kind, 0) + u32(_RTA_TABLE, RT_TABLE_MAIN)
    return message(RTM_GETROUTE, NLM_F_DUMP, body + (u32(RTA_OIF, index) if index else b""))


def get_way(source: IPAddress, destination: IPAddress, inward: int) -> bytes:
    """Ask where a packet goes on to that comes in by the link of that index."""
    length = destination.max_prefixlen
    head = ROUTE.pack(_FAMILY[destination.version], length, length, 0, 0, 0, 0, 0, 0)
    ends = attribute(RTA_DST, destination.packed) + attribute(_RTA_SRC, source.packed)
    return message(RTM_GETROUTE, 0, head + ends + u32(_RTA_IIF, inward))


def get_route(destination: IPAddress) -> bytes:
    """Ask for the route by which packets to that address leave, with all its ways."""
    head = (_FAMILY[destination.version], destination.max_prefixlen, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    return message(RTM_GETROUTE, 0, ROUTE.pack(*head) + attribute(RTA_DST, destination.packed))
