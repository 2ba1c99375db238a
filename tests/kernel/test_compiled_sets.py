"""The kernel takes whatever sets the compiler makes of rules that overlap freely."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from random import Random

import pytest
from pytest_netns import NetnsFactory

from conetd.kernel.nft import NftablesBackend
from conetd.model import TCP, UDP, AddressRange, IPAddress, PortRange, Rule, Verdict
from conetd.plan import EndpointPolicy


def overlapping_rules(seed: int, count: int) -> list[Rule]:
    """Ranges of every width about the same few places, so that they contain, cross and touch one another."""
    random = Random(seed)

    def addresses() -> AddressRange:
        base, bits = random.choice([(10 << 24, 24), (0xFD << 120, 120)])
        kind: type[IPAddress] = IPv4Address if bits == 24 else IPv6Address
        ends = [random.randrange(8) * (1 << random.randrange(bits - 3)) + random.randrange(4) for _ in range(2)]
        return AddressRange(kind(base + min(ends)), kind(base + max(ends)))

    def rule() -> Rule:
        protocol = random.choice([None, TCP, TCP, TCP, UDP, UDP, 47])
        destinations = tuple(addresses() for _ in range(random.randrange(1, 3)))
        if protocol not in (TCP, UDP) or random.random() < 0.1:
            return Rule(Verdict.ACCEPT, protocol, destinations)
        low, high = sorted((random.choice([22, 53, 80, 443, 8000]), random.randrange(65536)))
        return Rule(Verdict.ACCEPT, protocol, destinations, ports=(PortRange(low, high), PortRange(80, 80)))

    return [rule() for _ in range(count)]


@pytest.mark.parametrize("seed", range(8))
def test_rules_that_overlap_freely_are_taken_and_found_again(netns: NetnsFactory, seed: int) -> None:
    host = netns.make("host")
    backend = host.call(NftablesBackend)
    policy = EndpointPolicy("aaaaaaaaaaaa", tuple(overlapping_rules(seed, 250)))
    try:
        host.call(backend.apply, [policy])

        assert list(host.call(backend.check, [policy])) == []
    finally:
        host.call(backend.close)
