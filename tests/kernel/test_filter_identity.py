"""Who speaks, with which address, and for how long, on each filter backend."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address, ip_network

import pytest

from conetd.plan import EndpointPolicy
from tests.kernel.filter_lab import (
    GATEWAY,
    OUTSIDE,
    SUBNETS,
    UP,
    FilterLab,
    accept,
    mapping,
    needs_frames_judged,
    only_nftables,
    reject,
)
from tests.kernel.traffic import (
    REFUSED,
    SILENCE_S,
    SILENT,
    Flow,
    Frames,
    ask,
    connect,
    ethernet,
    icmpv6_packet,
    mac,
    send_frame,
    udp_packet,
)

BROADCAST = "ff:ff:ff:ff:ff:ff"


# Who speaks, and with which address.


def test_without_masquerading_the_world_sees_the_container(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.network(lab.blue, masquerade=())
    assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == str(lab.a.addresses[flow.family])


def test_masquerading_may_hold_for_one_ip_version_alone(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.network(lab.blue, masquerade=(ip_network(SUBNETS["blue"][0]),))
    seen = UP if flow.family == 4 else lab.a.addresses
    assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == str(seen[flow.family])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("to", ["gateway", "neighbour"])
def test_a_source_address_that_is_not_its_own_goes_nowhere(lab: FilterLab, family: int, to: str) -> None:
    if to == "neighbour":
        needs_frames_judged(lab)
    strange = ip_address("10.1.0.77" if family == 4 else "fd01::77")
    target, via = (OUTSIDE[family], "02:00:00:00:00:01") if to == "gateway" else (lab.b.addresses[family], lab.b.mac)
    with Frames(lab.outside.netns if to == "gateway" else lab.b.netns) as frames:
        kind = 0x0800 if family == 4 else 0x86DD
        send_frame(
            lab.a.netns, ethernet(via, lab.a.mac, kind, udp_packet(lab.a.addresses[family], target, b"own address"))
        )
        assert frames.arrives(b"own address")
        send_frame(lab.a.netns, ethernet(via, lab.a.mac, kind, udp_packet(strange, target, b"strange address")))
        assert not frames.arrives(b"strange address")
        neighbour = lab.b.addresses[family]
        send_frame(lab.a.netns, ethernet(via, lab.a.mac, kind, udp_packet(neighbour, target, b"neighbour's address")))
        assert not frames.arrives(b"neighbour's address")


def test_a_mac_address_that_is_not_its_own_goes_nowhere(lab: FilterLab) -> None:
    with Frames(lab.b.netns) as frames:
        packet = udp_packet(lab.a.addresses[4], lab.b.addresses[4], b"strange mac")
        send_frame(lab.a.netns, ethernet(lab.b.mac, "02:00:00:00:99:99", 0x0800, packet))
        assert not frames.arrives(b"strange mac")


def arp_reply(sender: str, address: str, ether: str) -> bytes:
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + mac(sender) + ip_address(address).packed
    return ethernet(BROADCAST, ether, 0x0806, body + mac(BROADCAST) + ip_address("10.1.0.3").packed)


@pytest.mark.parametrize("lie", ["another's address", "another's MAC"])
def test_arp_tells_the_truth(lab: FilterLab, lie: str) -> None:
    only_nftables(lab, "ARP passes ip tables by")
    with Frames(lab.b.netns) as frames:
        address, sender = ("10.1.0.1", lab.a.mac) if lie == "another's address" else ("10.1.0.2", "02:00:00:00:00:99")
        true = arp_reply(lab.a.mac, "10.1.0.2", lab.a.mac)
        send_frame(lab.a.netns, true)
        assert frames.arrives(true)
        false = arp_reply(sender, address, lab.a.mac)
        send_frame(lab.a.netns, false)
        assert not frames.arrives(false)


@pytest.mark.parametrize("lie", ["advertises another's address", "advertises a router", "redirects"])
def test_neighbour_discovery_tells_the_truth(lab: FilterLab, lie: str) -> None:
    only_nftables(lab, "frames inside a bridge pass it by without br_netfilter")
    own, everyone = lab.a.addresses[6], ip_address("ff02::1")
    link_local = ip_address(b"\xfe\x80" + bytes(6) + b"\x00\x00\x0a\xff\xfe" + mac(lab.a.mac)[3:])
    said = {
        "advertises another's address": (own, struct.pack(">BBI", 136, 0, 0x20000000) + GATEWAY[6].packed),
        "advertises a router": (link_local, struct.pack(">BBBBHII", 134, 0, 64, 0, 1800, 0, 0)),
        "redirects": (link_local, struct.pack(">BBI", 137, 0, 0) + own.packed + OUTSIDE[6].packed),
    }[lie]
    with Frames(lab.b.netns) as frames:
        true = icmpv6_packet(
            own, everyone, struct.pack(">BBI", 136, 0, 0x20000000) + own.packed + b"\2\1" + mac(lab.a.mac)
        )
        send_frame(lab.a.netns, ethernet("33:33:00:00:00:01", lab.a.mac, 0x86DD, true))
        assert frames.arrives(true)
        false = icmpv6_packet(said[0], everyone, said[1] + b"\2\1" + mac(lab.a.mac))
        send_frame(lab.a.netns, ethernet("33:33:00:00:00:01", lab.a.mac, 0x86DD, false))
        assert not frames.arrives(false)


@pytest.mark.parametrize("kind", [0x8100, 0x88A8, 0x88CC, 0x8864], ids=["vlan", "qinq", "lldp", "pppoe"])
def test_frames_that_are_neither_ip_nor_arp_go_nowhere(lab: FilterLab, kind: int) -> None:
    only_nftables(lab, "they pass ip tables by")
    with Frames(lab.b.netns) as frames:
        inner = struct.pack(">HH", 5, 0x0800) if kind in (0x8100, 0x88A8) else b""
        word = udp_packet(lab.a.addresses[4], lab.b.addresses[4], b"in a strange frame")
        send_frame(lab.a.netns, ethernet(lab.b.mac, lab.a.mac, kind, inner + word))
        assert not frames.arrives(b"in a strange frame")


# Ends.


def test_after_it_is_dropped_nothing_passes_either_way_though_its_link_is_up(lab: FilterLab, flow: Flow) -> None:
    for box in (lab.a, lab.outside):
        lab.serve(box.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    out, _ = connect(lab.a.netns, flow, OUTSIDE[flow.family], 8080, 5)
    into, _ = connect(lab.host, flow, lab.a.addresses[flow.family], 8080, 5)
    lab.backend.apply(drop=[("Endpoint", "a"), ("EndpointPolicy", "a")])
    with out, into:
        assert ask(out, SILENCE_S) == SILENT, "a flow of its own goes on"
        assert ask(into, SILENCE_S) == SILENT, "a flow to it goes on"
    assert lab.miss(lab.a.netns, flow, OUTSIDE[flow.family]) == SILENT
    assert lab.miss(lab.host, flow, lab.a.addresses[flow.family]) == SILENT


def test_after_it_is_dropped_its_neighbours_are_out_of_reach_too(lab: FilterLab, flow: Flow) -> None:
    needs_frames_judged(lab)
    for box in (lab.a, lab.b):
        lab.serve(box.netns, flow)
    lab.backend.apply(drop=[("Endpoint", "a"), ("EndpointPolicy", "a")])
    assert lab.miss(lab.a.netns, flow, lab.b.addresses[flow.family]) == SILENT
    assert lab.miss(lab.b.netns, flow, lab.a.addresses[flow.family]) == SILENT


def test_after_it_is_dropped_no_packet_reaches_it(lab: FilterLab) -> None:
    only_nftables(lab, "what the host itself sends is not judged")
    lab.backend.apply(drop=[("Endpoint", "a"), ("EndpointPolicy", "a")])
    with Frames(lab.a.netns) as frames:
        word = udp_packet(lab.b.addresses[4], lab.a.addresses[4], b"from a neighbour")
        send_frame(lab.b.netns, ethernet(lab.a.mac, lab.b.mac, 0x0800, word))
        assert not frames.arrives(b"from a neighbour")
        with lab.host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"from the host", (str(lab.a.addresses[4]), 9))
        assert not frames.arrives(b"from the host")


def test_put_again_it_works_again(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.backend.apply(drop=[("Endpoint", "a"), ("EndpointPolicy", "a")])
    lab.put(lab.a.endpoint, EndpointPolicy("a"))
    assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == str(UP[flow.family])


def test_a_known_flow_goes_on_when_its_policy_changes(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    sock, said = connect(lab.a.netns, flow, OUTSIDE[flow.family], 8080, 5)
    assert said == str(UP[flow.family])
    with sock:
        for number in range(20):
            lab.policy(lab.a, accept(flow, OUTSIDE[flow.family], (number, number)), reject())
            assert ask(sock, 5) == str(UP[flow.family])
    assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == REFUSED
