"""A policy is replaced thousands of times under a stream of packets: there is no moment of neither."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.kernel.nft import NftablesBackend, available
from conetd.model import UDP, AddressRange, PortRange, Rule, Verdict
from tests.kernel.filter_lab import OUTSIDE, FilterLab, build

SWAPS = 2000
ALWAYS_OPEN, ALWAYS_SHUT = 9001, 9002
_SO_RCVBUFFORCE = 33


@pytest.fixture
def lab(netns: NetnsFactory) -> Iterator[FilterLab]:
    if not netns.make("asked").call(available):
        pytest.skip("this kernel has no nf_tables")
    lab = build(netns, NftablesBackend, 0)
    lab.reset()
    yield lab
    lab.close()


class Receiver:
    """Counts the numbered datagrams that come to a port."""

    def __init__(self, netns: Netns, port: int) -> None:
        self._socket = netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 28)
        self._socket.bind(("", port))

    def numbers(self) -> list[int]:
        """What has come so far; nothing is left behind."""
        found = []
        while True:
            try:
                found.append(struct.unpack(">I", self._socket.recv(64, socket.MSG_DONTWAIT))[0])
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


class Stream:
    """Sends numbered datagrams to both ports, in turn, until it is stopped."""

    def __init__(self, netns: Netns) -> None:
        self.sent = 0
        self._stop = threading.Event()
        self._socket = netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        while not self._stop.is_set():
            # nobody answers, so every datagram is of a new connection and is judged
            for port in (ALWAYS_OPEN, ALWAYS_SHUT):
                try:
                    self._socket.sendto(struct.pack(">I", self.sent), (str(OUTSIDE[4]), port))
                except PermissionError:  # the kernel tells a sender in the same call that a packet was dropped
                    assert port == ALWAYS_SHUT
            self.sent += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


def policy(number: int) -> tuple[Rule, ...]:
    """Open one port always, another never, and every time others besides; both by a set of several."""
    there = (AddressRange(OUTSIDE[4], OUTSIDE[4]),)
    opened, shut = (PortRange(ALWAYS_OPEN, ALWAYS_OPEN),), (PortRange(ALWAYS_SHUT, ALWAYS_SHUT),)
    return (
        Rule(Verdict.DROP, UDP, there, ports=(*shut, PortRange(7000 + number, 7000 + number))),
        Rule(Verdict.ACCEPT, UDP, there, ports=(*opened, PortRange(1000 + number, 1000 + number))),
        Rule(Verdict.DROP, UDP, (AddressRange(OUTSIDE[4], OUTSIDE[4] + 7),), ports=(PortRange(9001, 9001),)),
    )


def test_no_packet_finds_a_moment_without_a_policy(lab: FilterLab) -> None:
    lab.policy(lab.a, *policy(0))
    open_port, shut_port = (Receiver(lab.outside.netns, port) for port in (ALWAYS_OPEN, ALWAYS_SHUT))
    stream = Stream(lab.a.netns)
    try:
        arrived: list[int] = []
        for number in range(SWAPS):
            lab.policy(lab.a, *policy(1 + number % 1000))
            arrived += open_port.numbers()
    finally:
        stream.stop()
    arrived += open_port.numbers()
    assert not shut_port.numbers()
    assert arrived == list(range(stream.sent))
    open_port.close()
    shut_port.close()
