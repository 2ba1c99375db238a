"""What the tests of the fast path share: connections through the tunnel, who takes them up, what the filter sees."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

from pytest_netns import Netns

from conetd.kernel.busy import Busy
from conetd.kernel.conntrack import Conntrack, TcpEnds
from conetd.kernel.netlink import NETLINK_ROUTE, Netlink
from conetd.model import IPAddress
from tests.kernel.traffic import PATIENCE_S, TCP, checksum, ip_packet
from tests.kernel.tunnel_lab import Container, TunnelHost, TunnelLab

PORT = 8090
AT_LEAST = 40
MANY, FEW = 60, 4  # words each way: above and below that
FAR_BEYOND = 64  # megabytes: twice the largest window that is usual
FIN, SYN, RST, ACK = 1, 2, 4, 16
VERSIONS = {4: socket.AF_INET, 6: socket.AF_INET6}
_MEGABYTE = 1 << 20


class Connection:
    """A TCP connection between two namespaces: `near` has opened it, `far` has accepted it."""

    def __init__(self, client: Netns, server: Netns, to: IPAddress, port: int = PORT, source_port: int = 0) -> None:
        version = VERSIONS[to.version]
        with (
            server.call(socket.create_server, ("", PORT), family=version) as listening,
            client.call(socket.socket, version, socket.SOCK_STREAM) as near,
        ):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            near.bind(("", source_port))
            for one in (listening, near):
                one.settimeout(PATIENCE_S)
            near.connect((str(to), port))
            self.far, _ = listening.accept()
            self.near = near.dup()
        for one in (self.near, self.far):
            one.settimeout(PATIENCE_S)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        source, destination = self.near.getsockname(), self.near.getpeername()
        self.ports: tuple[int, int] = source[1], destination[1]
        """Those of the near end and of the far end."""
        self.ends: TcpEnds = (ip_address(source[0]), source[1], ip_address(destination[0]), destination[1])
        """As segments from the near end have them."""

    def talk(self, words: int = MANY) -> None:
        """So many words there, and as many back, each in a segment of its own."""
        for number in range(words):
            for sender, receiver in ((self.near, self.far), (self.far, self.near)):
                word = struct.pack(">I", number)
                sender.sendall(word)
                assert exactly(receiver, len(word)) == word

    def carry(self, megabytes: int) -> None:
        """Send much from the near end to the far end."""
        with Stream(self) as stream:
            stream.wait(megabytes)

    def break_off(self) -> None:
        """Have the near end end it at once."""
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.near.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.near.close()
        self.far.close()


class Stream:
    """Sends from the near end to the far end, as fast as it can, until the block ends; all must have arrived then."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stop = threading.Event()
        self._arrived = 0
        self._threads = ThreadPoolExecutor(max_workers=2)

    def wait(self, megabytes: int) -> None:
        """Return when so much more has arrived."""
        wanted = self._arrived + megabytes * _MEGABYTE
        until(lambda: self._arrived >= wanted, "the stream goes on")

    def _send(self) -> bytes:
        sent, body, number = hashlib.sha256(), random.Random(1).randbytes(_MEGABYTE - 4), 0
        while not self._stop.is_set():
            chunk = struct.pack(">I", number) + body
            sent.update(chunk)
            self._connection.near.sendall(b"more" + chunk)
            number += 1
        self._connection.near.sendall(b"last")
        return sent.digest()

    def _receive(self) -> bytes:
        received = hashlib.sha256()
        while exactly(self._connection.far, 4) == b"more":
            received.update(exactly(self._connection.far, _MEGABYTE))
            self._arrived += _MEGABYTE
        return received.digest()

    def __enter__(self) -> Stream:
        self._sent, self._received = (self._threads.submit(one) for one in (self._send, self._receive))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        assert self._sent.result() == self._received.result()


def exactly(sock: socket.socket, length: int) -> bytes:
    """So many bytes."""
    found = bytearray()
    while len(found) < length:
        part = sock.recv(length - len(found))
        assert part, "the connection has ended"
        found += part
    return bytes(found)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that should come."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@contextmanager
def watching(host: TunnelHost) -> Iterator[Busy]:
    """Who finds out what is busy on a host."""
    busy = Busy(host.backend.fast_path, host.netns.call(Netlink, NETLINK_ROUTE), host.netns.call(Conntrack))
    try:
        yield busy
    finally:
        busy.close()


def look(host: TunnelHost, busy: Busy) -> None:
    """Begin to look at the tunnel."""
    assert host.netns.call(busy.look, ["cx0"])


def take_up(host: TunnelHost, busy: Busy, at_least: int = AT_LEAST) -> int:
    """End looking; how many directions were taken up."""
    return host.netns.call(busy.take_up, at_least)


def raised(host: TunnelHost, connection: Connection) -> int:
    """Have a connection talk while a host looks; how many of its directions were taken up."""
    with watching(host) as busy:
        look(host, busy)
        connection.talk()
        return take_up(host, busy)


@contextmanager
def on_fast_path(tunnel: TunnelLab, family: int, *hosts: TunnelHost) -> Iterator[Connection]:
    """A connection that c has opened to a, both directions on the fast path of these hosts; of a's if none is named."""
    with Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection:
        for host in hosts or (tunnel.one,):
            assert raised(host, connection) == 2
        yield connection


class Gauge:
    """Counts at a host's forward hook, before our filter, in a table of somebody else's."""

    def __init__(self, netns: Netns) -> None:
        self._netns = netns

    def _read(self, name: str) -> int:
        for one in self._netns.json("nft", "-j", "list", "counters", "table", "inet", "gauge")["nftables"]:
            if one.get("counter", {}).get("name") == name:
                return int(one["counter"]["packets"])
        raise AssertionError(f"no counter {name}")

    @property
    def segments(self) -> int:
        """Of TCP, those that neither begin nor end a connection."""
        return self._read("segments")

    @property
    def edges(self) -> int:
        """Those that do."""
        return self._read("edges")

    @property
    def strays(self) -> int:
        """What is of no connection, and no beginning of one."""
        return self._read("strays")

    @property
    def datagrams(self) -> int:
        """Of UDP."""
        return self._read("datagrams")


_GAUGE = """
table inet gauge {
    counter segments {}
    counter edges {}
    counter strays {}
    counter datagrams {}
    chain c { type filter hook forward priority -10;
        ct state invalid counter name strays
        tcp flags & (fin | syn | rst) == 0 counter name segments
        tcp flags & (fin | syn | rst) != 0 counter name edges
        meta l4proto udp counter name datagrams
    }
}
"""


@contextmanager
def gauge(host: TunnelHost) -> Iterator[Gauge]:
    """Count what a host forwards meanwhile."""
    host.netns.run("nft", "-f", "-", input=_GAUGE)
    try:
        yield Gauge(host.netns)
    finally:
        host.netns.run("nft", "delete", "table", "inet", "gauge")


def tables(host: TunnelHost) -> set[str]:
    """Those of the fast path that are there."""
    listed = host.netns.json("nft", "-j", "list", "tables")["nftables"]
    found = {f"{one['table']['family']} {one['table']['name']}" for one in listed if "table" in one}
    return found & {"netdev conetd", "inet conetd_sample"}


def elements(host: TunnelHost, family: int) -> list[dict[str, Any]]:
    """What is on the fast path of a host, as nft shows it: `val`, `expires`."""
    if "netdev conetd" not in tables(host):
        return []
    (found,) = [
        one["map"]
        for one in host.netns.json("nft", "-j", "list", "map", "netdev", "conetd", f"fast{family}")["nftables"]
        if "map" in one
    ]
    return [pair[0]["elem"] for pair in found.get("elem", ())]


def index(host: TunnelHost, link: str) -> int:
    """The number of a link."""
    return host.netns.call(socket.if_nametoindex, link)


def tracked(host: TunnelHost, ports: tuple[int, int]) -> tuple[str, int]:
    """The state of a connection as a host tracks it, and after how many seconds of silence it is forgotten."""
    wanted = "sport={} dport={} ".format(*ports)
    for family in ("ipv4", "ipv6"):
        for line in host.netns.run("conntrack", "-L", "-p", "tcp", "-f", family).stdout.splitlines():
            if wanted in line:
                words = line.split()
                return words[3], int(words[2])
    return "", 0


def forget(host: TunnelHost, one: Container) -> int:
    """End the connections of a container; how many there were."""
    with host.netns.call(Conntrack) as table:
        return table.delete(table.flows_of(list(one.addresses.values())))


class Wire:
    """What arrives on a container's interface, as it is."""

    def __init__(self, netns: Netns) -> None:
        self._socket = netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind(("eth0", 3))

    def with_word(self, word: bytes) -> bytes:
        """The next frame with these bytes in it."""
        self._socket.settimeout(PATIENCE_S)
        while word not in (frame := self._socket.recv(4096)):
            pass
        return frame

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def hops(frame: bytes) -> int:
    """How many hops a packet has left."""
    return frame[14 + 8] if frame[12:14] == b"\x08\0" else frame[14 + 7]


def segment(
    source: IPAddress,
    to: IPAddress,
    ports: tuple[int, int],
    word: bytes,
    *,
    flags: int = ACK,
    numbers: tuple[int, int] = (1, 1),
) -> bytes:
    """A TCP segment with its headers."""
    header = struct.pack(">HHIIBBHHH", *ports, *numbers, 5 << 4, flags, 1024, 0, 0)
    length = struct.pack(">II" if source.version == 6 else ">HH", *_lengths(source.version, 20 + len(word)))
    summed = checksum(source.packed + to.packed + length + header + word)
    return ip_packet(source, to, TCP, header[:16] + struct.pack(">H", summed) + header[18:] + word)


def numbers(frame: bytes) -> tuple[int, int]:
    """Sequence number and acknowledged number of a segment."""
    start = 14 + (20 if frame[12:14] == b"\x08\0" else 40)
    seq, ack = struct.unpack_from(">II", frame, start + 4)
    return seq, ack


def with_hops(packet: bytes, left: int) -> bytes:
    """The packet with so many hops left."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes((left,)) + packet[8:]
    return _summed(packet[:8] + bytes((left,)) + packet[9:])


def first_part(packet: bytes) -> bytes:
    """The packet as the first fragment of a longer one."""
    if packet[0] >> 4 == 4:
        return _summed(packet[:6] + b"\x20\0" + packet[8:])
    length = struct.pack(">H", len(packet) - 40 + 8)
    fragment = bytes((packet[6], 0)) + struct.pack(">HI", 1, 7)  # at the beginning, with more to come
    return packet[:4] + length + b"\x2c" + packet[7:40] + fragment + packet[40:]


def _summed(packet: bytes) -> bytes:
    return packet[:10] + struct.pack(">H", checksum(packet[:10] + bytes(2) + packet[12:20])) + packet[12:]


def _lengths(version: int, length: int) -> tuple[int, int]:
    return (length, TCP) if version == 6 else (TCP, length)
