"""What each filter backend lets pass, with real sockets: one suite for both, with br_netfilter off and on."""

from __future__ import annotations

import importlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from pytest_netns import NetnsFactory

from conetd.kernel.filter import NFLOG_ALLOWED, NFLOG_DENIED
from conetd.model import AddressRange, Icmp, PortRange, Rule, Verdict, log_prefix
from conetd.plan import EndpointPolicy, PortMapping
from tests.kernel.filter_lab import (
    DENIED,
    FLOWS,
    GATEWAY,
    GREEN_GATEWAY,
    OUTSIDE,
    REFUSED,
    SILENCE_S,
    SILENT,
    SUBNETS,
    TCP,
    UDP,
    UP,
    UP_SECOND,
    FilterLab,
    Flow,
    Frames,
    Log,
    accept,
    ask,
    build,
    checksum,
    connect,
    ethernet,
    icmpv6_packet,
    mac,
    mapping,
    send_frame,
    udp_packet,
)

BACKENDS = {
    "nftables": ("conetd.kernel.nft", "NftablesBackend"),
    "iptables": ("conetd.kernel.iptables", "IptablesBackend"),
}
BROADCAST = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(
    scope="module", params=[(name, nf) for name in BACKENDS for nf in (0, 1)], ids=lambda p: f"{p[0]}-nf{p[1]}"
)
def built(request: pytest.FixtureRequest, netns_module: NetnsFactory) -> Iterator[FilterLab]:
    name, bridge_nf = request.param
    module, cls = BACKENDS[name]
    backend = importlib.import_module(module)
    if not backend.available():
        pytest.skip(f"this host cannot run the {name} backend")
    lab = build(netns_module, getattr(backend, cls), bridge_nf)
    yield lab
    lab.close()


@pytest.fixture
def lab(built: FilterLab) -> FilterLab:
    """Everything at rest: containers without a policy of their own, on networks that deny one address."""
    built.reset()
    return built


@pytest.fixture(params=FLOWS, ids=str)
def flow(request: pytest.FixtureRequest) -> Flow:
    """TCP and UDP over IPv4 and IPv6."""
    return request.param  # type: ignore[no-any-return]


def only_nftables(lab: FilterLab, why: str) -> None:
    if lab.backend.name != "nftables":
        pytest.skip(f"{lab.backend.name}: {why}")


def needs_frames_judged(lab: FilterLab) -> None:
    if lab.host.sysctl("net.bridge.bridge-nf-call-iptables") == "0":
        only_nftables(lab, "frames inside a bridge pass it by without br_netfilter")


def reject(to: str | None = None) -> Rule:
    destinations = (AddressRange.of(ip_network(to)),) if to else ()
    return Rule(Verdict.REJECT, destinations=destinations, origin="deny_networks[0]")


# What a container may send.


def test_what_nothing_denies_is_reachable(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == str(UP[flow.family])


def test_what_the_network_denies_is_refused_at_once(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    assert lab.reach(lab.a.netns, flow, DENIED[flow.family]) == REFUSED


def test_a_rule_of_its_own_opens_what_the_network_denies_and_no_more(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.policy(lab.a, accept(flow, DENIED[flow.family], (8080, 8085)))
    assert lab.reach(lab.a.netns, flow, DENIED[flow.family]) == str(UP[flow.family])
    assert lab.reach(lab.a.netns, flow, DENIED[flow.family], 8086) == REFUSED
    assert lab.reach(lab.b.netns, flow, DENIED[flow.family]) == REFUSED


def test_a_rule_for_one_protocol_does_not_open_the_other(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    other = Flow(UDP if flow.protocol == TCP else TCP, flow.family)
    lab.policy(lab.a, accept(other, DENIED[flow.family], (1, 65535)))
    assert lab.reach(lab.a.netns, flow, DENIED[flow.family]) == REFUSED


def test_the_first_rule_that_matches_decides(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.serve(lab.outside.netns, flow, 8081)
    drop = Rule(Verdict.DROP, flow.protocol, ports=(PortRange(8081, 8081),))
    lab.policy(
        lab.a, accept(flow, OUTSIDE[flow.family], (8080, 8080)), drop, accept(flow, OUTSIDE[flow.family]), reject()
    )
    assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == str(UP[flow.family])
    assert lab.miss(lab.a.netns, flow, OUTSIDE[flow.family], 8081) == SILENT


def test_without_a_policy_nothing_passes(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.backend.apply(drop=[("EndpointPolicy", "a")])
    assert lab.miss(lab.a.netns, flow, OUTSIDE[flow.family]) == SILENT


def test_a_rule_for_any_protocol_opens_those_without_ports_too(lab: FilterLab) -> None:
    gre = 47

    def passes(word: bytes) -> bool:
        with Frames(lab.outside.netns) as frames:
            with lab.a.netns.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, gre) as sock:
                sock.sendto(word, (str(DENIED[4]), 0))
            return frames.arrives(word)

    assert not passes(b"gre-denied-by-the-network")
    lab.policy(lab.a, accept(None, DENIED[4]))
    assert passes(b"gre-opened-by-the-policy")


@pytest.mark.parametrize(("family", "request_type", "reply_type"), [(4, 8, 0), (6, 128, 129)], ids=["icmp", "icmpv6"])
def test_a_rule_for_an_icmp_type_opens_that_type_alone(
    lab: FilterLab, family: int, request_type: int, reply_type: int
) -> None:
    protocol = 1 if family == 4 else 58

    def echoed() -> bool:
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        with lab.a.netns.call(socket.socket, kind, socket.SOCK_RAW, protocol) as sock:
            sock.settimeout(SILENCE_S)
            body = struct.pack(">BBHHH", request_type, 0, 0, 7, 1)
            summed = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
            sock.sendto(summed, (str(DENIED[family]), 0))
            try:
                while True:
                    received = sock.recv(2048)
                    if received[20 if family == 4 else 0] == reply_type:
                        return True
            except OSError:
                return False

    assert not echoed()
    origin = "net_out[0]"
    lab.policy(lab.a, Rule(Verdict.ACCEPT, protocol, icmp=Icmp(request_type + 1), origin=origin))
    assert not echoed()
    lab.policy(lab.a, Rule(Verdict.ACCEPT, protocol, icmp=Icmp(request_type, 0), origin=origin))
    assert echoed()


# Between containers.


def test_traffic_inside_a_network_is_not_judged(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.b.netns, flow)
    lab.policy(lab.a, reject())
    assert lab.reach(lab.a.netns, flow, lab.b.addresses[flow.family]) == str(lab.a.addresses[flow.family])


def test_other_networks_are_reachable_from_the_own_gateway_unless_denied(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.c.netns, flow)
    there = lab.c.addresses[flow.family]
    assert lab.reach(lab.a.netns, flow, there) == str(GREEN_GATEWAY[flow.family])
    lab.policy(lab.a, reject(SUBNETS["green"][flow.family == 6]))
    lab.forget_flows()
    assert lab.reach(lab.a.netns, flow, there) == REFUSED


def test_isolated_containers_do_not_reach_each_other(lab: FilterLab, flow: Flow) -> None:
    needs_frames_judged(lab)
    lab.serve(lab.b.netns, flow)
    lab.network(lab.blue, isolated=True)
    assert lab.miss(lab.a.netns, flow, lab.b.addresses[flow.family]) == SILENT


def test_isolated_containers_do_not_reach_each_other_through_the_gateway(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.b.netns, flow)
    lab.network(lab.blue, isolated=True)
    there, gateway = lab.b.addresses[flow.family], str(GATEWAY[flow.family])
    route = (f"-{flow.family}", "route", "replace", str(there), "via", gateway)
    lab.a.netns.run("ip", *route)
    try:
        assert lab.miss(lab.a.netns, flow, there) == SILENT
    finally:
        lab.a.netns.run("ip", f"-{flow.family}", "route", "del", str(there), "via", gateway)


def test_isolated_containers_reach_the_world(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.network(lab.blue, isolated=True)
    assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == str(UP[flow.family])


# The host.


def test_the_host_is_closed_and_its_containers_still_find_their_gateway(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.host, flow)
    lab.serve(lab.outside.netns, flow)
    lab.a.netns.run("ip", "neigh", "flush", "dev", "eth0")
    lab.host.run("ip", "neigh", "flush", "dev", "br0")
    assert lab.reach(lab.a.netns, flow, GATEWAY[flow.family]) == REFUSED
    assert lab.reach(lab.a.netns, flow, UP[flow.family]) == REFUSED
    assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == str(UP[flow.family])


def test_the_host_is_open_where_the_network_says_so(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.host, flow)
    lab.network(lab.blue, host_access=True)
    assert lab.reach(lab.a.netns, flow, GATEWAY[flow.family]) == str(lab.a.addresses[flow.family])
    assert lab.reach(lab.c.netns, flow, GREEN_GATEWAY[flow.family]) == REFUSED


def test_the_host_reaches_its_containers_and_hears_their_replies(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    assert lab.reach(lab.host, flow, lab.a.addresses[flow.family]) == str(GATEWAY[flow.family])


# Published ports.


def test_a_published_port_is_reached_from_another_machine_whose_address_is_kept(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == str(OUTSIDE[flow.family])


def test_a_published_port_is_reached_from_the_host(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.host, flow, UP[flow.family], 7000) == str(UP[flow.family])


@pytest.mark.parametrize("isolated", [False, True], ids=["", "isolated"])
def test_a_published_port_is_reached_from_the_same_network(lab: FilterLab, flow: Flow, isolated: bool) -> None:
    lab.serve(lab.a.netns, flow)
    lab.network(lab.blue, isolated=isolated)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.b.netns, flow, UP[flow.family], 7000) == str(GATEWAY[flow.family])


def test_a_published_port_is_reached_from_another_network(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.c.netns, flow, UP[flow.family], 7000) == str(GATEWAY[flow.family])


@pytest.mark.parametrize("isolated", [False, True], ids=["", "isolated"])
def test_a_published_port_is_reached_from_its_own_container(lab: FilterLab, flow: Flow, isolated: bool) -> None:
    lab.serve(lab.a.netns, flow)
    lab.network(lab.blue, isolated=isolated)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.a.netns, flow, UP[flow.family], 7000) == str(GATEWAY[flow.family])


def test_what_is_published_is_judged_after_translation(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    lab.policy(lab.c, reject(SUBNETS["blue"][flow.family == 6]))
    assert lab.reach(lab.c.netns, flow, UP[flow.family], 7000) == REFUSED


def test_a_port_published_on_one_address_is_not_on_others(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow, host_ip=UP_SECOND[flow.family])])
    assert lab.reach(lab.outside.netns, flow, UP_SECOND[flow.family], 7000) == str(OUTSIDE[flow.family])
    assert lab.reach(lab.host, flow, UP_SECOND[flow.family], 7000) != REFUSED
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == REFUSED


def test_a_given_address_comes_before_every_address(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow, 8081)
    lab.serve(lab.b.netns, flow)
    lab.policy(lab.b, ports=[mapping(lab.b, flow)])
    lab.policy(lab.a, ports=[mapping(lab.a, flow, to_port=8081, host_ip=UP_SECOND[flow.family])])
    assert lab.reach(lab.outside.netns, flow, UP_SECOND[flow.family], 7000) == str(OUTSIDE[flow.family])
    lab.policy(lab.b)
    lab.forget_flows()
    assert lab.reach(lab.outside.netns, flow, UP_SECOND[flow.family], 7000) == str(OUTSIDE[flow.family])
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == REFUSED


def test_a_published_port_is_not_on_the_loopback(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.host, flow, ip_address("127.0.0.1" if flow.family == 4 else "::1"), 7000) == REFUSED


def test_a_port_no_longer_published_is_closed(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    lab.policy(lab.a)
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == REFUSED


def test_a_port_handed_to_another_container_leads_there(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.b.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    ports: tuple[PortMapping, ...] = (mapping(lab.b, flow),)
    lab.put(EndpointPolicy("b", ports=ports), EndpointPolicy("a"))
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == str(OUTSIDE[flow.family])


def test_a_target_routed_elsewhere_sees_its_gateway(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow, masquerade=True)])
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == str(GATEWAY[flow.family])


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


# Towards a container, identities, strangers.


def test_what_its_ingress_does_not_accept_never_arrives(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.c.netns, flow)
    lab.serve(lab.c.netns, flow, 8081)
    there = lab.c.addresses[flow.family]
    rule = Rule(Verdict.ACCEPT, flow.protocol, ports=(PortRange(8080, 8080),), origin="policies[0]")
    lab.policy(lab.c, ports=[mapping(lab.c, flow), mapping(lab.c, flow, 7001, 8081)], ingress=(rule,))
    assert lab.reach(lab.a.netns, flow, there) == str(GREEN_GATEWAY[flow.family])
    assert lab.miss(lab.a.netns, flow, there, 8081) == SILENT
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == str(OUTSIDE[flow.family])
    assert lab.miss(lab.outside.netns, flow, UP[flow.family], 7001) == SILENT


def test_an_open_ingress_does_not_open_what_the_sender_may_not_send(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.c.netns, flow)
    lab.policy(lab.c, ingress=(Rule(Verdict.ACCEPT),))
    lab.policy(lab.a, reject())
    assert lab.reach(lab.a.netns, flow, lab.c.addresses[flow.family]) == REFUSED


def test_ingress_may_tell_sources_apart(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.c.netns, flow)
    lab.network(lab.blue, masquerade=())
    own = lab.a.addresses[flow.family]
    lab.policy(lab.c, ingress=(Rule(Verdict.ACCEPT, sources=(AddressRange(own, own),)),))
    assert lab.reach(lab.a.netns, flow, lab.c.addresses[flow.family]) == str(own)
    assert lab.miss(lab.b.netns, flow, lab.c.addresses[flow.family]) == SILENT


def test_ingress_may_tell_marks_apart(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.c.netns, flow)
    lab.put(replace(lab.a.endpoint, mark=0x1234), replace(lab.b.endpoint, mark=0x1235))
    lab.policy(lab.c, ingress=(Rule(Verdict.ACCEPT, mark=0x1234),))
    assert lab.reach(lab.a.netns, flow, lab.c.addresses[flow.family]) == str(GREEN_GATEWAY[flow.family])
    assert lab.miss(lab.b.netns, flow, lab.c.addresses[flow.family]) == SILENT


def test_the_host_does_not_become_a_router_for_strangers(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.dmz.netns, flow)
    lab.serve(lab.outside.netns, flow)
    lab.serve(lab.a.netns, flow)
    assert lab.reach(lab.outside.netns, flow, lab.dmz.addresses[flow.family]) == str(OUTSIDE[flow.family])
    lab.backend.set_opened(flow.family, ["up0"])
    lab.forget_flows()
    assert lab.miss(lab.outside.netns, flow, lab.dmz.addresses[flow.family]) == SILENT
    assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == str(UP[flow.family])
    assert lab.reach(lab.outside.netns, flow, lab.a.addresses[flow.family]) == str(OUTSIDE[flow.family])


# Logs.


def test_an_accepted_connection_is_logged_once(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.policy(lab.a, accept(flow, DENIED[flow.family], (8080, 8080), log=True))
    with Log(lab.host, NFLOG_ALLOWED) as log:
        sock, said = connect(lab.a.netns, flow, DENIED[flow.family], 8080, 5)
        with sock:
            assert said == str(UP[flow.family])
            assert ask(sock, 5) == str(UP[flow.family])
        assert log.prefixes(1) == [log_prefix("handle-a")]


def test_datagrams_nobody_answers_are_one_connection_in_the_log(lab: FilterLab) -> None:
    lab.policy(lab.a, accept(Flow(UDP, 4), OUTSIDE[4], log=True))
    with Log(lab.host, NFLOG_ALLOWED) as log:
        with lab.a.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", 4444))
            for _ in range(5):
                sock.sendto(b"x", (str(OUTSIDE[4]), 9999))
        assert log.prefixes(1) == [log_prefix("handle-a")]


def test_with_log_denied_what_the_network_denies_is_logged_and_refused_as_before(lab: FilterLab, flow: Flow) -> None:
    lab.policy(lab.a, log_denied=True)
    with Log(lab.host, NFLOG_DENIED) as log:
        assert lab.reach(lab.a.netns, flow, DENIED[flow.family]) == REFUSED
        assert lab.reach(lab.b.netns, flow, DENIED[flow.family]) == REFUSED
        assert set(log.prefixes(1)) == {log_prefix("handle-a")}


def test_log_denied_follows_a_change_of_the_networks_rules(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.policy(lab.a, log_denied=True)
    lab.network(lab.blue, rules=(reject(str(OUTSIDE[flow.family])),))
    with Log(lab.host, NFLOG_DENIED) as log:
        assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == REFUSED
        assert lab.reach(lab.a.netns, flow, DENIED[flow.family]) == str(UP[flow.family])
        assert set(log.prefixes(1)) == {log_prefix("handle-a")}


def test_a_rule_that_logs_does_not_change_the_verdict(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.policy(lab.a, replace(reject(str(OUTSIDE[flow.family])), log=True))
    with Log(lab.host, NFLOG_DENIED) as log:
        assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == REFUSED
        assert set(log.prefixes(1)) == {log_prefix("handle-a")}
