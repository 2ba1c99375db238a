"""What an attach costs at the least: the same work by hand, one batch each for the filter, the links and the disk.

The order is conetd's: commit, close, connect. The bridge has the settings conetd gives its own, targets have no IPv6,
and every container has one published port and two rules as conetd writes them, in one anonymous set. Nothing is
checked, watched or remembered, there is no locked port and no alias, and nobody is asked.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import sqlite3
import struct
from ipaddress import IPv4Address
from pathlib import Path

from bench.client import Failed
from bench.lab import Host, enter, inside, run
from conetd.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, attribute, message, nested, text

FIRST = int(IPv4Address("10.64.0.2"))
_GATEWAY = IPv4Address("10.64.0.1")
_SUBNET = "10.64.0.0/16"
_BRIDGE = "floor0"

_ACK, _CREATE, _EXCL, _APPEND = 0x4, 0x400, 0x200, 0x800
_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE = 16, 17, 20, 24
_UP = struct.pack("=BxHiII", 0, 0, 0, 1, 1)
_DOWN = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
_GROUP = 7
_SIOCGIFINDEX = 0x8933
_IFREQ = struct.Struct("=16si20x")

_TABLES = f"""
table inet floor {{
    set source4 {{ type ifname . ipv4_addr; }}
    map egress4 {{ type ifname . ipv4_addr : verdict; }}
    map published4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
    chain prerouting {{
        type filter hook prerouting priority raw;
        iifname "{_BRIDGE}" iifname . ip saddr != @source4 drop
    }}
    chain published {{
        type nat hook prerouting priority dstnat;
        dnat ip to meta l4proto . th dport map @published4
    }}
    chain forward {{
        type filter hook forward priority filter;
        ct state established,related accept
        iifname "{_BRIDGE}" iifname . ip saddr vmap @egress4
    }}
}}
table bridge floor {{
    set ports {{ type ifname; }}
    set port4 {{ type ifname . ether_addr . ipv4_addr; }}
    chain prerouting {{
        type filter hook prerouting priority filter;
        iifname @ports iifname . ether saddr . ip saddr != @port4 drop
    }}
}}
"""

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE containers (handle TEXT PRIMARY KEY, pid INTEGER, properties TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE attachments (handle TEXT PRIMARY KEY, lease TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE claims (claim TEXT PRIMARY KEY, handle TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE policies (handle TEXT PRIMARY KEY, document TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE host_ports (handle TEXT PRIMARY KEY, port INTEGER) STRICT, WITHOUT ROWID;
"""


class Floor:
    """The three sockets and files the work is done with, on a host of its own."""

    def __init__(self, host: Host, directory: Path) -> None:
        self._host = host
        self._numbers = itertools.count()
        directory.mkdir()
        self._db = sqlite3.connect(directory / "floor.sqlite", isolation_level=None)
        self._db.executescript(_SCHEMA)
        mac = "0a:c0:0a:40:00:01"
        settings = "forward_delay 0 mcast_snooping 0 vlan_default_pvid 0"
        run(
            host.pid,
            *("ip", "-batch", "-"),
            stdin=f"link add {_BRIDGE} address {mac} mtu 1500 type bridge {settings}\n"
            f"address add {_GATEWAY}/16 dev {_BRIDGE}\nlink set {_BRIDGE} mtu 1500 up\n",
        )
        with inside(host.pid):
            # ports, too, speak no IPv6 themselves; conetd says so to each, here it is inherited
            for name in (_BRIDGE, "default"):
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            self._links = _open(NETLINK_ROUTE)
            self._filter = _open(NETLINK_NETFILTER)
            self._bridge = socket.if_nametoindex(_BRIDGE)
        run(host.pid, "nft", "-f", "-", stdin=_TABLES)
        self._home = os.open(f"/proc/{host.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close what is open."""
        self._links.close()
        self._filter.close()
        self._db.close()
        os.close(self._home)

    def attach(self, pid: int) -> None:
        """Attach one namespace. The calling thread is in the host's."""
        number = next(self._numbers)
        ip = IPv4Address(FIRST + number).packed
        mac = b"\x0a\xc0" + ip
        port = f"fl{number}"
        self._commit(number, pid)
        _exchange(self._filter, _transaction(number, port, mac, ip), acks=1)
        target = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        enter(target)
        sysctl = os.open("/proc/sys/net/ipv6/conf/default/disable_ipv6", os.O_WRONLY | os.O_CLOEXEC)
        os.write(sysctl, b"1")
        os.close(sysctl)
        there = _open(NETLINK_ROUTE)
        enter(self._home)
        _exchange(self._links, [_pair(port, mac, target, self._bridge)], acks=1)
        index = _IFREQ.unpack(fcntl.ioctl(there, _SIOCGIFINDEX, _IFREQ.pack(b"eth0", 0)))[1]
        _exchange(there, _inside(index, ip), acks=4)
        there.close()
        os.close(target)

    def detach_latest(self, count: int) -> None:
        """Remove that many pairs; their elements and rows stay. Not measured."""
        last = next(self._numbers) - 1
        self._numbers = itertools.count(last + 1)
        marked = [_marked(f"fl{number}") for number in range(last - count + 1, last + 1)]
        group = message(_DELLINK, _ACK, _DOWN + _u32(27, _GROUP))
        _exchange(self._links, [*marked, group], acks=count + 1)

    def _commit(self, number: int, pid: int) -> None:
        handle, execute = f"c{number}", self._db.execute
        execute("BEGIN IMMEDIATE")
        execute("INSERT INTO containers VALUES (?, ?, '{}')", (handle, pid))
        execute("INSERT INTO attachments VALUES (?, '{}')", (handle,))
        execute("INSERT INTO claims VALUES (?, ?)", (f"ip:{number}", handle))
        execute("INSERT INTO claims VALUES (?, ?)", (f"mac:{number}", handle))
        execute("INSERT INTO policies VALUES (?, '{}')", (handle,))
        execute("INSERT INTO host_ports VALUES (?, ?)", (handle, number))
        execute("COMMIT")


# Links and addresses


def _open(protocol: int) -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)


def _exchange(sock: socket.socket, messages: list[bytes], acks: int) -> None:
    sock.send(b"".join(messages))
    while acks:
        received = sock.recv(1 << 16)
        offset = 0
        while offset < len(received):
            size, kind = struct.unpack_from("=IH", received, offset)
            if kind == 2:
                (code,) = struct.unpack_from("=i", received, offset + 16)
                if code:
                    raise Failed(f"the kernel refused a message of the floor: {os.strerror(-code)}")
                acks -= 1
            offset += (size + 3) & ~3


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _pair(port: str, mac: bytes, target: int, bridge: int) -> bytes:
    peer = _DOWN + text(3, "eth0") + attribute(1, mac) + _u32(4, 1500) + _u32(28, target)
    info = nested(18, text(1, "veth"), nested(2, nested(1, peer)))
    return message(_NEWLINK, _ACK | _CREATE | _EXCL, _UP + text(3, port) + _u32(4, 1500) + _u32(10, bridge) + info)


def _inside(index: int, ip: bytes) -> list[bytes]:
    new = _ACK | _CREATE | _EXCL
    address = struct.pack("=BBBBI", 2, 16, 0, 0, index) + attribute(2, ip) + attribute(1, ip)
    route = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 157, 0, 1, 0) + _u32(4, index) + attribute(5, _GATEWAY.packed)
    return [
        message(_NEWLINK, _ACK, struct.pack("=BxHiII", 0, 0, 1, 1, 1)),
        message(_NEWADDR, new, address),
        message(_NEWLINK, _ACK, struct.pack("=BxHiII", 0, 0, index, 1, 1)),
        message(_NEWROUTE, new, route),
    ]


def _marked(port: str) -> bytes:
    return message(_NEWLINK, _ACK, _DOWN + text(3, port) + _u32(27, _GROUP))


# The filter. Numbers are those of linux/netfilter/nf_tables.h.

_INET, _BRIDGE_FAMILY = 1, 7
_NEWCHAIN, _NEWRULE, _NEWSET, _NEWSETELEM = 3, 6, 9, 12
_ANONYMOUS = 0x1 | 0x2 | 0x4 | 0x80  # of constant intervals, concatenated
_GOTO, _ACCEPT = -4, 1


def _nft(kind: int, flags: int, family: int, *attributes: bytes) -> bytes:
    return message(10 << 8 | kind, flags, struct.pack("=BBH", family, 0, 0) + b"".join(attributes))


def _b32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">i", value))


_BEGIN = message(16, 0, struct.pack(">BBH", 0, 0, 10))
_END = message(17, 0, struct.pack(">BBH", 0, 0, 10))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))


def _verdict(code: int) -> bytes:
    return _expression("immediate", _b32(1, 0), nested(2, nested(2, _b32(1, code))))


def _element(key: bytes, data: bytes = b"", end: bytes = b"") -> bytes:
    body = nested(1, attribute(1, key))
    if end:
        body += nested(10, attribute(1, end))
    return nested(1, body + (nested(2, data) if data else b""))


def _elements(family: int, name: str, *elements: bytes, flags: int = 0) -> bytes:
    return _nft(_NEWSETELEM, _CREATE | _EXCL | flags, family, text(1, "floor"), text(2, name), nested(3, *elements))


_IPV4 = _expression("meta", _b32(2, 15), _b32(1, 8)) + _expression(
    "cmp", _b32(1, 8), _b32(2, 0), nested(3, attribute(1, b"\x02"))
)
_PROTOCOL = _expression("meta", _b32(2, 16), _b32(1, 8))
_DESTINATION = _expression("payload", _b32(1, 9), _b32(2, 1), _b32(3, 16), _b32(4, 4))
_PORT = _expression("payload", _b32(1, 10), _b32(2, 2), _b32(3, 2), _b32(4, 2))
_LOOKUP = _expression("lookup", text(1, "__set%d"), _b32(2, 8), _b32(4, 1))
_ALLOWED = _IPV4 + _PROTOCOL + _DESTINATION + _PORT + _LOOKUP + _verdict(_ACCEPT)
_KEY_SIZES = nested(2, *(nested(1, _b32(1, size)) for size in (1, 4, 2)))
_SET = (
    text(1, "floor"),
    text(2, "__set%d"),
    _b32(3, _ANONYMOUS),
    _b32(4, (12 << 6 | 7) << 6 | 13),
    _b32(5, 12),
    nested(9, _b32(1, 2), _KEY_SIZES),
    _b32(10, 1),
)


def _transaction(number: int, port: str, mac: bytes, ip: bytes) -> list[bytes]:
    chain = f"e-{number}"
    bridge, link = _BRIDGE.encode().ljust(16, b"\0"), port.encode().ljust(16, b"\0")
    allowed = [
        _element(b"\x06\0\0\0" + ip + b"\x01\xbb\0\0", end=b"\x06\0\0\0" + ip + b"\x01\xbb\0\0"),
        _element(b"\x11\0\0\0" + ip + b"\0\x35\0\0", end=b"\x11\0\0\0" + ip + b"\0\x35\0\0"),
    ]
    where = (text(1, "floor"), text(2, "__set%d"), _b32(4, 1))
    rule = (text(1, "floor"), text(2, chain))
    service = b"\x06\0\0\0" + struct.pack(">H2x", number + 1)
    return [
        _BEGIN,
        _nft(_NEWCHAIN, _CREATE | _EXCL, _INET, text(1, "floor"), text(3, chain)),
        _nft(_NEWSET, _CREATE | _EXCL, _INET, *_SET),
        _nft(_NEWSETELEM, _CREATE, _INET, *where, nested(3, *allowed)),
        _nft(_NEWRULE, _CREATE | _APPEND, _INET, *rule, nested(4, _ALLOWED)),
        _nft(_NEWRULE, _CREATE | _APPEND, _INET, *rule, nested(4, _verdict(_ACCEPT))),
        _elements(_INET, "source4", _element(bridge + ip)),
        _elements(_INET, "egress4", _element(bridge + ip, nested(2, _b32(1, _GOTO), text(2, chain)))),
        _elements(_INET, "published4", _element(service, attribute(1, ip + b"\x1f\x90\0\0"))),
        _elements(_BRIDGE_FAMILY, "ports", _element(link)),
        # the only one that asks for an acknowledgement: a batch is taken as a whole or not at all
        _elements(_BRIDGE_FAMILY, "port4", _element(link + mac + b"\0\0" + ip), flags=_ACK),
        _END,
    ]
