"""Which connections go beside the filter, and which of their segments do, with real connections of two hosts."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from pytest_netns import Netns

from conetd.model import IPAddress
from conetd.plan import EndpointPolicy, PortMapping
from tests.kernel.fast_path_lab import (
    ACK,
    AT_LEAST,
    FAR_BEYOND,
    FEW,
    FIN,
    MANY,
    PORT,
    RST,
    SYN,
    Connection,
    Stream,
    Wire,
    exactly,
    first_part,
    gauge,
    hops,
    index,
    look,
    numbers,
    on_fast_path,
    raised,
    segment,
    tables,
    take_up,
    until,
    watching,
    with_hops,
)
from tests.kernel.traffic import PATIENCE_S, UDP, Flow, Frames, ask, connect, ethernet, ip_packet, send_frame
from tests.kernel.tunnel_lab import (
    ANYBODY,
    UNDERLAY,
    Container,
    TunnelLab,
    address,
    send_datagram,
    vtep_mac,
    vxlan,
)

# The datagrams around are no business of the fast path: one kind of underlay is enough.
pytestmark = [
    pytest.mark.parametrize("built_tunnel", [4], indirect=True, ids=["underlay4"]),
    pytest.mark.parametrize("family", [4, 6]),
]
GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"
KIND = {4: 0x0800, 6: 0x86DD}


def test_a_busy_connection_goes_beside_the_filter_both_ways(tunnel: TunnelLab, family: int) -> None:
    with on_fast_path(tunnel, family) as connection, gauge(tunnel.one) as seen, gauge(tunnel.two) as seen_there:
        connection.talk()
        assert seen.segments == 0
        assert seen_there.segments >= 2 * MANY, "the other host has its own fast path"


def test_a_stream_goes_on_whole_when_it_is_taken_up(tunnel: TunnelLab, family: int) -> None:
    with Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection:
        with Stream(connection) as stream:
            for host in (tunnel.one, tunnel.two):
                with watching(host) as busy:
                    look(host, busy)
                    stream.wait(FAR_BEYOND)
                    assert take_up(host, busy)
            with gauge(tunnel.one) as seen:
                stream.wait(FAR_BEYOND)
                assert seen.strays == 0
        connection.talk()


def test_a_connection_is_taken_up_beside_those_that_are(tunnel: TunnelLab, family: int) -> None:
    with (
        on_fast_path(tunnel, family) as first,
        Connection(tunnel.b.netns, tunnel.d.netns, tunnel.d.addresses[family]) as second,
    ):
        assert raised(tunnel.one, second) == 2
        with gauge(tunnel.one) as seen:
            for one in (first, second):
                one.talk()
            assert seen.segments == 0


def test_a_quiet_connection_is_left_to_the_filter(tunnel: TunnelLab, family: int) -> None:
    with (
        Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection,
        watching(tunnel.one) as busy,
    ):
        look(tunnel.one, busy)
        connection.talk(FEW)
        assert take_up(tunnel.one, busy) == 0
        assert not tables(tunnel.one)


def test_only_what_passes_while_the_host_looks_is_counted(tunnel: TunnelLab, family: int) -> None:
    with (
        Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection,
        watching(tunnel.one) as busy,
    ):
        for _ in range(2):
            connection.talk()
            look(tunnel.one, busy)
            connection.talk(FEW)
        assert take_up(tunnel.one, busy) == 0


def test_the_busiest_come_first(tunnel: TunnelLab, family: int) -> None:
    path = tunnel.one.backend.fast_path
    with (
        Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as less,
        Connection(tunnel.d.netns, tunnel.b.netns, tunnel.b.addresses[family]) as more,
    ):
        path.sample([index(tunnel.one, "cx0")])
        less.talk()
        more.talk(3 * MANY)
        found = path.sampled(AT_LEAST)
    assert len(found) == 4
    assert {one.ends for one in found[:2]} == {more.ends, (*more.ends[2:], *more.ends[:2])}


def nothing_new(tunnel: TunnelLab, family: int, connection: Connection) -> bytes:
    """A frame with a segment of a's that c does not answer."""
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    with Wire(tunnel.c.netns) as wire:
        connection.talk(1)
        connection.far.sendall(b"where we are")
        seq, ack = numbers(wire.with_word(b"where we are"))
        assert exactly(connection.near, 12)
    connection.near.sendall(b"yes")  # and with it goes what acknowledges that, so that nothing is under way any more
    assert exactly(connection.far, 3)
    near, far = connection.ports
    packet = segment(a, c, (far, near), b"", numbers=(seq + 12, ack))
    return ethernet(GATEWAY_MAC, tunnel.a.mac, KIND[family], packet)


@pytest.mark.parametrize("answered", [True, False])
def test_a_direction_is_taken_up_with_the_one_that_answers_it_or_not_at_all(
    tunnel: TunnelLab, family: int, answered: bool
) -> None:
    with (
        Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection,
        watching(tunnel.one) as busy,
        gauge(tunnel.one) as seen,
    ):
        frame = nothing_new(tunnel, family, connection)
        look(tunnel.one, busy)
        before = seen.segments
        for _ in range(MANY):
            send_frame(tunnel.a.netns, frame)
        until(lambda: seen.segments >= before + MANY, "they have passed the host")
        if answered:
            connection.talk(FEW)
        assert seen.strays == 0
        assert take_up(tunnel.one, busy) == (2 if answered else 0)


def test_there_is_nothing_to_look_at_without_a_tunnel(tunnel: TunnelLab, family: int) -> None:
    with watching(tunnel.one) as busy:
        assert not tunnel.one.netns.call(busy.look, ["nosuch0"])
        assert not tables(tunnel.one)
        assert take_up(tunnel.one, busy) == 0


def counted(tunnel: TunnelLab, family: int, talk: Callable[[], None]) -> int:
    """How many directions host one counts through its tunnel."""
    path = tunnel.one.backend.fast_path
    path.sample([index(tunnel.one, "cx0")])
    talk()
    listed = tunnel.one.netns.json("nft", "-j", "list", "set", "inet", "conetd_sample", f"busy{family}")["nftables"]
    (found,) = [one["set"] for one in listed if "set" in one]
    assert not path.sampled(1)
    return len(found.get("elem", ()))


def test_datagrams_are_left_to_the_filter(tunnel: TunnelLab, family: int) -> None:
    flow, host, sysctl = Flow(UDP, family), tunnel.one.netns, "net/netfilter/nf_conntrack_udp_timeout_stream"
    tunnel.serve(tunnel.a.netns, flow)
    sock, said = connect(tunnel.c.netns, flow, tunnel.a.addresses[family], 8080, PATIENCE_S)
    assert said == str(tunnel.c.addresses[family])

    def talk(words: int = MANY) -> None:
        for _ in range(words):
            assert ask(sock, PATIENCE_S) == said

    def assured() -> bool:
        talk(1)
        return "[ASSURED]" in host.run("conntrack", "-L", "-p", "udp", "-f", f"ipv{family}").stdout

    usual = host.sysctl(sysctl)
    host.sysctl(sysctl, 3600)  # as long as a TCP connection may be
    try:
        with sock, gauge(tunnel.one) as seen:
            until(assured, "it is assured as a TCP connection is")
            before = seen.datagrams
            assert counted(tunnel, family, talk) == 0
            assert seen.datagrams == before + 2 * MANY
    finally:
        host.sysctl(sysctl, usual)


def test_a_translated_connection_is_left_to_the_filter(tunnel: TunnelLab, family: int) -> None:
    mapped = PortMapping(6, 7000, tunnel.a.addresses[family], PORT)
    tunnel.one.backend.apply(put=[EndpointPolicy("a", ports=(mapped,), ingress=(ANYBODY,))])
    with (
        Connection(tunnel.c.netns, tunnel.a.netns, address(3)[family], 7000) as connection,
        gauge(tunnel.one) as seen,
    ):
        assert counted(tunnel, family, connection.talk) == 0
        assert seen.segments >= 2 * MANY


def test_a_connection_that_passes_no_tunnel_is_left_to_the_filter(tunnel: TunnelLab, family: int) -> None:
    for client in (tunnel.b.netns, tunnel.stranger):
        with Connection(client, tunnel.a.netns, tunnel.a.addresses[family]) as connection, gauge(tunnel.one) as seen:
            assert counted(tunnel, family, connection.talk) == 0
            assert seen.segments >= 2 * MANY


def test_a_connection_of_the_host_itself_is_left_to_the_filter(tunnel: TunnelLab, family: int) -> None:
    with Connection(tunnel.one.netns, tunnel.c.netns, tunnel.c.addresses[family]) as connection:
        assert counted(tunnel, family, connection.talk) == 0
        assert raised(tunnel.two, connection) == 2, "for the container's host it is one as any other"
        connection.talk()


def crafted(to_mac: str, mac: str, source: IPAddress, to: IPAddress, ports: tuple[int, int], word: bytes) -> bytes:
    """A frame with a segment."""
    return ethernet(to_mac, mac, KIND[to.version], segment(source, to, ports, word))


@contextmanager
def neighbours_on_fast_path(tunnel: TunnelLab, family: int) -> Iterator[Connection]:
    """As `on_fast_path`, and b too has a connection there: its link is asked about what is on the fast path."""
    with (
        on_fast_path(tunnel, family) as connection,
        Connection(tunnel.d.netns, tunnel.b.netns, tunnel.b.addresses[family]) as other,
    ):
        assert raised(tunnel.one, other) == 2
        yield connection


def test_nobody_else_sends_segments_of_a_connection_to_another_host(tunnel: TunnelLab, family: int) -> None:
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    with neighbours_on_fast_path(tunnel, family) as connection, Frames(tunnel.two.netns, "cx0") as frames:
        near, far = connection.ports

        def arrives(sender: Container, mac: str, word: bytes) -> bool:
            send_frame(sender.netns, crafted(GATEWAY_MAC, mac, a, c, (far, near), word))
            return frames.arrives(word)

        assert arrives(tunnel.a, tunnel.a.mac, b"a's own")
        assert not arrives(tunnel.b, tunnel.b.mac, b"b's, in a's name")
        assert not arrives(tunnel.b, tunnel.a.mac, b"b's, with a's MAC")


def test_nobody_else_sends_segments_of_a_connection_to_a_container(tunnel: TunnelLab, family: int) -> None:
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    with neighbours_on_fast_path(tunnel, family) as connection, Frames(tunnel.a.netns) as frames:

        def arrives(sender: Netns, to_mac: str, mac: str, word: bytes) -> bool:
            frame = crafted(to_mac, mac, c, a, connection.ports, word)
            if to_mac == vtep_mac("one"):
                send_datagram(sender, UNDERLAY["one"][tunnel.family], vxlan(frame))
            else:
                send_frame(sender, frame)
            return frames.arrives(word)

        vtep, two, absent = vtep_mac("one"), vtep_mac("two"), vtep_mac("absent")
        assert arrives(tunnel.two.netns, vtep, two, b"the other host's")
        assert not arrives(tunnel.two.netns, vtep, absent, b"the other host's, in a third one's name")
        assert not arrives(tunnel.stranger, vtep, two, b"a stranger's, encapsulated")
        assert not arrives(tunnel.b.netns, GATEWAY_MAC, tunnel.b.mac, b"b's, in c's name")
        assert not arrives(tunnel.b.netns, GATEWAY_MAC, two, b"b's, with the other host's MAC")
        assert not arrives(tunnel.stranger, tunnel.one.mac, two, b"a stranger's, with the other host's MAC")


def test_a_segment_with_another_mac_is_judged(tunnel: TunnelLab, family: int) -> None:
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    with on_fast_path(tunnel, family) as connection, gauge(tunnel.one) as seen:
        near, far = connection.ports
        send_frame(tunnel.a.netns, crafted(GATEWAY_MAC, tunnel.b.mac, a, c, (far, near), b"another MAC"))
        until(lambda: seen.segments > 0, "it is seen at the forward hook")


def test_a_segment_with_another_port_is_judged(tunnel: TunnelLab, family: int) -> None:
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    with on_fast_path(tunnel, family) as connection, gauge(tunnel.one) as seen, Frames(tunnel.c.netns) as frames:
        near, far = connection.ports
        for ports in ((far + 1, near), (far, near ^ 1)):
            send_frame(tunnel.a.netns, crafted(GATEWAY_MAC, tunnel.a.mac, a, c, ports, b"another port"))
            assert not frames.arrives(b"another port")
        assert seen.segments == 2


def test_a_segment_in_parts_is_judged(tunnel: TunnelLab, family: int) -> None:
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    with on_fast_path(tunnel, family) as connection, Frames(tunnel.two.netns, "cx0") as frames:
        near, far = connection.ports
        for word, whole in ((b"the whole segment", True), (b"a part of one to come", False)):
            packet = segment(a, c, (far, near), word + bytes(-(len(word) + 20) % 8))  # parts are of whole eight bytes
            frame = packet if whole else first_part(packet)
            send_frame(tunnel.a.netns, ethernet(GATEWAY_MAC, tunnel.a.mac, KIND[family], frame))
            assert frames.arrives(word) is whole, "connection tracking waits for the rest"


def test_a_datagram_with_the_same_ports_is_judged(tunnel: TunnelLab, family: int) -> None:
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    with on_fast_path(tunnel, family) as connection, gauge(tunnel.one) as seen:
        near, far = connection.ports
        datagram = ip_packet(a, c, UDP, struct.pack(">HHHH", far, near, 20, 0) + bytes(12))
        send_frame(tunnel.a.netns, ethernet(GATEWAY_MAC, tunnel.a.mac, KIND[family], datagram))
        until(lambda: seen.datagrams > 0, "it is seen at the forward hook")


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK])
def test_a_segment_that_begins_or_ends_a_connection_is_judged(tunnel: TunnelLab, family: int, flags: int) -> None:
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    with on_fast_path(tunnel, family) as connection, gauge(tunnel.one) as seen:
        near, far = connection.ports
        packet = segment(a, c, (far, near), b"", flags=flags)
        send_frame(tunnel.a.netns, ethernet(GATEWAY_MAC, tunnel.a.mac, KIND[family], packet))
        until(lambda: seen.edges > 0, "it is seen at the forward hook")


def test_another_connection_of_the_same_containers_is_judged(tunnel: TunnelLab, family: int) -> None:
    with (
        on_fast_path(tunnel, family),
        Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as other,
        gauge(tunnel.one) as seen,
    ):
        other.talk()
        assert seen.segments >= 2 * MANY


def test_each_host_takes_one_hop_as_it_does_otherwise(tunnel: TunnelLab, family: int) -> None:
    def left(connection: Connection, word: bytes) -> list[int]:
        found = []
        for sender, receiver in ((connection.near, tunnel.a), (connection.far, tunnel.c)):
            with Wire(receiver.netns) as wire:
                sender.sendall(word)
                found.append(hops(wire.with_word(word)))
        return found

    with Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection:
        before = left(connection, b"by way of the filters")
    with on_fast_path(tunnel, family, tunnel.one, tunnel.two) as connection:
        assert left(connection, b"beside the filters") == before == [62, 62]


def test_a_segment_without_a_hop_left_goes_nowhere(tunnel: TunnelLab, family: int) -> None:
    a, c = tunnel.a.addresses[family], tunnel.c.addresses[family]
    with on_fast_path(tunnel, family) as connection, Frames(tunnel.two.netns, "cx0") as frames:
        near, far = connection.ports
        for left, word in ((2, b"one hop further"), (1, b"no hop further")):
            packet = with_hops(segment(a, c, (far, near), word), left)
            send_frame(tunnel.a.netns, ethernet(GATEWAY_MAC, tunnel.a.mac, KIND[family], packet))
            assert frames.arrives(word) is (left > 1)
