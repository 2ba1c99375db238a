"""How the nftables backend keeps what tunnels and other hosts come to: told, repaired, pruned, one host at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.kernel.nft import NftablesBackend, available
from conetd.model import MarkRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, Tunnel, TunnelPeer

SUBNETS = (ip_network("10.1.0.0/16"), ip_network("fd01::/112"))
NETWORK = NetworkFilter("net", SUBNETS, tunnel=Tunnel("cx0", 4789, 0x123456, ((4, 24), (6, 120))))
NAMED = Rule(Verdict.ACCEPT, marks=(MarkRange(7, 7), MarkRange(9, 20)), origin="policies[0]")
ADDRESSES = (ip_address("10.1.3.2"), ip_address("fd01::302"))
WEB = Endpoint("key", "net", "web", "cv0", ADDRESSES, "02:00:00:00:00:01", mark=7)
POLICY = EndpointPolicy("key", ingress=(NAMED,), inside=(NAMED,))


def peer(number: int) -> TunnelPeer:
    parts = (ip_network(f"10.1.{number}.0/24"), ip_network(f"fd01::{number:x}00/120"))
    underlay = ip_address("192.0.2.0") + number if number % 2 else ip_address("fd00::") + number
    return TunnelPeer(f"peer{number}", "cx0", 4789, 0x123456, underlay, f"ee:ee:0a:01:{number:02x}:00", parts)


OBJECTS: list[FilterObject] = [NETWORK, peer(4), peer(5), WEB, POLICY]


class Kept:
    """A namespace and the backend in it."""

    def __init__(self, host: Netns) -> None:
        self.host = host
        self.backend = host.call(NftablesBackend)

    def nft(self, *words: str) -> str:
        """Run nft; `@w-key` stands for the chain whose name begins so."""
        return self.host.run("nft", *(re.sub(r"@([a-z]-\w+)", self.chain, word) for word in words)).stdout

    def chain(self, prefix: re.Match[str]) -> str:
        (found,) = re.findall(rf"chain ({prefix[1]}-[0-9a-f]+) ", self.host.run("nft", "list", "chains").stdout)
        return str(found)

    def rules(self) -> str:
        """Every chain with the numbers of its rules, and no set."""
        listed = self.nft("-a", "list", "table", "inet", "conetd")
        return re.sub(r"\n\t(set|map) .*?\n\t}\n", "", listed, flags=re.DOTALL)


@pytest.fixture
def kept(netns: NetnsFactory) -> Iterator[Kept]:
    host = netns.make("host")
    if not host.call(available):
        pytest.skip("this kernel has no nf_tables")
    kept = Kept(host)
    kept.backend.sync(OBJECTS)
    yield kept
    kept.backend.close()


DAMAGES = {
    "a host on the underlay gone": ("flush set inet conetd underlay4", "filter of tunnel peer peer5 has lost 1"),
    "a host in the tunnel gone": ("flush set inet conetd tunnel6", "filter of tunnel peer peer4 has lost 1"),
    "the VNI gone": ("flush set inet conetd vnis", "filter of network net has lost 1 of its elements in vnis"),
    "the subnets gone": ("flush set inet conetd overlay6", "network net has lost 1 of its elements in overlay6"),
    "the way into the tunnel's chain gone": (
        "flush map inet conetd entry",
        "filter of network net has lost 1 of its elements in entry",
    ),
    "the way of a container gone": ("flush map inet conetd entry", "(key) has lost 1 of its elements in entry"),
    "connection tracking of encapsulated packets on": (
        "flush chain inet conetd output; delete chain inet conetd output",
        "lacks its chain output",
    ),
    "marks let into the tunnel": ("insert rule inet conetd leaving accept", "has other rules in its chain leaving"),
    "the tunnel's chain opened": ("insert rule inet conetd @t-net accept", "has other rules in its chain t-net-"),
    "a mark changed": (
        "flush chain inet conetd @s-key; add rule inet conetd @s-key meta mark set 9",
        "has other rules in its chain s-key-",
    ),
    "what stays inside opened": ("insert rule inet conetd @w-key accept", "has other rules in its chain w-key-"),
    "everything flushed": ("flush ruleset", "does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_told_and_repaired(kept: Kept, damage: str) -> None:
    command, told = DAMAGES[damage]
    kept.backend.disturbed()
    kept.nft(command)
    assert kept.backend.disturbed()
    assert any(told in str(one) for one in kept.backend.check(OBJECTS)), kept.backend.check(OBJECTS)
    assert any(told in str(one) for one in kept.backend.sync(OBJECTS))
    assert not kept.backend.check(OBJECTS)
    assert not kept.backend.sync(OBJECTS)


@pytest.mark.parametrize("how", ["flush chain inet conetd @p", "insert rule inet conetd @p accept"])
def test_damage_to_a_policy_that_several_have_is_repaired_for_all(kept: Kept, how: str) -> None:
    objects = [*OBJECTS, replace(WEB, key="next", interface="cv1", addresses=tuple(a + 1 for a in ADDRESSES))]
    objects.append(replace(POLICY, key="next"))
    kept.backend.apply(put=objects)
    (shared,) = set(re.findall(r"chain (p-\w+) ", kept.nft("list", "chains")))
    kept.nft(how.replace("@p", shared))
    assert len([one for one in kept.backend.check(objects) if shared in str(one)]) == 2
    kept.backend.sync(objects)
    assert not kept.backend.check(objects)


def test_packets_are_asked_for_shut_links_only_while_there_are_some(kept: Kept) -> None:
    assert "closed_in" not in kept.nft("list", "chains")
    kept.host.run("ip", "link", "add", "cv0", "type", "veth", "peer", "name", "eth0")
    kept.backend.apply(drop=[("Endpoint", "key")])
    kept.host.call(kept.backend.disturbed)
    assert {"closed_in", "closed_out"} <= set(re.findall(r"chain (\w+) ", kept.nft("list", "chains")))
    kept.host.run("ip", "link", "del", "cv0")
    kept.host.call(kept.backend.disturbed)
    assert "closed_in" not in kept.nft("list", "chains")
    assert not kept.backend.sync([one for one in OBJECTS if one != WEB])


def test_a_link_stays_shut_when_its_endpoint_went_unseen(kept: Kept) -> None:
    kept.host.run("ip", "link", "add", "cv0", "type", "veth", "peer", "name", "eth0")
    kept.backend.sync([one for one in OBJECTS if one != WEB])
    assert '"cv0"' in kept.nft("list", "set", "inet", "conetd", "closed")
    assert "closed_in" in kept.nft("list", "chains")
    kept.backend.apply(put=[WEB])
    assert '"cv0"' not in kept.nft("list", "set", "inet", "conetd", "closed")
    assert "closed_in" not in kept.nft("list", "chains")


def test_a_tunnel_that_nobody_wants_is_no_link_to_shut(kept: Kept) -> None:
    kept.backend.sync([])
    assert '"cx0"' not in kept.nft("list", "set", "inet", "conetd", "closed")


def test_a_start_goes_on_asking_for_links_that_are_shut(kept: Kept) -> None:
    left = [one for one in OBJECTS if one != WEB]
    kept.backend.apply(drop=[("Endpoint", "key")])
    kept.nft("flush", "ruleset")
    kept.backend.sync(left)
    assert '"cv0"' in kept.nft("list", "set", "inet", "conetd", "closed")
    second = Kept(kept.host)
    assert not second.backend.sync(left)
    assert "closed_out" in kept.nft("list", "chains")
    kept.host.call(second.backend.disturbed)  # there is no such link any more
    assert "closed_out" not in kept.nft("list", "chains")
    second.backend.close()


def test_a_host_that_nobody_wants_is_removed(kept: Kept) -> None:
    wanted = [one for one in OBJECTS if one != peer(5)]
    assert {str(one) for one in kept.backend.sync(wanted)} == {
        f"packet filter had an element in {name} that nobody wants" for name in ("underlay4", "tunnel4", "tunnel6")
    }
    assert "192.0.2.5" not in kept.nft("list", "table", "inet", "conetd")


def test_a_host_that_nobody_wants_is_not_missed_by_a_look_at_the_others(kept: Kept) -> None:
    kept.nft("add element inet conetd tunnel4 { cx0 . ee:ee:0a:01:09:00 . 10.1.9.0 }")
    assert not kept.backend.check(OBJECTS)


def test_a_host_that_comes_or_goes_touches_no_rule(kept: Kept) -> None:
    before = kept.rules()
    kept.backend.apply(put=[peer(6)], drop=[("TunnelPeer", "peer4")])
    assert kept.rules() == before
    assert not kept.backend.check([NETWORK, peer(5), peer(6), WEB, POLICY])
    assert kept.backend.held("TunnelPeer", "peer4") is None


def test_a_host_that_moves_on_the_underlay_is_known_by_its_new_address_alone(kept: Kept) -> None:
    kept.backend.apply(put=[replace(peer(5), underlay=ip_address("192.0.2.200"))])
    listed = kept.nft("list", "set", "inet", "conetd", "underlay4")
    assert "192.0.2.200" in listed
    assert "192.0.2.5 " not in listed


def test_without_networks_and_hosts_nothing_is_looked_up_in_the_subnets(kept: Kept) -> None:
    kept.backend.sync([])
    for name in ("vnis", "overlaid", "vteps", "tunnel4", "tunnel6", "overlay4", "overlay6", "underlay4", "underlay6"):
        assert "elements" not in kept.nft("list", "set", "inet", "conetd", name)
    assert "elements" not in kept.nft("list", "map", "inet", "conetd", "entry")
    assert not {"output", "leaving"} & set(re.findall(r"chain (\w+) ", kept.nft("list", "chains")))


def test_a_start_finds_tunnels_as_they_were_left(kept: Kept) -> None:
    second = Kept(kept.host)
    before = kept.nft("-a", "list", "ruleset")
    assert not second.backend.sync(OBJECTS)
    assert kept.nft("-a", "list", "ruleset") == before
    second.backend.close()


def test_a_vni_is_listed_as_the_number_it_is(kept: Kept) -> None:
    assert "4789 . 0x00123456" in kept.nft("list", "set", "inet", "conetd", "vnis")
