"""A connection is tracked as any other though much of it has gone beside the filter, with real connections."""

from __future__ import annotations

import socket

import pytest

from conetd.kernel.nft import fast_path
from tests.kernel.fast_path_lab import (
    ACK,
    FAR_BEYOND,
    MANY,
    RST,
    Connection,
    Stream,
    Wire,
    elements,
    exactly,
    look,
    numbers,
    on_fast_path,
    segment,
    take_up,
    tracked,
    until,
    watching,
)
from tests.kernel.traffic import Frames, ethernet
from tests.kernel.tunnel_lab import UNDERLAY, TunnelHost, TunnelLab, send_datagram, vtep_mac, vxlan

pytestmark = [
    pytest.mark.parametrize("built_tunnel", [4], indirect=True, ids=["underlay4"]),
    pytest.mark.parametrize("family", [4, 6]),
]
KIND = {4: 0x0800, 6: 0x86DD}


def timeout(host: TunnelHost, state: str) -> int:
    """For how many seconds of silence the kernel remembers a connection."""
    return int(host.netns.sysctl(f"net/netfilter/nf_conntrack_tcp_timeout_{state}"))


def outlasts_silence(host: TunnelHost, connection: Connection) -> None:
    """Wait until a connection is remembered as any idle one: its last word is acknowledged a moment later."""
    unacknowledged = timeout(host, "unacknowledged")
    until(lambda: tracked(host, connection.ports)[1] > unacknowledged, "it is remembered as any idle one")


def test_silence_ends_a_connection_beside_the_filter_no_sooner_than_any_other(tunnel: TunnelLab, family: int) -> None:
    host = tunnel.one
    with Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection:
        with Stream(connection) as stream, watching(host) as busy:
            look(host, busy)
            stream.wait(FAR_BEYOND)
            assert take_up(host, busy) == 2
            stream.wait(FAR_BEYOND)
        outlasts_silence(host, connection)


def test_silence_ends_a_connection_that_is_judged_again_no_sooner_than_any_other(
    tunnel: TunnelLab, family: int
) -> None:
    with on_fast_path(tunnel, family) as connection:  # with its last word unacknowledged
        connection.carry(FAR_BEYOND)
        tunnel.one.backend.fast_path.clear()
        connection.talk()
        outlasts_silence(tunnel.one, connection)


def test_a_reset_arrives_however_much_has_gone_beside_the_filter(tunnel: TunnelLab, family: int) -> None:
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    with on_fast_path(tunnel, family) as connection, Wire(tunnel.a.netns) as wire:
        connection.near.sendall(b"where we are")
        now, _ = numbers(wire.with_word(b"where we are"))
        later = now + 3 * 2**30 & 0xFFFFFFFF  # as after three gigabytes
        packet = segment(c, a, connection.ports, b"the end", flags=RST | ACK, numbers=(later, 1))
        inner = ethernet(vtep_mac("one"), vtep_mac("two"), KIND[family], packet)
        with Frames(tunnel.a.netns) as frames:
            send_datagram(tunnel.two.netns, UNDERLAY["one"][tunnel.family], vxlan(inner))
            assert frames.arrives(b"the end")


def test_a_connection_that_one_end_has_closed_goes_on_the_other_way(
    tunnel: TunnelLab, family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tunnel.one
    usual, lasting = timeout(host, "close_wait"), fast_path.LASTS_S
    name = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"
    monkeypatch.setattr(fast_path, "LASTS_S", 2)
    host.netns.sysctl(name, usual * 2 // lasting)  # in proportion
    try:
        with Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection:
            connection.talk()
            connection.near.shutdown(socket.SHUT_WR)
            assert connection.far.recv(1) == b""

            def hears() -> None:
                connection.far.sendall(b"word")
                assert exactly(connection.near, 4) == b"word"

            with watching(host) as busy:
                look(host, busy)
                for _ in range(200):
                    hears()
                take_up(host, busy, 10)

            def lapsed() -> bool:
                hears()
                return not elements(host, family)

            until(lapsed, "it is judged again")
            hears()
    finally:
        host.netns.sysctl(name, usual)


@pytest.mark.parametrize("end", ["near", "far"])
def test_a_connection_that_one_end_has_closed_is_left_to_the_filter(tunnel: TunnelLab, family: int, end: str) -> None:
    host = tunnel.one
    with Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection, watching(host) as busy:
        sender, closed = connection.near, connection.far
        if end == "near":
            sender, closed = closed, sender
        connection.talk()
        closed.shutdown(socket.SHUT_WR)
        assert sender.recv(1) == b""
        look(host, busy)
        for _ in range(MANY):
            sender.sendall(b"word")
            assert exactly(closed, 4) == b"word"
        assert take_up(host, busy) == 0


def test_a_connection_that_ends_while_the_host_looks_is_left_to_the_filter_and_forgotten(
    tunnel: TunnelLab, family: int
) -> None:
    host = tunnel.one
    with Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection, watching(host) as busy:
        look(host, busy)
        connection.talk()
        for one in (connection.near, connection.far):
            one.close()
        until(lambda: tracked(host, connection.ports)[0] == "TIME_WAIT", "the host knows that it has ended")
        assert take_up(host, busy) == 0
        assert tracked(host, connection.ports)[1] <= timeout(host, "time_wait")
