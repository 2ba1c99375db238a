"""What nft makes of our tables: what it lists, it reads."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.kernel.nft import NftablesBackend, available
from conetd.model import TCP, UDP, AddressRange, MarkRange, PortRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, PortMapping, Tunnel, TunnelPeer

V4, V6 = ip_address("10.1.0.2"), ip_address("fd01::2")
SUBNETS = (ip_network("10.1.0.0/24"), ip_network("fd01::/64"))
OVERLAY = (ip_network("10.2.0.0/16"), ip_network("fd02::/112"))
OPEN = Rule(Verdict.ACCEPT, TCP, (AddressRange.of(ip_network("10.9.0.0/24")),), ports=(PortRange(1, 9),), log=True)
DENY = Rule(Verdict.REJECT, destinations=(AddressRange.of(ip_network("10.0.0.0/8")),), origin="deny_networks[0]")
RESOLVER = Rule(Verdict.ACCEPT, UDP, ports=(PortRange(53, 53),), origin="dns_servers[0]")
LABELLED = Rule(Verdict.ACCEPT, TCP, marks=(MarkRange(7, 7), MarkRange(9, 20)), origin="policies[0]")
RANGES = Rule(Verdict.ACCEPT, TCP, marks=(MarkRange(1, 9000), MarkRange(10000, 20000)), origin="policies[1]")
TUNNEL = Tunnel("cx0", 4789, 42, ((4, 24), (6, 120)))
OBJECTS: list[FilterObject] = [
    NetworkFilter("blue", SUBNETS, "br0", SUBNETS, (DENY,), host_rules=(RESOLVER,), isolated=True, name="blue"),
    Endpoint("one", "blue", "one", "br0", (V4, V6), "02:00:0a:01:00:02", "cv1", mark=7),
    EndpointPolicy(
        "one", (OPEN,), (PortMapping(TCP, 7000, V4, 80), PortMapping(TCP, 7000, V6, 80)), (), log_denied=True
    ),
    NetworkFilter("over", OVERLAY, masquerade=OVERLAY, tunnel=TUNNEL, name="over"),
    TunnelPeer("two", "cx0", 4789, 42, ip_address("192.0.2.2"), "ee:ee:0a:02:04:00", (ip_network("10.2.4.0/24"),)),
    Endpoint("web", "over", "web", "cv2", (V4 + 65536, ip_address("fd02::2")), "02:00:0a:02:00:02", mark=9),
    EndpointPolicy("web", ingress=(LABELLED, RANGES), inside=(OPEN,)),
]


@pytest.fixture
def host(netns: NetnsFactory) -> Netns:
    host = netns.make("host")
    if not host.call(available):
        pytest.skip("this kernel has no nf_tables")
    return host


def named(listed: str) -> list[str]:
    """The tables, sets, maps and chains of a listing."""
    return re.findall(r"^\s*((?:table|set|map|chain) .*) {$", listed, flags=re.MULTILINE)


def test_what_nft_lists_of_our_tables_it_reads_back(host: Netns) -> None:
    """All but the rules that look into headers nft has no words for: it lists them, and then misses their type."""
    backend = host.call(NftablesBackend)
    gone = Endpoint("gone", "over", "gone", "cv3", (V4 + 65537,), "02:00:0a:02:00:03")
    backend.sync([*OBJECTS, gone])
    backend.sync(OBJECTS)  # so that a link is shut
    listed = host.run("nft", "list", "ruleset").stdout
    assert "notrack" in listed
    assert '"cv3"' in listed
    known = "".join(line for line in listed.splitlines(keepends=True) if not re.search(r"@(ll|nh|th),", line))
    host.run("nft", "-f", "-", input=f"flush ruleset\n{known}")
    assert named(host.run("nft", "list", "ruleset").stdout) == named(listed)
    backend.close()
