"""How connections beside the filter end, are tracked, and come back to it, with real connections of two hosts."""

from __future__ import annotations

import socket

import pytest

from conetd.kernel.conntrack import Conntrack, TcpEnds
from conetd.kernel.forwarded import forwarded
from conetd.kernel.nft import fast_path
from conetd.kernel.nft.fast_path import LASTS_S, Way
from tests.kernel.fast_path_lab import (
    AT_LEAST,
    FAR_BEYOND,
    FEW,
    MANY,
    Connection,
    elements,
    gauge,
    index,
    on_fast_path,
    raised,
    tracked,
    until,
)
from tests.kernel.tunnel_lab import TunnelHost, TunnelLab, address, send_datagram

pytestmark = [
    pytest.mark.parametrize("built_tunnel", [4], indirect=True, ids=["underlay4"]),
    pytest.mark.parametrize("family", [4, 6]),
]


_ENDED = ("LAST_ACK", "TIME_WAIT")  # the first: its very last segment went beside the filter


def close(connection: Connection) -> None:
    """Close it, the far end first, so that the near end may use its port again."""
    connection.far.shutdown(socket.SHUT_WR)
    assert connection.near.recv(1) == b""
    connection.near.close()
    assert connection.far.recv(1) == b""
    connection.far.close()


def test_a_connection_that_has_carried_much_ends_as_it_should(tunnel: TunnelLab, family: int) -> None:
    hosts = tunnel.one, tunnel.two
    with (
        gauge(tunnel.one) as seen,
        gauge(tunnel.two) as seen_there,
        on_fast_path(tunnel, family, *hosts) as connection,
    ):
        connection.carry(FAR_BEYOND)
        assert {tracked(host, connection.ports)[0] for host in hosts} == {"ESTABLISHED"}
        close(connection)
        until(lambda: all(tracked(host, connection.ports)[0] in _ENDED for host in hosts), "both hosts know of it")
        assert (seen.strays, seen_there.strays) == (0, 0)


def test_the_same_ports_are_used_again_at_once(tunnel: TunnelLab, family: int) -> None:
    with on_fast_path(tunnel, family, tunnel.one, tunnel.two) as connection:
        connection.carry(FAR_BEYOND)
        near, _ = connection.ports
        close(connection)
        assert elements(tunnel.one, family), "the old one is still on the fast path"
        to = tunnel.a.addresses[family]
        with Connection(tunnel.c.netns, tunnel.a.netns, to, source_port=near) as again:
            assert again.ports == connection.ports
            again.talk()
            again.carry(FAR_BEYOND)
            again.talk()


def test_a_connection_that_is_broken_off_is_so_for_both_ends_and_soon_forgotten(tunnel: TunnelLab, family: int) -> None:
    hosts = tunnel.one, tunnel.two
    with on_fast_path(tunnel, family, *hosts) as connection:
        connection.carry(FAR_BEYOND)
        connection.break_off()
        with pytest.raises(ConnectionResetError):
            connection.far.recv(1)
        soon = int(tunnel.one.netns.sysctl("net/netfilter/nf_conntrack_tcp_timeout_close"))
        for host in hosts:
            assert tracked(host, connection.ports)[1] <= soon


def followed(host: TunnelHost, *ends: TcpEnds) -> list[bool]:
    """Have these connections followed loosely."""
    with host.netns.call(Conntrack) as table:
        return host.netns.call(table.follow_loosely, ends)


@pytest.mark.parametrize("loosely", [True, False])
def test_the_end_of_a_connection_is_a_stray_unless_it_is_followed_loosely(
    tunnel: TunnelLab, family: int, loosely: bool
) -> None:
    host, to = tunnel.one, tunnel.a.addresses[family]
    path, links = host.backend.fast_path, {name: index(host, name) for name in ("cx0", "cva")}
    ways = {links["cx0"]: ("cx0", Way(links["cva"], to)), links["cva"]: ("cva", Way(links["cx0"], address(4)[family]))}
    with Connection(tunnel.c.netns, tunnel.a.netns, to) as connection:
        assert raised(tunnel.two, connection) == 2
        path.sample([links["cx0"]])
        connection.talk()
        path.add([(one, *ways[one.inward]) for one in path.sampled(AT_LEAST)])
        if loosely:
            assert followed(host, connection.ends) == [True]
        with gauge(host) as seen:
            connection.carry(FAR_BEYOND)
            assert seen.segments == 0
            connection.near.shutdown(socket.SHUT_WR)
            until(lambda: seen.edges > 0, "its end comes by")
            assert bool(seen.strays) is not loosely
            assert (tracked(host, connection.ports)[0] == "ESTABLISHED") is not loosely


def test_either_view_of_a_connection_finds_it_and_another_finds_none(tunnel: TunnelLab, family: int) -> None:
    with Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection:
        connection.talk(1)
        source, source_port, destination, destination_port = connection.ends
        views: list[TcpEnds] = [
            (source, source_port, destination, destination_port + 1),
            (source, source_port, destination, destination_port),
            (destination, destination_port, source, source_port),
            (destination, source_port, source, destination_port),
        ]
        assert followed(tunnel.one, *views) == [False, True, True, False]
    assert followed(tunnel.one) == []


def test_following_a_connection_that_is_none_makes_none(tunnel: TunnelLab, family: int) -> None:
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    assert followed(tunnel.one, (a, 1, c, 2)) == [False]
    assert tracked(tunnel.one, (1, 2)) == ("", 0)


def test_what_is_on_the_fast_path_lapses_in_time(tunnel: TunnelLab, family: int) -> None:
    with on_fast_path(tunnel, family):
        found = elements(tunnel.one, family)
        assert len(found) == 2
        assert all(0 < one["expires"] <= LASTS_S for one in found)


def test_a_connection_goes_on_when_it_has_lapsed_and_is_taken_up_again(
    tunnel: TunnelLab, family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_path, "LASTS_S", 1)
    with on_fast_path(tunnel, family) as connection, gauge(tunnel.one) as seen:

        def judged() -> bool:
            connection.talk(1)
            return seen.segments > 0

        until(judged, "it is judged again")
        assert not elements(tunnel.one, family)
        assert raised(tunnel.one, connection) == 2
        assert len(elements(tunnel.one, family)) == 2
        connection.talk()


def test_what_a_host_sends_on_is_counted_but_not_what_goes_beside_the_filter(tunnel: TunnelLab, family: int) -> None:
    host = tunnel.one.netns
    before = host.call(forwarded)
    for number in range(FEW):
        with tunnel.c.netns.call(
            socket.socket, {4: socket.AF_INET, 6: socket.AF_INET6}[family], socket.SOCK_DGRAM
        ) as sink:
            sink.bind(("", 9))
            send_datagram(tunnel.a.netns, tunnel.c.addresses[family], b"word", 9)
            assert sink.recv(9) == b"word"
        assert host.call(forwarded) - before == number + 1
    with on_fast_path(tunnel, family) as connection:
        before = host.call(forwarded)
        assert before >= 2 * MANY
        connection.talk()
        assert host.call(forwarded) == before
