"""The kernel takes whatever sets the compiler makes of rules that overlap freely."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address
from random import Random

import pytest
from pytest_netns import NetnsFactory

from conetd.kernel.nft import NftablesBackend
from conetd.model import TCP, UDP, AddressRange, IPAddress, PortRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter
from conetd.policy.compile import compile_rules


def overlapping_rules(seed: int, count: int) -> list[Rule]:
    """Ranges of every width about the same few places, so that they contain, cross and touch one another."""
    random = Random(seed)

    def addresses(longest: int) -> AddressRange:
        kind: type[IPAddress] = IPv4Address if random.random() < 0.5 else IPv6Address
        base = 10 << 24 if kind is IPv4Address else 0xFD << 120
        first = base + random.randrange(64) * 512 + random.randrange(3)
        last = first + random.randrange(longest)
        return AddressRange(kind(first), kind(last))

    def rule() -> Rule:
        protocol = random.choice([TCP, TCP, TCP, TCP, UDP, UDP, 47, None])
        if protocol not in (TCP, UDP):
            return Rule(Verdict.ACCEPT, protocol, (addresses(64),))
        destinations = tuple(addresses(8192) for _ in range(random.randrange(1, 3)))
        low = random.choice([22, 53, 80, 443, 8000, random.randrange(60000)])
        high = low + random.choice([0, 0, 1, 50, 1000])
        return Rule(Verdict.ACCEPT, protocol, destinations, ports=(PortRange(low, high), PortRange(80, 80)))

    return [rule() for _ in range(count)]


@pytest.mark.parametrize("seed", range(8))
def test_rules_that_overlap_freely_are_taken_and_found_again(netns: NetnsFactory, seed: int) -> None:
    rules = tuple(overlapping_rules(seed, 250))
    assert all(sum(len(group.boxes) for group in compile_rules(rules, family)) > 50 for family in (4, 6))
    host = netns.make("host")
    backend = host.call(NftablesBackend)
    wanted: list[FilterObject] = [
        NetworkFilter("nnnnnnnnnnnn", (IPv4Network("172.16.0.0/24"),)),
        Endpoint("aaaaaaaaaaaa", "nnnnnnnnnnnn", "web", "veth0", (IPv4Address("172.16.0.2"),), "0a:00:00:00:00:01"),
        EndpointPolicy("aaaaaaaaaaaa", rules),
    ]
    try:
        host.call(backend.apply, wanted)

        assert list(host.call(backend.check, wanted)) == []
        assert host.run("nft", "list", "ruleset").stdout.count("10.0.") > 50
    finally:
        host.call(backend.close)
