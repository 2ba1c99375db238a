"""Who talks to whom in the end-to-end tests: services that answer with their name, and clients that ask."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pytest_netns import Netns

from lab.talk import echoes as echoes

PATIENCE_S = 5.0  # what should come is waited for this long
SILENCE_S = 0.3  # what should not come is waited for this long; on veth pairs an answer takes microseconds
REFUSED, SILENT, CLOSED = "refused", "silent", "closed"
_REFUSALS = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES, errno.ENETUNREACH)
# linux/in.h: IP_PKTINFO, linux/in6.h: IPV6_RECVPKTINFO
_PKTINFO = ((socket.IPPROTO_IP, 8), (socket.IPPROTO_IPV6, 49))


@dataclass(frozen=True)
class Flow:
    """A protocol (`tcp` or `udp`) over an IP version."""

    protocol: str
    family: int

    def __str__(self) -> str:
        return f"{self.protocol}{self.family}"

    @property
    def other(self) -> Flow:
        """The other protocol over the same IP version."""
        return Flow("udp" if self.protocol == "tcp" else "tcp", self.family)

    def open(self, where: Netns) -> socket.socket:
        """A fresh socket in the namespace."""
        kind = socket.SOCK_STREAM if self.protocol == "tcp" else socket.SOCK_DGRAM
        return where.call(socket.socket, socket.AF_INET if self.family == 4 else socket.AF_INET6, kind)


FLOWS = [Flow(protocol, family) for family in (4, 6) for protocol in ("tcp", "udp")]


class Services:
    """Answers every message with `NAME PEER`: who answers, and the address it was asked from. TCP stays open."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._open: set[tuple[int, str, int]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def open(self, where: Netns, name: str, protocol: str, port: int) -> None:
        """Have the namespace answer at that port, on all its addresses. Twice is once."""
        with self._lock:
            if (where.inode, protocol, port) in self._open:
                return
            self._open.add((where.inode, protocol, port))
        server = Flow(protocol, 6).open(where)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if protocol == "udp":
            for level, option in _PKTINFO:
                server.setsockopt(level, option, 1)
        server.bind(("::", port))
        server.setblocking(False)
        if protocol == "tcp":
            server.listen(64)
        self._selector.register(server, selectors.EVENT_READ, (self._accept if protocol == "tcp" else _answer, name))

    def close(self) -> None:
        """Stop answering; every connection is closed."""
        self._stop.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # they are sockets
        self._selector.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.05):
                act, name = key.data
                # whose client is gone, or may not be answered, is not this service's worry
                with contextlib.suppress(OSError):
                    act(key.fileobj, name)

    def _accept(self, server: socket.socket, name: str) -> None:
        connection, peer = server.accept()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, (self._talk, f"{name} {_plain(peer[0])}"))

    def _talk(self, connection: socket.socket, words: str) -> None:
        try:
            asked = connection.recv(2048)
        except OSError:
            asked = b""
        if asked:
            connection.sendall(words.encode())
        else:
            self._selector.unregister(connection)
            connection.close()


def _answer(server: socket.socket, name: str) -> None:
    _, control, _, peer = server.recvmsg(2048, 256)
    server.sendmsg([f"{name} {_plain(peer[0])}".encode()], list(_from_the_same(control)), 0, peer)


def _from_the_same(control: list[tuple[int, int, bytes]]) -> Iterator[tuple[int, int, bytes]]:
    """Ancillary data that sends a datagram from the address another one came to."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP:
            yield level, kind, bytes(4) + data[8:12] + bytes(4)
            return
    yield from control


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def _connect_tcp6(where: Netns, client: socket.socket, to: str, port: int, patience: float) -> None:
    """As `connect`, but sees a refusal at once.

    The kernel takes an ICMPv6 error that comes while connect() is still sending, as it does on a veth pair, for a
    soft one, and gives up only when the next attempt, a second later, is refused too.
    """
    with where.call(socket.socket, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as errors:
        client.setblocking(False)
        if client.connect_ex((to, port)) not in (0, errno.EINPROGRESS):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused at once")
        about = socket.inet_pton(socket.AF_INET6, to)
        ports = struct.pack(">HH", client.getsockname()[1], port)
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            readable, writable, _ = select.select([errors], [client], [], left)
            if writable:
                client.setblocking(True)
                raised = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if raised:
                    raise OSError(raised, os.strerror(raised))
                return
            if readable:
                message = errors.recv(2048)
                # type 1, destination unreachable: 8 bytes, then the header and the ports of the packet it is about
                if message[0] == 1 and message[32:48] == about and message[48:52] == ports:
                    raise ConnectionRefusedError(errno.ECONNREFUSED, "destination unreachable")
    raise TimeoutError


class Talk:
    """A client's connection, or its one UDP socket, kept open; `first` is what came of its first message."""

    def __init__(
        self,
        where: Netns,
        flow: Flow,
        to: str,
        port: int,
        *,
        patience: float = PATIENCE_S,
        source: tuple[Any, ...] | None = None,
    ) -> None:
        self.flow = flow
        self.first = ""
        self._socket = flow.open(where)
        self._socket.settimeout(patience)
        try:
            if source is not None:
                self._socket.bind(source)
            if flow == Flow("tcp", 6):
                _connect_tcp6(where, self._socket, to, port, patience)
            else:
                self._socket.connect((to, port))
            self.first = self.say(patience=patience)
        except TimeoutError:
            self.first = SILENT
        except OSError as err:
            if err.errno not in _REFUSALS:
                self.close()
                raise
            self.first = REFUSED

    @property
    def port(self) -> int:
        """The client's own port."""
        number: int = self._socket.getsockname()[1]
        return number

    def say(self, *, patience: float = PATIENCE_S) -> str:
        """What a further message is answered with: `NAME PEER`, REFUSED, SILENT, or CLOSED (TCP)."""
        self._socket.settimeout(patience)
        try:
            self._socket.send(b"hello")
            return self._socket.recv(2048).decode() or CLOSED
        except TimeoutError:
            return SILENT
        except (ConnectionResetError, BrokenPipeError):
            return CLOSED
        except OSError as err:
            if err.errno in _REFUSALS:
                return REFUSED
            raise

    def close(self) -> None:
        """Hang up."""
        # without lingering: nothing of it is left on the host
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def __enter__(self) -> Talk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ask(where: Netns, flow: Flow, to: str, port: int, *, patience: float = PATIENCE_S) -> str:
    """What a fresh client's message is answered with; see `Talk`."""
    with Talk(where, flow, to, port, patience=patience) as talk:
        return talk.first
