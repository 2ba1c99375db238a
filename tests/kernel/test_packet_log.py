"""Packets that nftables and iptables rules log in a namespace reach the reader."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.errors import KernelError
from conetd.kernel import nflog
from conetd.kernel.filter import NFLOG_ALLOWED, NFLOG_DENIED
from conetd.kernel.logevents import LeftOut, LogEvent
from conetd.kernel.nflog import LogReader
from conetd.kernel.ratelimit import RateLimit

SOON = 10  # seconds
RULES = f"""
table inet t {{
    chain in {{
        type filter hook input priority 0
        udp dport 1 log prefix "web " group {NFLOG_ALLOWED}
        udp dport 2 log prefix "db " group {NFLOG_DENIED} drop
        icmp type echo-request log prefix "web " group {NFLOG_DENIED}
    }}
}}
"""
Told = LogEvent | LeftOut
Open = Callable[..., "queue.Queue[Told]"]


@pytest.fixture
def host(netns: NetnsFactory) -> Netns:
    host = netns.make("host")
    host.run("nft", "-f", "-", input=RULES)
    return host


@pytest.fixture
def listen(host: Netns) -> Iterator[Open]:
    """Start a reader in the namespace; what it tells is in the queue."""
    with ExitStack() as stack:

        def start(limit: RateLimit | None = None) -> queue.Queue[Told]:
            told: queue.Queue[Told] = queue.Queue()
            reader = host.call(LogReader, told.put, limit)
            thread = threading.Thread(target=reader.run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(reader.close)
            return told

        yield start


def send(host: Netns, port: int, to: str = "127.0.0.1", count: int = 1) -> None:
    def datagrams() -> None:
        with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", 4000))
            for _ in range(count):
                sock.sendto(b"x" * 500, (to, port))

    host.call(datagrams)


def test_a_packet_that_was_allowed_is_told(host: Netns, listen: Open) -> None:
    told = listen()
    send(host, 1)
    here = ip_address("127.0.0.1")
    assert told.get(timeout=SOON) == LogEvent("allowed", "web ", 17, here, 4000, here, 1, in_index=1)


def test_a_packet_that_was_dropped_is_told(host: Netns, listen: Open) -> None:
    told = listen()
    send(host, 2, "::1")
    here = ip_address("::1")
    assert told.get(timeout=SOON) == LogEvent("denied", "db ", 17, here, 4000, here, 2, in_index=1)


def test_a_ping_is_told_with_its_type(host: Netns, listen: Open) -> None:
    told = listen()

    def echo_request() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.sendto(bytes.fromhex("0800f7fd00010001"), ("127.0.0.1", 0))

    host.call(echo_request)
    found = told.get(timeout=SOON)
    assert isinstance(found, LogEvent)
    assert (found.protocol, found.icmp_type, found.icmp_code) == (1, 8, 0)


def test_what_iptables_logs_is_told_too(host: Netns, listen: Open) -> None:
    rule = ("-p", "udp", "--dport", "3", "-j", "NFLOG", "--nflog-group", str(NFLOG_DENIED), "--nflog-prefix", "old ")
    host.run("iptables-legacy", "-A", "INPUT", *rule)
    told = listen()
    send(host, 3)
    found = told.get(timeout=SOON)
    assert isinstance(found, LogEvent)
    assert (found.verdict, found.prefix, found.destination_port) == ("denied", "old ", 3)


def test_what_is_too_much_is_counted_and_another_container_is_still_told(host: Netns, listen: Open) -> None:
    told = listen(RateLimit(burst=3, per_second=0.001))
    send(host, 1, count=10)
    send(host, 2)
    found = [told.get(timeout=SOON) for _ in range(5)]
    prefixes = [one.prefix for one in found if isinstance(one, LogEvent)]
    assert sorted(prefixes) == ["db ", "web ", "web ", "web "]
    assert [one for one in found if isinstance(one, LeftOut)] == [LeftOut("web ", 7)]


def test_what_the_kernel_could_not_hand_over_is_counted(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nflog, "_BUFFER", 4096)
    found: list[Told] = []
    last = threading.Event()

    def on_event(one: Told) -> None:
        found.append(one)
        if isinstance(one, LogEvent) and one.source_port == 4000 and one.destination == ip_address("127.0.0.9"):
            last.set()

    reader = host.call(LogReader, on_event, RateLimit(burst=10000))
    send(host, 1, count=3000)  # nobody reads yet
    thread = threading.Thread(target=reader.run)
    thread.start()
    try:
        for _ in range(SOON * 10):  # the first of these may still find the buffer full
            send(host, 1, "127.0.0.9")
            if last.wait(0.1):
                break
        assert last.is_set()
    finally:
        reader.close()
        thread.join()
    lost = sum(one.count for one in found if isinstance(one, LeftOut))
    told = [one for one in found if isinstance(one, LogEvent) and one.destination == ip_address("127.0.0.1")]
    assert lost > 0
    assert 3000 <= len(told) + lost <= 3000 + SOON * 10


def test_a_second_reader_is_refused_with_the_group(host: Netns, listen: Open) -> None:
    listen()
    with pytest.raises(KernelError, match=f"could not read NFLOG group {NFLOG_ALLOWED}: .*another process reads it"):
        host.call(LogReader)


def test_the_groups_are_free_again_when_a_reader_is_closed(host: Netns) -> None:
    first = host.call(LogReader)
    first.close()
    first.close()
    host.call(LogReader).close()


def test_a_closed_reader_does_not_run(host: Netns) -> None:
    reader = host.call(LogReader)
    reader.close()
    reader.run()


def test_a_reader_can_be_closed_from_what_it_tells(host: Netns) -> None:
    readers: list[LogReader] = []
    readers.append(host.call(LogReader, lambda _event: readers[0].close()))
    send(host, 1)
    thread = threading.Thread(target=readers[0].run)
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive()
