"""Who talks to whom: services that answer with the peer's address, clients that ask, and echo requests."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator

from pytest_netns import Netns

SILENCE_S = 0.3  # on veth pairs an answer takes microseconds


@contextlib.contextmanager
def serving(where: Netns, port: int, *, protocol: str = "tcp", address: str = "") -> Iterator[None]:
    """A service that answers `hello <peer address>` to whoever speaks to it, for the length of the block."""
    family = socket.AF_INET6
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM

    def listen() -> socket.socket:
        server = socket.socket(family, kind)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address or "::", port))
        if protocol == "tcp":
            server.listen(64)
        server.settimeout(0.1)
        return server

    server = where.call(listen)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError, ConnectionError):
                if protocol == "tcp":
                    client, peer = server.accept()
                    with client:
                        client.sendall(f"hello {peer[0].removeprefix('::ffff:')}".encode())
                else:
                    _, peer = server.recvfrom(2000)
                    server.sendto(f"hello {peer[0].removeprefix('::ffff:')}".encode(), peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        server.close()


def ask(where: Netns, address: str, port: int, *, protocol: str = "tcp", seconds: float = 2.0) -> str:
    """What the service at that address answers; `refused` or `timeout` when it does not."""

    def talk() -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(family, kind) as client:
            client.settimeout(seconds)
            try:
                client.connect((address, port))
                if protocol == "udp":
                    client.send(b"?")
                return client.recv(2000).decode() or "closed"
            except TimeoutError:
                return "timeout"
            except ConnectionRefusedError:
                return "refused"
            except OSError as err:
                return os.strerror(err.errno or 0)

    return where.call(talk)


def echoes(where: Netns, family: int, to: str, seconds: float = SILENCE_S) -> bool:
    """Whether an ICMP echo request is answered by an echo reply, within so many seconds."""
    version, protocol = (socket.AF_INET, socket.IPPROTO_ICMP) if family == 4 else (socket.AF_INET6, 58)
    request, reply = (8, 0) if family == 4 else (128, 129)
    body = struct.pack(">BBHHH", request, 0, 0, 7, 1)
    if family == 4:  # the kernel sums ICMPv6 itself
        body = struct.pack(">BBHHH", request, 0, ~sum(struct.unpack(">4H", body)) & 0xFFFF, 7, 1)
    with where.call(socket.socket, version, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(seconds)
        sock.sendto(body, (to, 0))
        with contextlib.suppress(OSError):
            while True:
                received, peer = sock.recvfrom(2048)
                if peer[0] == to and received[20 if family == 4 else 0] == reply:
                    return True
    return False
