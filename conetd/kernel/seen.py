"""Which links there are in a namespace, and how they are set. Reading only, and not on the path of an attach.

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
from pathlib import Path
from typing import Any

from conetd.errors import KernelError
from conetd.kernel import links, routes
from conetd.kernel.netlink import Netlink

ALIAS = "conetd:"
"""What the alias of every link of ours begins with."""

_LINK = 16  # bytes of ifinfomsg before the attributes
_ATTRIBUTE, _U32, _INDEX = (struct.Struct(form).unpack_from for form in ("=HH", "=I", "=i"))
_IFF_UP = 1
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
    for found, _ in labelled(socket):
        yield found


def labelled(socket: Netlink) -> Iterator[tuple[Label, bytes]]:
    """All links of the socket's namespace, each with the payload of its message."""
    for _, payload in socket.dump(links.list_links()):
        yield _label(payload), payload


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
    message = _decode(payload)
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


def has_port_mac(socket: Netlink, mac: str, index: int) -> bool:
    """Whether the bridge of this port knows for good that the MAC lives behind it."""
    payload = _get(socket, routes.get_fdb(mac, index, routes.NTF_MASTER))
    if payload is None:
        return False
    _, port, state, _, _ = routes.NEIGHBOUR.unpack_from(payload)
    return port == index and bool(state & routes.NUD_NOARP)


def _get(socket: Netlink, request: bytes) -> bytes | None:
    try:
        found = socket.dump(request)
    except KernelError as err:
        if err.errno in _GONE:
            return None
        raise
    return found[0][1] if found else None


def _decode(payload: bytes) -> Any:
    message = _message_class()(struct.pack("=IHHII", 16 + len(payload), 0, 0, 0, 0) + payload)
    message.decode()
    return message


@cache
def _message_class() -> Any:
    return import_module("pyroute2.netlink.rtnl.ifinfmsg").ifinfmsg


def preload() -> None:
    """Import what reading needs now, rather than at the first use."""
    _message_class()
