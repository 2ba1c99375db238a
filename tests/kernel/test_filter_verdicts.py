"""What each filter backend lets a container send, with real sockets, br_netfilter off and on."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

import pytest

from conetd.model import AddressRange, Icmp, MarkRange, PortRange, Rule, Verdict
from tests.kernel.filter_lab import (
    DENIED,
    GATEWAY,
    GREEN_GATEWAY,
    OUTSIDE,
    SUBNETS,
    UP,
    FilterLab,
    accept,
    mapping,
    needs_frames_judged,
    reject,
)
from tests.kernel.traffic import REFUSED, SILENCE_S, SILENT, TCP, UDP, Flow, Frames, checksum

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


def test_of_a_closed_host_what_the_networks_host_rules_accept_is_open(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.host, flow)
    lab.serve(lab.host, flow, 8081)
    at_gateway = AddressRange(GATEWAY[flow.family], GATEWAY[flow.family])
    rule = Rule(Verdict.ACCEPT, flow.protocol, (at_gateway,), ports=(PortRange(8080, 8080),))
    lab.network(lab.blue, host_rules=(rule,))
    assert lab.reach(lab.a.netns, flow, GATEWAY[flow.family]) == str(lab.a.addresses[flow.family])
    assert lab.reach(lab.a.netns, flow, GATEWAY[flow.family], 8081) == REFUSED
    assert lab.reach(lab.a.netns, flow, UP[flow.family]) == REFUSED
    assert lab.reach(lab.c.netns, flow, GATEWAY[flow.family]) == REFUSED
    lab.network(lab.blue, host_rules=())
    lab.forget_flows()
    assert lab.reach(lab.a.netns, flow, GATEWAY[flow.family]) == REFUSED


def test_the_host_reaches_its_containers_and_hears_their_replies(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    assert lab.reach(lab.host, flow, lab.a.addresses[flow.family]) == str(GATEWAY[flow.family])


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
    lab.policy(lab.c, ingress=(Rule(Verdict.ACCEPT, marks=(MarkRange(0x1234, 0x1234),)),))
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
