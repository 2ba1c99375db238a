"""Who may send into an overlay, and who speaks once the packet is out of the tunnel, with real packets."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pytest_netns import Netns

from conetd.model import IPAddress
from conetd.plan import EndpointPolicy
from tests.kernel.traffic import (
    PATIENCE_S,
    SILENCE_S,
    SILENT,
    TCP,
    UDP,
    Flow,
    Frames,
    ask,
    connect,
    ethernet,
    send_frame,
    udp_packet,
)
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


@pytest.mark.parametrize("where", ["prerouting priority -310", "prerouting priority -150", "input priority -150"])
def test_a_mark_around_the_packet_is_no_identity_of_what_is_inside(tunnel: TunnelLab, family: int, where: str) -> None:
    tunnel.policy(tunnel.a, ingress=[of("d")])
    marking = f"chain c {{ type filter hook {where}; iif up0 meta mark set {0x800D}; }}"
    with rules_of_a_stranger(tunnel.one.netns, marking):
        assert arrives_at_a(tunnel, family, identity=0x800D)
        assert not arrives_at_a(tunnel, family)


def counted(netns: Netns) -> int:
    """Packets that a chain of the stranger's has counted."""
    found = re.search(r"packets (\d+)", netns.run("nft", "list", "table", "inet", "theirs").stdout)
    assert found is not None
    return int(found[1])


def test_an_identity_is_no_mark_of_the_datagram_around_it(tunnel: TunnelLab, family: int) -> None:
    flow, there = Flow(UDP, family), tunnel.c.addresses[family]
    tunnel.serve(tunnel.c.netns, flow)
    counting = "chain c {{ type filter hook postrouting priority 300; oif up0 udp dport 4789 {} counter; }}"
    for match, seen in (("meta mark & 0xffff != 0", False), ("meta mark & 0xffff == 0", True)):
        with rules_of_a_stranger(tunnel.one.netns, counting.format(match)):
            assert tunnel.reach(tunnel.a.netns, flow, there) == str(tunnel.a.addresses[family])
            assert bool(counted(tunnel.one.netns)) is seen


def tracked(netns: Netns, port: int) -> str:
    """The connections to a UDP port that a host knows, of both IP versions."""
    listed = [netns.run("conntrack", "-L", "-f", name, "-p", "udp").stdout for name in ("ipv4", "ipv6")]
    return "".join(line for one in listed for line in one.splitlines(keepends=True) if f"dport={port} " in line)


def test_encapsulated_packets_are_no_connections(tunnel: TunnelLab, family: int) -> None:
    flow, there = Flow(UDP, family), tunnel.c.addresses[family]
    tunnel.serve(tunnel.c.netns, flow)
    assert tunnel.reach(tunnel.a.netns, flow, there) == str(tunnel.a.addresses[family])
    for host in (tunnel.one.netns, tunnel.two.netns):
        assert tracked(host, 8080), "what is inside is"
        assert not tracked(host, PORT)


def test_other_datagrams_to_the_tunnels_port_are_connections_as_ever(tunnel: TunnelLab, family: int) -> None:
    with Frames(tunnel.one.netns, "up0") as frames:
        send_datagram(tunnel.stranger, UNDERLAY["one"][family], vxlan(b"another's", FOREIGN_VNI))
        assert frames.arrives(b"another's")
    send_datagram(tunnel.one.netns, STRANGER[family], vxlan(b"another's", FOREIGN_VNI))
    deadline = time.monotonic() + PATIENCE_S
    while len(tracked(tunnel.one.netns, PORT).splitlines()) != 2:
        assert time.monotonic() < deadline


def test_after_it_is_dropped_nothing_passes_either_way_though_its_link_is_up(tunnel: TunnelLab, family: int) -> None:
    flow = Flow(TCP, family)
    tunnel.serve(tunnel.a.netns, flow)
    sock, _ = connect(tunnel.c.netns, flow, tunnel.a.addresses[family], 8080, PATIENCE_S)
    with sock, Frames(tunnel.a.netns) as to_a, Frames(tunnel.b.netns) as to_b:
        tunnel.one.backend.apply(drop=[("Endpoint", "a"), ("EndpointPolicy", "a")])
        assert ask(sock, SILENCE_S) == SILENT
        with pytest.raises(PermissionError):  # the kernel tells a sender in the same call that a packet was dropped
            send_datagram(tunnel.one.netns, tunnel.a.addresses[family], b"from the host", 9)
        assert not to_a.arrives(b"from the host")
        kind = {4: 0x0800, 6: 0x86DD}[family]
        for source, word in ((tunnel.a.addresses[family], b"from nobody"), (STRANGER[family], b"from elsewhere")):
            packet = udp_packet(source, tunnel.b.addresses[family], word)
            send_frame(tunnel.a.netns, ethernet("ee:ee:ee:ee:ee:ee", tunnel.a.mac, kind, packet))
            assert not to_b.arrives(word)


def test_without_a_policy_it_says_nothing(tunnel: TunnelLab, family: int) -> None:
    with Frames(tunnel.b.netns) as frames:
        send_datagram(tunnel.a.netns, tunnel.b.addresses[family], b"with a policy", 9)
        assert frames.arrives(b"with a policy")
        tunnel.one.backend.apply(drop=[("EndpointPolicy", "a")])
        send_datagram(tunnel.a.netns, tunnel.b.addresses[family], b"without a policy", 9)
        assert not frames.arrives(b"without a policy")


def test_a_container_speaks_with_no_address_but_its_own(tunnel: TunnelLab, family: int) -> None:
    kind, gateway = {4: 0x0800, 6: 0x86DD}[family], "ee:ee:ee:ee:ee:ee"
    with Frames(tunnel.b.netns) as frames:
        for source, word, heard in (
            (tunnel.a, b"own address", True),
            (tunnel.c, b"another's address", False),
            (tunnel.b, b"the receiver's address", False),
        ):
            packet = udp_packet(source.addresses[family], tunnel.b.addresses[family], word)
            send_frame(tunnel.a.netns, ethernet(gateway, tunnel.a.mac, kind, packet))
            assert frames.arrives(word) is heard


def test_what_another_host_sends_through_this_one_is_a_connection(tunnel: TunnelLab, family: int) -> None:
    there, via = STRANGER[tunnel.family], UNDERLAY["one"][tunnel.family]
    route = ("ip", f"-{tunnel.family}", "route")
    tunnel.two.netns.run(*route, "add", str(there), "via", str(via))
    frame = ethernet(vtep_mac("absent"), vtep_mac("two"), {4: 0x0800, 6: 0x86DD}[family], b"on its way")
    try:
        with Frames(tunnel.stranger) as frames:
            send_datagram(tunnel.two.netns, there, vxlan(frame))
            assert frames.arrives(b"on its way")
        assert tracked(tunnel.one.netns, PORT)
    finally:
        tunnel.two.netns.run(*route, "del", str(there))
