"""How links are said to the kernel: the rtnetlink messages that make, settle, mark and delete them."""

from __future__ import annotations

import struct
from functools import lru_cache

from conetd.kernel.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, attribute, message, nested, text
from conetd.plan import Bridge, Link, Veth, Vxlan

# linux/rtnetlink.h, linux/if_link.h, linux/veth.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 4, 10, 18, 20
IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 26, 27, 28, 29
INFO_KIND, INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA, _VETH_INFO_PEER = 1, 2, 4, 5, 1
_BR_FORWARD_DELAY, _BR_STP_STATE, _BR_MCAST_SNOOPING, _BR_VLAN_DEFAULT_PVID = 1, 5, 23, 39
_BRPORT_MODE, _BRPORT_LEARNING, _BRPORT_LOCKED = 4, 8, 39  # mode is hairpin
VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, VXLAN_PORT, _VXLAN_LOCAL6, VXLAN_GBP = 1, 4, 7, 15, 17, 23
_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_AF_INET6 = 10
_IFF_UP = 1
_SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS: counters are most of a link's message
_IPV6_MIN_MTU = 1280  # below it a link has no IPv6 of its own
_MTU_MAX = 65535

# Link groups (`ip link show group N`). A link is given the first at birth, in the very message that makes it, so that
# even one without its alias yet is known as ours; the second marks what is about to go. From the third on they are
# drawn by lot, one for each deletion by group.
GROUP_OURS = 0x636E6574
GROUP_CLOSED = GROUP_OURS + 1
GROUP_GOING = GROUP_OURS + 2
GROUPS_GOING = 1 << 28

ALIAS_MAX = 255  # bytes; IFALIASZ is 256 with the NUL

_INFO = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_U32 = struct.Struct("=I")


def _info(index: int = 0, *, up: bool = False) -> bytes:
    return _INFO.pack(0, 0, index, _IFF_UP, _IFF_UP) if up else _INFO.pack(0, 0, index, 0, 0)


def _u8(kind: int, value: int) -> bytes:
    return attribute(kind, bytes((value,)))


def u32(kind: int, value: int) -> bytes:
    """An attribute that holds a 32-bit number of the host's byte order."""
    return attribute(kind, _U32.pack(value))


@lru_cache(maxsize=4096)
def mac_bytes(mac: str) -> bytes:
    """The six bytes of a MAC address written with colons."""
    return bytes.fromhex(mac.replace(":", ""))


_VETH_KIND = text(INFO_KIND, "veth")
_OURS = u32(IFLA_GROUP, GROUP_OURS)
_PORT_SETTINGS = nested(
    IFLA_LINKINFO,
    text(_INFO_SLAVE_KIND, "bridge"),
    nested(_INFO_SLAVE_DATA, _u8(_BRPORT_LEARNING, 0), _u8(_BRPORT_LOCKED, 1), _u8(_BRPORT_MODE, 1)),
)
# A port of a bridge speaks no IPv6 itself: no link-local address, no router solicitation into the container.
_PORT_SILENCE = nested(IFLA_AF_SPEC, nested(_AF_INET6, _u8(_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE)))
_BRIDGE_WANTED = (u32(_BR_FORWARD_DELAY, 0), u32(_BR_STP_STATE, 0), _u8(_BR_MCAST_SNOOPING, 0))
# Without a default VLAN a port costs no VLAN entries, and each forwarding entry is there once, not twice.
_NO_DEFAULT_VLAN = attribute(_BR_VLAN_DEFAULT_PVID, struct.pack("=H", 0))
_BRIDGE_KIND = text(INFO_KIND, "bridge")
_BRIDGE_BIRTH = nested(IFLA_LINKINFO, _BRIDGE_KIND, nested(INFO_DATA, *_BRIDGE_WANTED, _NO_DEFAULT_VLAN))
_BRIDGE_SETTINGS = nested(IFLA_LINKINFO, _BRIDGE_KIND, nested(INFO_DATA, *_BRIDGE_WANTED))


def create_link(link: Link, netns_fd: int, master: int) -> bytes:
    """Make the link, down, in the group of ours; a veth's peer is born in the namespace of `netns_fd`.

    `master` is the index of a veth's bridge, 0 for none. Fails with EEXIST when either name is taken.
    """
    if isinstance(link, Veth):
        return _create_veth(link, netns_fd, master)
    if isinstance(link, Bridge):
        # A bridge follows the smallest MTU of its ports until somebody changes its own; setting the one it has
        # already is no change. So it is born one off and settled to the right one.
        mtu = link.mtu + 1 if link.mtu < _MTU_MAX else link.mtu - 1
        info = _BRIDGE_BIRTH
    else:
        mtu = link.mtu
        info = nested(IFLA_LINKINFO, text(INFO_KIND, "vxlan"), _vxlan_data(link))
    return message(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK,
        _info()
        + text(IFLA_IFNAME, link.name)
        + attribute(IFLA_ADDRESS, mac_bytes(link.mac))
        + u32(IFLA_MTU, mtu)
        + _OURS
        + info,
    )


def _create_veth(link: Veth, netns_fd: int, master: int) -> bytes:
    mtu = u32(IFLA_MTU, link.mtu)
    peer = (
        _info()
        + text(IFLA_IFNAME, link.peer)
        + attribute(IFLA_ADDRESS, mac_bytes(link.mac))
        + mtu
        + u32(IFLA_NET_NS_FD, netns_fd)
    )
    return message(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK,
        _info()
        + text(IFLA_IFNAME, link.name)
        + mtu
        + _OURS
        + (u32(IFLA_MASTER, master) if master else b"")
        + (attribute(IFLA_ADDRESS, mac_bytes(link.host_mac)) if link.host_mac else b"")
        + nested(IFLA_LINKINFO, _VETH_KIND, nested(INFO_DATA, nested(_VETH_INFO_PEER, peer))),
    )


def _vxlan_data(link: Vxlan) -> bytes:
    return nested(
        INFO_DATA,
        u32(VXLAN_ID, link.vni),
        attribute(_VXLAN_LOCAL if link.local.version == 4 else _VXLAN_LOCAL6, link.local.packed),
        attribute(VXLAN_PORT, struct.pack("!H", link.port)),
        _u8(_VXLAN_LEARNING, 0),
        attribute(VXLAN_GBP, b"") if link.gbp else b"",
    )


def cut_alias(alias: str) -> str:
    """As much of the alias as the kernel stores: whole characters of at most 255 bytes."""
    return alias.encode()[:ALIAS_MAX].decode(errors="ignore")


def settle_link(link: Link, index: int, alias: str, *, ipv6: bool) -> bytes:
    """Give the link at `index` its alias and settings and bring it up. `ipv6`: whether the kernel has any.

    The settings of a bridge port are in force before the link is up.
    """
    payload = _info(index, up=True)
    if alias:
        payload += attribute(IFLA_IFALIAS, cut_alias(alias).encode())
    if isinstance(link, Veth):
        if link.bridge is not None:
            payload += _PORT_SETTINGS
            if ipv6 and link.mtu >= _IPV6_MIN_MTU:
                payload += _PORT_SILENCE
    elif isinstance(link, Bridge):
        payload += u32(IFLA_MTU, link.mtu) + _BRIDGE_SETTINGS
    return message(RTM_NEWLINK, NLM_F_ACK, payload)


def correct_link(link: Link, index: int, master: int) -> bytes:
    """Give a link that is there already the MTU, MAC, group and bridge it should have been born with."""
    mac = link.host_mac if isinstance(link, Veth) else link.mac
    return message(
        RTM_NEWLINK,
        NLM_F_ACK,
        _info(index)
        + u32(IFLA_MTU, link.mtu)
        + _OURS
        + (attribute(IFLA_ADDRESS, mac_bytes(mac)) if mac else b"")
        + (u32(IFLA_MASTER, master) if isinstance(link, Veth) else b""),
    )


def bring_up(index: int) -> bytes:
    """Bring the link up."""
    return message(RTM_NEWLINK, NLM_F_ACK, _info(index, up=True))


def set_group(group: int, *, name: str = "", index: int = 0) -> bytes:
    """Put a link, given by its name or its index, into a group."""
    which = text(IFLA_IFNAME, name) if name else b""
    return message(RTM_NEWLINK, NLM_F_ACK, _info(index) + which + u32(IFLA_GROUP, group))


def delete_link(index: int) -> bytes:
    """Delete one link."""
    return message(RTM_DELLINK, NLM_F_ACK, _info(index))


def delete_group(group: int) -> bytes:
    """Delete every link of a group, whoever made it."""
    return message(RTM_DELLINK, NLM_F_ACK, _info() + u32(IFLA_GROUP, group))


def get_link(name: str) -> bytes:
    """Ask for one link by its name."""
    return message(RTM_GETLINK, 0, _info() + text(IFLA_IFNAME, name) + u32(IFLA_EXT_MASK, _SKIP_STATS))


def get_link_at(index: int) -> bytes:
    """Ask for one link by its index."""
    return message(RTM_GETLINK, 0, _info(index) + u32(IFLA_EXT_MASK, _SKIP_STATS))


def list_links(kind: str = "") -> bytes:
    """Ask for all links, without counters; only for those of that kind where the kernel knows it."""
    which = nested(IFLA_LINKINFO, text(INFO_KIND, kind)) if kind else b""
    return message(RTM_GETLINK, NLM_F_DUMP, _info() + u32(IFLA_EXT_MASK, _SKIP_STATS) + which)
