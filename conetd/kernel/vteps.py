"""Which VTEP or program keeps the kernel from making or starting another VTEP."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from conetd.errors import KernelError
from conetd.kernel import links
from conetd.kernel.holdings import values
from conetd.kernel.netlink import Netlink
from conetd.plan import Vxlan

_LINK = 16  # bytes of ifinfomsg before the attributes
_VXLAN = b"vxlan\0"


@dataclass(frozen=True, slots=True)
class SeenVtep:
    """A VTEP of anybody's: its name, VNI and UDP port, and whether it carries group policy marks."""

    name: str
    vni: int
    port: int
    gbp: bool


def in_the_way(socket: Netlink, wanted: Vxlan, code: int) -> str:
    """What stands in the way of that VTEP, as the kernel refused it with the errno `code`; "" where it is not told."""
    if code not in (errno.EEXIST, errno.EADDRINUSE):
        return ""
    others = [one for one in _vteps(socket) if one.name != wanted.name and one.port == wanted.port]
    for one in others:
        if one.vni == wanted.vni:
            return f"VNI {wanted.vni} on UDP port {wanted.port} is taken by link {one.name}"
    if code == errno.EEXIST:
        return ""  # a link of the wanted one's own name
    for one in others:
        settings = ("without" if wanted.gbp else "with") + " group policy marks" if one.gbp is not wanted.gbp else ""
        return f"UDP port {wanted.port} is held by link {one.name}, a VTEP {settings or 'with other settings'}"
    return f"UDP port {wanted.port} is held by another program"


def _vteps(socket: Netlink) -> Iterator[SeenVtep]:
    try:
        found = socket.dump(links.list_links("vxlan"))
    except KernelError:
        return  # what the kernel said first is the error to tell
    for _, payload in found:
        told = values(payload, _LINK)
        info = values(told.get(links.IFLA_LINKINFO, b""), 0)
        if info.get(links.INFO_KIND) == _VXLAN:
            data = values(info.get(links.INFO_DATA, b""), 0)
            yield SeenVtep(
                told[links.IFLA_IFNAME].rstrip(b"\0").decode(),
                struct.unpack("=I", data.get(links.VXLAN_ID, bytes(4)))[0],
                struct.unpack("!H", data.get(links.VXLAN_PORT, bytes(2)))[0],
                links.VXLAN_GBP in data,
            )
