"""Traffic of the filter tests: servers, clients, frames as they are, and what the kernel logs of it."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from pytest_netns import Netns

from conetd.model import IPAddress

TCP, UDP = 6, 17
PATIENCE_S = 5.0  # what should come is waited for this long
SILENCE_S = 0.25  # what should not come is waited for this long; on veth pairs an answer takes microseconds
REFUSED, SILENT = "refused", "silent"
_REFUSALS = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES, errno.ENETUNREACH)


@dataclass(frozen=True)
class Flow:
    """A protocol over an IP version."""

    protocol: int
    family: int

    def __str__(self) -> str:
        return f"{'tcp' if self.protocol == TCP else 'udp'}{self.family}"


FLOWS = [Flow(protocol, family) for family in (4, 6) for protocol in (TCP, UDP)]


# linux/in.h: IP_PKTINFO, linux/in6.h: IPV6_RECVPKTINFO
_PKTINFO_ON = {4: (socket.IPPROTO_IP, 8), 6: (socket.IPPROTO_IPV6, 49)}


def _from_the_same(control: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Ancillary data that sends a datagram from the address another one came to."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP:
            return [(level, kind, bytes(4) + data[8:12] + bytes(4))]
        return [(level, kind, data)]
    return []


class Server:
    """Answers each connection or datagram with the address it came from."""

    def __init__(self, netns: Netns, flow: Flow, port: int) -> None:
        self._flow = flow
        kind = socket.SOCK_STREAM if flow.protocol == TCP else socket.SOCK_DGRAM
        version = socket.AF_INET if flow.family == 4 else socket.AF_INET6
        self._socket = netns.call(socket.socket, version, kind)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if flow.family == 6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if flow.protocol == UDP:
            self._socket.setsockopt(*_PKTINFO_ON[flow.family], 1)
        self._socket.bind(("", port))
        self._stop = threading.Event()
        self._socket.settimeout(0.05)
        if flow.protocol == TCP:
            self._socket.listen(64)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        held: list[socket.socket] = []
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                if self._flow.protocol == UDP:
                    data, control, _, peer = self._socket.recvmsg(2048, 256)
                    # an answer to a source that cannot be reached is not this server's worry
                    with contextlib.suppress(OSError):
                        self._socket.sendmsg([peer[0].encode() + b" " + data], _from_the_same(control), 0, peer)
                else:
                    connection, peer = self._socket.accept()
                    connection.settimeout(PATIENCE_S)
                    held.append(connection)
                    threading.Thread(target=self._talk, args=(connection, peer[0]), daemon=True).start()
        for connection in held:
            connection.close()

    def _talk(self, connection: socket.socket, peer: str) -> None:
        with contextlib.suppress(OSError):
            while data := connection.recv(2048):
                connection.sendall(peer.encode() + b" " + data)

    def close(self) -> None:
        """Stop answering."""
        self._stop.set()
        self._thread.join()
        self._socket.close()


def ask(sock: socket.socket, patience: float) -> str:
    """Send a word over a connected socket: the address the other end sees, REFUSED or SILENT."""
    sock.settimeout(patience)
    try:
        sock.send(b"hello")
        return sock.recv(2048).split(b" ")[0].decode().removeprefix("::ffff:")
    except TimeoutError:
        return SILENT
    except OSError as err:
        if err.errno in _REFUSALS:
            return REFUSED
        raise


def connect(
    netns: Netns, flow: Flow, to: IPAddress, port: int, patience: float, source: tuple[str, int] | None = None
) -> tuple[socket.socket, str]:
    """A connected socket, and what `ask` said over it."""
    kind = socket.SOCK_STREAM if flow.protocol == TCP else socket.SOCK_DGRAM
    version = socket.AF_INET if flow.family == 4 else socket.AF_INET6
    sock = netns.call(socket.socket, version, kind)
    sock.settimeout(patience)
    try:
        if source is not None:
            sock.bind(source)
        sock.connect((str(to), port))
    except TimeoutError:
        return sock, SILENT
    except OSError as err:
        if err.errno in _REFUSALS:
            return sock, REFUSED
        sock.close()
        raise
    return sock, ask(sock, patience)


class Frames:
    """What arrives on a container's interface, seen below every protocol."""

    def __init__(self, netns: Netns, interface: str = "eth0") -> None:
        self._socket = netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind((interface, 3))
        self._socket.settimeout(SILENCE_S)

    def arrives(self, wanted: bytes) -> bool:
        """Whether a frame with these bytes in it comes within the silence."""
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if wanted in self._socket.recv(4096):
                    return True
        return False

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def send_frame(netns: Netns, frame: bytes) -> None:
    """Send a frame from a container as it is."""
    with netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        sock.send(frame.ljust(60, b"\0"))


def ethernet(to: str, source: str, kind: int, payload: bytes) -> bytes:
    """A frame."""
    return mac(to) + mac(source) + struct.pack(">H", kind) + payload


def mac(words: str) -> bytes:
    """Six bytes."""
    return bytes.fromhex(words.replace(":", ""))


def checksum(data: bytes) -> int:
    """The internet checksum."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip_packet(source: IPAddress, to: IPAddress, protocol: int, payload: bytes) -> bytes:
    """A packet with its header."""
    if isinstance(source, IPv6Address):
        return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 255) + source.packed + to.packed + payload
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    assert isinstance(source, IPv4Address)
    header += source.packed + to.packed
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + payload


def udp_packet(source: IPAddress, to: IPAddress, payload: bytes) -> bytes:
    """A datagram from and to port 9 with its headers."""
    length = 8 + len(payload)
    pseudo = (
        source.packed
        + to.packed
        + struct.pack(
            ">II" if source.version == 6 else ">HH", *((length, UDP) if source.version == 6 else (UDP, length))
        )
    )
    unsummed = struct.pack(">HHHH", 9, 9, length, 0) + payload
    datagram = struct.pack(">HHHH", 9, 9, length, checksum(pseudo + unsummed)) + payload
    return ip_packet(source, to, UDP, datagram)


def icmpv6_packet(source: IPAddress, to: IPAddress, body: bytes) -> bytes:
    """An ICMPv6 message (type, code and body, without its checksum) with its headers."""
    pseudo = source.packed + to.packed + struct.pack(">II", len(body) + 2, 58)
    summed = checksum(pseudo + body[:2] + b"\0\0" + body[2:])
    return ip_packet(source, to, 58, body[:2] + struct.pack(">H", summed) + body[2:])


class Log:
    """What is sent to an NFLOG group of a namespace."""

    def __init__(self, netns: Netns, group: int) -> None:
        self._socket = netns.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 12)
        # NFULA_CFG_CMD: NFULNL_CFG_CMD_BIND; then NFULA_CFG_TIMEOUT: records wait for company for 10 ms, not a second
        for attribute in (struct.pack("=HH", 5, 1) + b"\1\0\0\0", struct.pack("=HH", 8, 4) + struct.pack(">I", 1)):
            body = struct.pack(">BBH", 0, 0, group) + attribute
            self._socket.send(struct.pack("=IHHII", 16 + len(body), 4 << 8 | 1, 5, 1, 0) + body)
            answer = self._socket.recv(4096)
            assert struct.unpack_from("=i", answer, 16) == (0,), "the kernel has no nfnetlink_log"

    def prefixes(self, count: int) -> list[str]:
        """The prefixes of that many records, and of more if there are more."""
        found: list[str] = []
        self._socket.settimeout(PATIENCE_S)
        while True:
            try:
                received = self._socket.recv(65536)
            except TimeoutError:
                return found
            found += _prefixes(received)
            if len(found) >= count:
                self._socket.settimeout(SILENCE_S)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def _prefixes(received: bytes) -> Iterator[str]:
    offset = 0
    while offset + 16 <= len(received):
        size, kind = struct.unpack_from("=IH", received, offset)
        at, end = offset + 20, offset + size
        while kind == 4 << 8 and at + 4 <= end:
            length, attribute = struct.unpack_from("=HH", received, at)
            if attribute & 0x3FFF == 10:
                yield received[at + 4 : at + length].rstrip(b"\0").decode()
            at += length + 3 & ~3
        offset += size + 3 & ~3
