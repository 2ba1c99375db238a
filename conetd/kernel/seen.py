"""What the kernel holds of one namespace, in the words of plans. Reading only, and not on the path of an attach.

pyroute2 reads the messages; it takes a quarter of a second to import, so that happens at the first use.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from conetd.errors import KernelError
from conetd.kernel import links, routes
from conetd.kernel.netlink import Netlink
from conetd.plan import Address, FdbEntry, Neighbour, Route, Side

ALIAS = "conetd:"
"""What the alias of every link of ours begins with."""

_LINK = 16  # bytes of ifinfomsg before the attributes
_ATTRIBUTE, _U32, _INDEX = (struct.Struct(form).unpack_from for form in ("=HH", "=I", "=i"))
_IFF_UP = 1
_RTN_UNICAST = 1
_GONE = {errno.ENODEV, errno.ENOENT, errno.ESRCH}
_DEVICES, _DEVICES_HEAD = "/proc/thread-self/net/dev", 2  # lines of heading


@dataclass(frozen=True, slots=True)
class Label:
    """Who a link is and whose."""

    name: str
    index: int
    group: int
    alias: str

    @property
    def ours(self) -> bool:
        """Whether conetd made the link: it is in one of our groups, or its alias says so."""
        return self.group in (links.GROUP_OURS, links.GROUP_CLOSED, links.GROUP_GOING) or self.alias.startswith(ALIAS)


@dataclass(frozen=True, slots=True)
class SeenLink:
    """A link with everything a plan may say of it. `master` and `peer` are indexes, 0 for none."""

    label: Label
    kind: str
    mac: str
    mtu: int
    up: bool
    master: int
    peer: int
    port: tuple[int, int, int] | None  # learning, locked, hairpin
    data: dict[str, Any]


def names() -> frozenset[str]:
    """The names of all links of the calling thread's namespace; the cheapest way to see that one is gone.

    Raises KernelError.
    """
    # A dump of 1000 links takes 20 ms and the lock that every attach needs; this takes one, and no lock.
    try:
        lines = Path(_DEVICES).read_bytes().splitlines()
    except OSError as err:
        raise KernelError("read", _DEVICES, err.errno or 0) from err
    return frozenset(os.fsdecode(line.partition(b":")[0].strip()) for line in lines[_DEVICES_HEAD:])


def labels(socket: Netlink) -> Iterator[Label]:
    """All links of the socket's namespace. Reads no more of each message than it must."""
    for _, payload in socket.dump(links.list_links()):
        yield _label(payload)


def label(socket: Netlink, name: str) -> Label | None:
    """The link of that name, None if there is none."""
    payload = _get(socket, links.get_link(name))
    return None if payload is None else _label(payload)


def _label(payload: bytes) -> Label:
    # A thousand links of thirty attributes each: no slice is made of any but the three.
    name = alias = ""
    group = 0
    offset, end = _LINK, len(payload)
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE(payload, offset)
        if kind == links.IFLA_IFNAME:
            name = payload[offset + 4 : offset + size - 1].decode()
        elif kind == links.IFLA_IFALIAS:
            alias = payload[offset + 4 : offset + size].rstrip(b"\0").decode(errors="replace")
        elif kind == links.IFLA_GROUP:
            group = _U32(payload, offset + 4)[0]
        offset += (size + 3) & ~3 or 4
    return Label(name, _INDEX(payload, 4)[0], group, alias)


def link(socket: Netlink, name: str) -> SeenLink | None:
    """The link of that name in full, None if there is none."""
    payload = _get(socket, links.get_link(name))
    if payload is None:
        return None
    message = _decode("ifinfmsg", payload)
    info = message.get_attr("IFLA_LINKINFO")
    kind = data = slave = None
    if info is not None:
        kind, data = info.get_attr("IFLA_INFO_KIND"), info.get_attr("IFLA_INFO_DATA")
        if info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge":
            slave = info.get_attr("IFLA_INFO_SLAVE_DATA")
    port = None
    if slave is not None:
        wanted = ("IFLA_BRPORT_LEARNING", "IFLA_BRPORT_LOCKED", "IFLA_BRPORT_MODE")
        learning, locked, hairpin = (int(slave.get_attr(name) or 0) for name in wanted)
        port = (learning, locked, hairpin)
    return SeenLink(
        label=_label(payload),
        kind=kind or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        master=message.get_attr("IFLA_MASTER") or 0,
        peer=message.get_attr("IFLA_LINK") or 0,
        port=port,
        data=dict(data["attrs"]) if data is not None and kind in ("bridge", "vxlan") else {},
    )


def addresses(socket: Netlink, index: int, name: str, side: Side) -> dict[Address, bool]:
    """The addresses of one link, and of each whether it carries our mark."""
    found = {}
    for _, payload in socket.dump(routes.list_addresses(index)):
        message = _decode("ifaddrmsg", payload)
        value = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if message["index"] == index and value:
            interface = ip_interface(f"{value}/{message['prefixlen']}")
            found[Address(name, interface, side)] = message.get_attr("IFA_PROTO") == routes.PROTOCOL
    return found


def link_routes(socket: Netlink, index: int, name: str, side: Side, version: int) -> dict[Route, bool]:
    """The main table's unicast routes by one link, and of each whether it carries our protocol number."""
    return {
        route: protocol == routes.PROTOCOL
        for route, oif, protocol in _routes(socket, routes.list_routes(version, index), version, name, side)
        if oif == index
    }


def routes_of_ours(socket: Netlink, version: int, side: Side) -> list[tuple[Route, int]]:
    """Our routes of one IP version by any link, with the link's index; their `link` is empty."""
    request = routes.list_routes(version, protocol=routes.PROTOCOL)
    found = _routes(socket, request, version, "", side)
    return [(route, oif) for route, oif, protocol in found if protocol == routes.PROTOCOL]


def _routes(socket: Netlink, request: bytes, version: int, name: str, side: Side) -> Iterator[tuple[Route, int, int]]:
    for _, payload in socket.dump(request):
        message = _decode("rtmsg", payload)
        if message["type"] != _RTN_UNICAST or message["table"] != routes.RT_TABLE_MAIN:
            continue
        destination = message.get_attr("RTA_DST") or ("0.0.0.0" if version == 4 else "::")
        via, source = message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_PREFSRC")
        route = Route(
            ip_network(f"{destination}/{message['dst_len']}"),
            name,
            via=ip_address(via) if via else None,
            source=ip_address(source) if source else None,
            onlink=bool(message["flags"] & routes.RTNH_F_ONLINK),
            side=side,
        )
        yield route, message.get_attr("RTA_OIF") or 0, message["proto"]


def has_neighbour(socket: Netlink, wanted: Neighbour, index: int) -> bool:
    """Whether exactly this permanent neighbour is there."""
    entry = _neighbour(socket, routes.get_neighbour(wanted.address, index))
    return entry is not None and _is(entry, routes.NUD_PERMANENT, wanted.mac)


def has_fdb(socket: Netlink, wanted: FdbEntry, index: int) -> bool:
    """Whether a VTEP sends frames for that MAC to that host, for good."""
    entry = _neighbour(socket, routes.get_fdb(wanted.mac, index, routes.NTF_SELF))
    return (
        entry is not None
        and _is(entry, routes.NUD_PERMANENT, wanted.mac)
        and entry.get_attr("NDA_DST") == str(wanted.to)
    )


def has_port_mac(socket: Netlink, mac: str, index: int) -> bool:
    """Whether the bridge of this port knows for good that the MAC lives behind it."""
    entry = _neighbour(socket, routes.get_fdb(mac, index, routes.NTF_MASTER))
    return entry is not None and entry["ifindex"] == index and _is(entry, routes.NUD_NOARP, mac)


def _is(entry: Any, state: int, mac: str) -> bool:
    return bool(entry["state"] & state) and entry.get_attr("NDA_LLADDR") == mac.lower()


def _neighbour(socket: Netlink, request: bytes) -> Any | None:
    payload = _get(socket, request)
    if payload is None:
        return None
    return _decode("ndmsg", payload)


def _get(socket: Netlink, request: bytes) -> bytes | None:
    try:
        found = socket.dump(request)
    except KernelError as err:
        if err.errno in _GONE:
            return None
        raise
    return found[0][1] if found else None


def _decode(kind: str, payload: bytes) -> Any:
    message = _message_class(kind)(struct.pack("=IHHII", 16 + len(payload), 0, 0, 0, 0) + payload)
    message.decode()
    return message


@cache
def _message_class(kind: str) -> Any:
    return getattr(import_module(f"pyroute2.netlink.rtnl.{kind}"), kind)


def preload() -> None:
    """Import what reading needs now, rather than at the first use."""
    for kind in ("ifinfmsg", "ifaddrmsg", "rtmsg", "ndmsg"):
        _message_class(kind)
