"""Who may send into an overlay, and who speaks once the packet is out of the tunnel, with real packets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pytest_netns import Netns

from conetd.model import IPAddress
from conetd.plan import EndpointPolicy
from tests.kernel.traffic import TCP, Flow, Frames, ethernet, send_frame, udp_packet
from tests.kernel.tunnel_lab import (
    FOREIGN_VNI,
    PORT,
    STRANGER,
    UNDERLAY,
    TunnelLab,
    address,
    of,
    peer,
    send_datagram,
    vtep_mac,
    vxlan,
)

pytestmark = pytest.mark.parametrize("family", [4, 6])  # of what is inside
SHORT = b"no-vxlan"


@contextmanager
def rules_of_a_stranger(netns: Netns, rules: str) -> Iterator[None]:
    """Have other chains in the namespace meanwhile."""
    netns.run("nft", "-f", "-", input=f"table inet theirs {{\n{rules}\n}}\n")
    try:
        yield
    finally:
        netns.run("nft", "delete", "table", "inet", "theirs")


def arrives_at_a(tunnel: TunnelLab, family: int, **how: object) -> bool:
    """Whether a gets what is encapsulated like this; from c unless it says otherwise."""
    to = tunnel.a.addresses[family]
    source = how.pop("source", tunnel.c.addresses[family])
    with Frames(tunnel.a.netns) as frames:
        tunnel.encapsulate(source, to, b"inside", **how)  # type: ignore[arg-type]
        return frames.arrives(b"inside")


def test_what_another_host_sends_arrives(tunnel: TunnelLab, family: int) -> None:
    assert arrives_at_a(tunnel, family)


@pytest.mark.parametrize(
    ("part", "number"), [(3, 3), (5, 2), (7, 2), (-1, 2)], ids=["ours", "a third host's", "nobody's", "the world's"]
)
def test_a_source_that_is_not_of_the_senders_part_goes_nowhere(
    tunnel: TunnelLab, family: int, part: int, number: int
) -> None:
    assert not arrives_at_a(tunnel, family, source=address(part, number)[family] if part > 0 else STRANGER[family])


@pytest.mark.parametrize("mac", ["02:00:00:00:00:99", vtep_mac("absent"), vtep_mac("one")])
def test_a_mac_that_is_not_the_senders_goes_nowhere(tunnel: TunnelLab, family: int, mac: str) -> None:
    assert not arrives_at_a(tunnel, family, mac=mac)


def test_a_host_does_not_pass_for_a_third_one(tunnel: TunnelLab, family: int) -> None:
    third = address(5, 2)[family]
    assert not arrives_at_a(tunnel, family, source=third, mac=vtep_mac("absent"))


def test_what_an_unknown_host_sends_goes_nowhere(tunnel: TunnelLab, family: int) -> None:
    assert not arrives_at_a(tunnel, family, sender=tunnel.stranger)


def test_a_host_that_left_is_unknown_and_known_again_when_it_comes_back(tunnel: TunnelLab, family: int) -> None:
    left = peer("two", tunnel.family)
    tunnel.one.backend.apply(drop=[("TunnelPeer", left.key)])
    assert not arrives_at_a(tunnel, family)
    tunnel.one.backend.apply(put=[left])
    assert arrives_at_a(tunnel, family)


def test_the_tunnel_of_somebody_else_on_the_same_port_is_left_alone(tunnel: TunnelLab, family: int) -> None:
    host = tunnel.one.netns
    local = str(UNDERLAY["one"][tunnel.family])
    kind = ("type", "vxlan", "id", str(FOREIGN_VNI), "dstport", str(PORT), "local", local, "gbp")
    host.run("ip", "link", "add", "theirs0", "mtu", "1400", *kind)
    host.run("ip", "link", "set", "theirs0", "up")
    try:
        with Frames(host, "theirs0") as frames:
            source, to = address(4, 2)[family], address(3, 2)[family]
            tunnel.encapsulate(source, to, b"foreign", sender=tunnel.stranger, vni=FOREIGN_VNI)
            assert frames.arrives(b"foreign")
    finally:
        host.run("ip", "link", "del", "theirs0")


def sent_to_the_world(tunnel: TunnelLab, family: int, payload: bytes, word: bytes) -> bool:
    """Whether the stranger gets a datagram of a's to the tunnel's port."""
    with Frames(tunnel.stranger) as frames:
        send_datagram(tunnel.a.netns, STRANGER[family], payload)
        return frames.arrives(word)


@pytest.mark.parametrize("size", [10, 3000], ids=["whole", "in fragments"])
def test_a_container_cannot_encapsulate(tunnel: TunnelLab, family: int, size: int) -> None:
    word = b"forged" + bytes(size)
    assert sent_to_the_world(tunnel, family, vxlan(word, FOREIGN_VNI), word[:12]), "another VNI is none of ours"
    assert not sent_to_the_world(tunnel, family, vxlan(word), word[:12])


def test_other_datagrams_of_a_container_to_the_tunnels_port_pass(tunnel: TunnelLab, family: int) -> None:
    assert sent_to_the_world(tunnel, family, SHORT, SHORT)


def from_the_wire(tunnel: TunnelLab, source: IPAddress, to: IPAddress, word: bytes) -> None:
    """Have the stranger send host one a packet as it is."""
    kind = 0x0800 if source.version == 4 else 0x86DD
    own = tunnel.stranger.json("ip", "-j", "link", "show", "eth0")[0]["address"]
    send_frame(tunnel.stranger, ethernet(tunnel.one.mac, own, kind, udp_packet(source, to, word)))


def test_a_source_of_the_overlay_does_not_come_in_by_the_uplink(tunnel: TunnelLab, family: int) -> None:
    with Frames(tunnel.a.netns) as frames:
        from_the_wire(tunnel, STRANGER[family], tunnel.a.addresses[family], b"own address")
        assert frames.arrives(b"own address")
        for one in (tunnel.b, tunnel.c):
            from_the_wire(tunnel, one.addresses[family], tunnel.a.addresses[family], b"of a container")
            assert not frames.arrives(b"of a container")


def test_the_host_reaches_its_own_address_in_the_overlay(tunnel: TunnelLab, family: int) -> None:
    own, flow = address(3)[family], Flow(TCP, family)
    tunnel.serve(tunnel.one.netns, flow)
    assert tunnel.reach(tunnel.one.netns, flow, own) == str(own)


def test_from_a_tunnel_nothing_goes_to_whom_no_ingress_guards(tunnel: TunnelLab, family: int) -> None:
    tunnel.one.backend.apply(put=[EndpointPolicy("a")])
    assert not arrives_at_a(tunnel, family)


def test_from_a_tunnel_nothing_goes_to_the_world(tunnel: TunnelLab, family: int) -> None:
    with Frames(tunnel.stranger) as frames:
        tunnel.encapsulate(tunnel.c.addresses[family], STRANGER[family], b"onward")
        assert not frames.arrives(b"onward")


def test_nothing_goes_into_a_tunnel_from_the_world(tunnel: TunnelLab, family: int) -> None:
    with Frames(tunnel.two.netns, "up0") as frames:
        send_datagram(tunnel.a.netns, tunnel.c.addresses[family], b"of a container", 9)
        assert frames.arrives(b"of a container")
        from_the_wire(tunnel, STRANGER[family], tunnel.c.addresses[family], b"of a stranger")
        assert not frames.arrives(b"of a stranger")


def test_a_mark_around_the_packet_is_no_identity_of_what_is_inside(tunnel: TunnelLab, family: int) -> None:
    tunnel.policy(tunnel.a, ingress=[of("d")])
    marking = f"chain c {{ type filter hook prerouting priority -310; iif up0 meta mark set {0x800D}; }}"
    with rules_of_a_stranger(tunnel.one.netns, marking):
        assert arrives_at_a(tunnel, family, identity=0x800D)
        assert not arrives_at_a(tunnel, family)
