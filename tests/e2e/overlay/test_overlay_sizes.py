"""Large packets across hosts and the router between them: none vanishes, and who sends too large ones is told."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from overlay import ANYBODY, open_lab
from pytest_netns import Netns
from traffic import PATIENCE_S
from world import eventually

from lab.cluster import Lab
from lab.hosts import Container
from lab.underlay import WORLD

OVERHEAD = {4: 50, 6: 70}
HEADERS = {4: 28, 6: 48}  # of IP and UDP, or ICMP
BULK = 4 << 20
# linux/in.h, linux/in6.h; PMTUDISC_DO: do not fragment
MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
DO = 2
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module", params=[4, 6], ids=["underlay4", "underlay6"])
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A host on either side of the router, with a container that takes everything; reverse paths are verified."""
    with open_lab(tmp_path_factory.mktemp("lab"), 2, underlay=request.param, **ANYBODY) as lab:
        for host in lab.hosts:
            host.container(f"c{host.name}")
        yield lab


@pytest.fixture
def one(lab: Lab) -> Container:
    return lab.containers["ch1"]


@pytest.fixture
def other(lab: Lab) -> Container:
    return lab.containers["ch2"]


@pytest.fixture
def mtu(lab: Lab) -> int:
    return 1500 - OVERHEAD[6 if ":" in lab.hosts[0].address else 4]


def open_socket(where: Netns, family: int, kind: int, protocol: int = 0) -> socket.socket:
    sock = where.call(socket.socket, socket.AF_INET if family == 4 else socket.AF_INET6, kind, protocol)
    sock.settimeout(PATIENCE_S)
    return sock


def test_containers_have_the_mtu_that_the_underlay_leaves(one: Container, other: Container, mtu: int) -> None:
    for container in (one, other):
        [link] = container.netns.json("ip", "-j", "link", "show", "eth0")
        assert link["mtu"] == mtu
        [beside] = [each for each in container.host.netns.json("ip", "-j", "link") if each["ifname"].startswith("cx")]
        assert beside["mtu"] == mtu


# TCP


def exchange(sock: socket.socket, words: bytes) -> str:
    """Send all the words and hear as many at the same time; returns the digest of what was heard."""
    speaker = threading.Thread(target=sock.sendall, args=(words,))
    speaker.start()
    heard, left = hashlib.sha256(), BULK
    while left and (chunk := sock.recv(1 << 16)):
        heard.update(chunk)
        left -= len(chunk)
    speaker.join()
    return heard.hexdigest()


@FAMILIES
def test_bulk_goes_both_ways_at_once(one: Container, other: Container, family: int) -> None:
    there, back = os.urandom(BULK), os.urandom(BULK)
    found: list[str] = []

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(PATIENCE_S)
            found.append(exchange(connection, back))

    with (
        open_socket(other.netns, family, socket.SOCK_STREAM) as server,
        open_socket(one.netns, family, socket.SOCK_STREAM) as client,
    ):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", 7000))
        server.listen()
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        client.connect((other.addresses[family], 7000))
        assert exchange(client, there) == hashlib.sha256(back).hexdigest()
        thread.join()
    assert found == [hashlib.sha256(there).hexdigest()]


# Packets that must not be fragmented


def ping(sock: socket.socket, family: int, to: str, size: int) -> None:
    """Send an echo request that is a packet of so many bytes."""
    kind = 8 if family == 4 else 128
    body = bytes(size - HEADERS[family])
    # the kernel sums ICMPv6 itself; of zeros and this the sum is what it is
    sock.sendto(struct.pack(">BBHHH", kind, 0, ~((kind << 8) + 7) & 0xFFFF, 7, 0) + body, (to, 0))


def unfragmented(where: Netns, family: int) -> socket.socket:
    """A socket for echo requests and replies, the former never to be fragmented."""
    sock = open_socket(where, family, socket.SOCK_RAW, socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6)
    sock.setsockopt(*MTU_DISCOVER[family], DO)
    return sock


def replies(sock: socket.socket, family: int, to: str, size: int) -> bool:
    """Whether an echo reply of the same size as the request comes."""
    ping(sock, family, to, size)
    header = 20 if family == 4 else 0
    while True:
        received, (peer, *_) = sock.recvfrom(4096)
        if peer == to and received[header] == (0 if family == 4 else 129):
            return len(received) - header == size - HEADERS[family] + 8


@FAMILIES
def test_a_packet_of_the_mtu_passes_and_one_byte_more_is_refused_at_once(
    one: Container, other: Container, mtu: int, family: int
) -> None:
    with unfragmented(one.netns, family) as sock:
        assert replies(sock, family, other.addresses[family], mtu)
        with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
            ping(sock, family, other.addresses[family], mtu + 1)


@FAMILIES
def test_who_has_raised_its_mtu_is_told_by_the_host(one: Container, other: Container, mtu: int, family: int) -> None:
    to = other.addresses[family]

    def told() -> bool:
        """Whether the kernel has learnt the path's MTU from an ICMP error."""
        try:
            ping(sock, family, to, mtu + 1)
        except OSError as err:
            return err.errno == errno.EMSGSIZE
        return False

    one.netns.run("ip", "link", "set", "eth0", "mtu", str(mtu + 4))
    try:
        with unfragmented(one.netns, family) as sock:
            eventually(told, "the sender is told of the MTU", PATIENCE_S)
            assert f"mtu {mtu} " in one.netns.run("ip", "route", "get", to).stdout + " "
            assert replies(sock, family, to, mtu)
    finally:
        one.netns.run("ip", "link", "set", "eth0", "mtu", str(mtu))
        one.netns.run("ip", f"-{family}", "route", "flush", "cache")


@FAMILIES
def test_the_world_is_told_of_the_mtu_too(lab: Lab, one: Container, family: int) -> None:
    """Through the address translation, by which its packets come."""
    with (
        open_socket(lab.outside, family, socket.SOCK_DGRAM) as server,
        open_socket(one.netns, family, socket.SOCK_DGRAM) as client,
    ):
        server.setsockopt(*MTU_DISCOVER[family], DO)
        server.bind(("", 7002))
        client.sendto(b"?", (WORLD[family], 7002))
        _, peer = server.recvfrom(2048)

        def told() -> bool:
            try:
                server.sendto(bytes(1500 - HEADERS[family]), peer)
            except OSError as err:
                return err.errno == errno.EMSGSIZE
            return False

        eventually(told, "the sender is told of the MTU", PATIENCE_S)


# Fragments


@FAMILIES
@pytest.mark.parametrize("size", [4000, 9000])
def test_a_datagram_larger_than_the_mtu_arrives_whole(one: Container, other: Container, family: int, size: int) -> None:
    for sender, receiver in ((one, other), (other, one)):
        words = os.urandom(size)
        with (
            open_socket(receiver.netns, family, socket.SOCK_DGRAM) as server,
            open_socket(sender.netns, family, socket.SOCK_DGRAM) as client,
        ):
            server.bind(("", 7001))
            client.sendto(words, (receiver.addresses[family], 7001))
            received, peer = server.recvfrom(65536)
            server.sendto(received, peer)
            assert client.recv(65536) == words
