"""What containers of an overlay may say to each other, across hosts and on one, with real packets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from conetd.kernel.filter import NFLOG_DENIED
from conetd.model import AddressRange, MarkRange, PortRange, Rule, Verdict, log_prefix
from conetd.plan import Endpoint, EndpointPolicy
from tests.kernel.filter_lab import both
from tests.kernel.traffic import REFUSED, SILENT, Flow, Frames, Log
from tests.kernel.tunnel_lab import (
    ANYBODY,
    MARKS,
    NETWORK,
    SUBNETS,
    TUNNEL,
    Container,
    TunnelLab,
    address,
    of,
    send_datagram,
)

Pair = tuple[Container, Container]


@pytest.fixture(params=["across hosts", "on one host"])
def pair(request: pytest.FixtureRequest, tunnel: TunnelLab) -> Pair:
    """A client and a server, another container beside the client."""
    return (tunnel.c, tunnel.a) if request.param == "across hosts" else (tunnel.b, tunnel.a)


def only(flow: Flow, port: int, *to: Container) -> Rule:
    there = tuple(AddressRange(one.addresses[flow.family], one.addresses[flow.family]) for one in to)
    return Rule(Verdict.ACCEPT, flow.protocol, there, ports=(PortRange(port, port),), origin="policies[0]")


def test_ingress_knows_the_sender_by_its_identity(tunnel: TunnelLab, flow: Flow, pair: Pair) -> None:
    client, server = pair
    tunnel.serve(server.netns, flow)
    there = server.addresses[flow.family]
    tunnel.policy(server, ingress=[of(client.name)])
    assert tunnel.reach(client.netns, flow, there) == str(client.addresses[flow.family])
    assert tunnel.miss(tunnel.d.netns, flow, there) == SILENT


def test_ingress_may_name_many_identities(tunnel: TunnelLab, flow: Flow, pair: Pair) -> None:
    client, server = pair
    tunnel.serve(server.netns, flow)
    there, own = server.addresses[flow.family], MARKS[client.name]
    around = (MarkRange(1, 3), MarkRange(own - 1, own + 1), MarkRange(0xFF00, 0xFFFF))
    tunnel.policy(server, ingress=[Rule(Verdict.ACCEPT, marks=around)])
    assert tunnel.reach(client.netns, flow, there) == str(client.addresses[flow.family])
    tunnel.policy(server, ingress=[Rule(Verdict.ACCEPT, marks=(around[0], MarkRange(own + 1, own + 9), around[2]))])
    assert tunnel.miss(client.netns, flow, there) == SILENT
    tunnel.policy(server, ingress=[Rule(Verdict.ACCEPT, marks=(MarkRange(own - 1, own + 1),))])
    assert tunnel.reach(client.netns, flow, there) == str(client.addresses[flow.family])


def test_what_ingress_does_not_accept_is_logged_where_wanted(tunnel: TunnelLab, flow: Flow, pair: Pair) -> None:
    client, server = pair
    tunnel.policy(server, ingress=[of("a")], log_denied=True)
    with Log(tunnel.one.netns, NFLOG_DENIED) as log:
        assert tunnel.miss(client.netns, flow, server.addresses[flow.family]) == SILENT
        assert set(log.prefixes(1)) == {log_prefix("handle-a")}


def test_inside_opens_what_its_rules_say_and_no_more(tunnel: TunnelLab, flow: Flow, pair: Pair) -> None:
    client, server = pair
    there = server.addresses[flow.family]
    for port in (8080, 8081):
        tunnel.serve(server.netns, flow, port)
    tunnel.policy(client, inside=[only(flow, 8080, server)])
    assert tunnel.reach(client.netns, flow, there) == str(client.addresses[flow.family])
    assert tunnel.miss(client.netns, flow, there, 8081) == SILENT


def test_inside_does_not_judge_what_leaves_the_network(tunnel: TunnelLab, flow: Flow) -> None:
    tunnel.serve(tunnel.stranger, flow)
    tunnel.policy(tunnel.a, inside=[])
    world = tunnel.stranger.json("ip", "-j", f"-{flow.family}", "addr", "show", "eth0")[0]["addr_info"][0]["local"]
    seen = {4: "192.0.2.1", 6: "fd00::1"}[flow.family]
    assert tunnel.reach(tunnel.a.netns, flow, type(address(3)[flow.family])(world)) == seen


def test_what_inside_does_not_accept_is_logged_where_wanted(tunnel: TunnelLab, flow: Flow) -> None:
    tunnel.policy(tunnel.a, inside=[], log_denied=True)
    with Log(tunnel.one.netns, NFLOG_DENIED) as log:
        assert tunnel.miss(tunnel.a.netns, flow, tunnel.c.addresses[flow.family]) == SILENT
        assert set(log.prefixes(1)) == {log_prefix("handle-a")}


def test_remote_containers_reach_the_host_no_more_than_its_own(tunnel: TunnelLab, flow: Flow) -> None:
    tunnel.serve(tunnel.one.netns, flow)
    tunnel.serve(tunnel.one.netns, flow, 8081)
    there = address(3)[flow.family]
    for one in (tunnel.a, tunnel.c):
        assert tunnel.reach(one.netns, flow, there) == REFUSED
    rule = Rule(Verdict.ACCEPT, flow.protocol, ports=(PortRange(8080, 8080),))
    tunnel.one.backend.apply(put=[replace(NETWORK, host_rules=(rule,))])
    for one in (tunnel.a, tunnel.c):
        assert tunnel.reach(one.netns, flow, there) == str(one.addresses[flow.family])
        assert tunnel.reach(one.netns, flow, there, 8081) == REFUSED
    tunnel.one.backend.apply(put=[replace(NETWORK, host_access=True)])
    assert tunnel.reach(tunnel.c.netns, flow, there, 8081) == str(tunnel.c.addresses[flow.family])


def test_a_host_reaches_its_own_containers_freely_and_those_of_others_as_they_say(
    tunnel: TunnelLab, flow: Flow
) -> None:
    for one in (tunnel.a, tunnel.c):
        tunnel.serve(one.netns, flow)
        tunnel.policy(one, ingress=[])
    own = str(address(3)[flow.family])
    assert tunnel.reach(tunnel.one.netns, flow, tunnel.a.addresses[flow.family]) in (own, "192.0.2.1", "fd00::1")
    assert tunnel.miss(tunnel.one.netns, flow, tunnel.c.addresses[flow.family]) == SILENT
    everybody = tuple(AddressRange.of(subnet) for subnet in SUBNETS)
    tunnel.policy(tunnel.c, ingress=[Rule(Verdict.ACCEPT, sources=everybody)])
    assert tunnel.reach(tunnel.one.netns, flow, tunnel.c.addresses[flow.family]) == own


def test_an_identity_takes_the_low_bits_of_the_mark_and_leaves_the_others(tunnel: TunnelLab, flow: Flow) -> None:
    tunnel.serve(tunnel.b.netns, flow)
    host = tunnel.one.netns
    host.run(
        "nft",
        "-f",
        "-",
        input="""table inet theirs {
            chain before { type filter hook prerouting priority -310; iifname "cva" meta mark set 0xabcd5678; }
            chain after { type filter hook forward priority 5; iifname "cva" meta mark 0xabcd000a counter; }
        }""",
    )
    try:
        assert tunnel.reach(tunnel.a.netns, flow, tunnel.b.addresses[flow.family]) != SILENT
        counted = re.search(r"packets (\d+)", host.run("nft", "list", "chain", "inet", "theirs", "after").stdout)
        assert counted is not None
        assert int(counted[1]) > 0
    finally:
        host.run("nft", "delete", "table", "inet", "theirs")


@pytest.fixture
def of_another_network(tunnel: TunnelLab) -> Iterator[Container]:
    """A container on host two that is of another network, and has there the identity that `c` has in the overlay."""
    subnets = (ip_network("10.2.0.0/16"), ip_network("fd02::/112"))
    own = both("10.2.4.3", "fd02::403")
    other = replace(NETWORK, key="other", subnets=subnets, masquerade=subnets, tunnel=None)
    host, inside = tunnel.two, tunnel.d.netns
    addresses = tuple(own.values())
    endpoint = Endpoint("other-d", "other", "other-d", "cvd", addresses, tunnel.d.mac, mark=MARKS["c"])
    for version, one in own.items():
        flag, via = f"-{version}", {4: "169.254.1.1", 6: "fe80::1"}[version]
        nodad = ("nodad",) if version == 6 else ()
        inside.run("ip", "addr", "add", f"{one}/{one.max_prefixlen}", "dev", "eth0", *nodad)
        there = str(tunnel.a.addresses[version])
        inside.run("ip", flag, "route", "add", there, "via", via, "dev", "eth0", "onlink", "src", str(one))
        host.netns.run("ip", flag, "route", "add", str(one), "dev", "cvd")
        host.netns.run(
            "ip", flag, "neigh", "replace", str(one), "lladdr", tunnel.d.mac, "dev", "cvd", "nud", "permanent"
        )
    host.backend.apply(put=(), drop=[("Endpoint", "d"), ("EndpointPolicy", "d")])
    host.backend.apply(put=[other, endpoint, EndpointPolicy("other-d")])
    yield Container("other-d", inside, own, tunnel.d.mac)
    for version, one in own.items():
        inside.run("ip", f"-{version}", "route", "del", str(tunnel.a.addresses[version]))
        inside.run("ip", "addr", "del", f"{one}/{one.max_prefixlen}", "dev", "eth0")
        host.netns.run("ip", f"-{version}", "route", "del", str(one))


def test_an_identity_of_another_network_is_none_of_this_one(
    tunnel: TunnelLab, flow: Flow, of_another_network: Container
) -> None:
    tunnel.serve(tunnel.a.netns, flow)
    there = tunnel.a.addresses[flow.family]
    tunnel.policy(tunnel.a, ingress=[of("c")])
    assert tunnel.miss(of_another_network.netns, flow, there) == SILENT
    tunnel.policy(tunnel.a)
    assert tunnel.reach(of_another_network.netns, flow, there) == str(address(4)[flow.family])


def test_the_hosts_own_marks_are_no_identities(tunnel: TunnelLab, flow: Flow) -> None:
    tunnel.serve(tunnel.a.netns, flow)
    there = tunnel.a.addresses[flow.family]
    tunnel.policy(tunnel.a, ingress=[of("c")])
    marking = f"meta mark set {MARKS['c']}"
    tunnel.two.netns.run("nft", "add table inet foreign")
    try:
        tunnel.two.netns.run("nft", "add chain inet foreign out { type route hook output priority mangle; }")
        tunnel.two.netns.run("nft", f"add rule inet foreign out {marking}")
        assert tunnel.miss(tunnel.two.netns, flow, there) == SILENT
        tunnel.policy(tunnel.a)
        assert tunnel.reach(tunnel.two.netns, flow, there) == str(address(4)[flow.family])
    finally:
        tunnel.two.netns.run("nft", "delete table inet foreign")


@pytest.mark.parametrize("family", [4, 6])
def test_an_identity_inside_a_tunnel_of_somebody_else_is_none_of_the_tunnel_around_it(
    tunnel: TunnelLab, family: int
) -> None:
    host, there = tunnel.one.netns, tunnel.c.addresses[family]
    far = {4: "198.51.100.7", 6: "2001:db8::7"}[family]
    ends = ("local", str(address(3)[family]), "remote", str(there))
    host.run("ip", "link", "add", "theirs0", "mtu", "1300", "type", "vxlan", "id", "9", "dstport", "4790", *ends)
    host.run("ip", "link", "set", "theirs0", "up")
    try:
        host.run("ip", "route", "add", far, "dev", "theirs0")
        host.run("ip", "neigh", "add", far, "lladdr", "02:00:00:00:00:07", "dev", "theirs0", "nud", "permanent")
        with Frames(tunnel.c.netns) as frames:
            for ingress, arrives in ((ANYBODY, True), (of("a"), False)):
                tunnel.policy(tunnel.c, ingress=[ingress])
                tunnel.two.netns.run("conntrack", "-F")
                word = f"inside {arrives}".encode()
                send_datagram(tunnel.a.netns, ip_address(far), word)
                assert frames.arrives(word) is arrives
    finally:
        host.run("ip", "link", "del", "theirs0")


def test_where_hosts_have_not_agreed_on_identities_none_comes_out_of_the_tunnel(tunnel: TunnelLab, flow: Flow) -> None:
    tunnel.serve(tunnel.a.netns, flow)
    there = tunnel.a.addresses[flow.family]
    tunnel.one.backend.apply(put=[replace(NETWORK, tunnel=replace(TUNNEL, marks=False))])
    tunnel.policy(tunnel.a, ingress=[of("b", "c")])
    assert tunnel.miss(tunnel.c.netns, flow, there) == SILENT
    assert tunnel.reach(tunnel.b.netns, flow, there) == str(tunnel.b.addresses[flow.family])
    tunnel.policy(tunnel.a)
    assert tunnel.reach(tunnel.c.netns, flow, there) == str(tunnel.c.addresses[flow.family])
