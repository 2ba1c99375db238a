"""How the nftables backend keeps its tables: twice is once, drift found and repaired, nobody else's touched."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.errors import KernelError
from conetd.kernel.nft import NftablesBackend, available
from conetd.model import TCP, UDP, AddressRange, PortRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, PortMapping

FOREIGN = 'table inet theirs { chain c { type filter hook input priority 5; counter comment "mine"; }; }'
DENY = Rule(Verdict.REJECT, destinations=(AddressRange.of(ip_network("10.0.0.0/8")),), origin="deny_networks[0]")
RESOLVER = Rule(Verdict.ACCEPT, UDP, ports=(PortRange(53, 53),), origin="dns_servers[0]")
NETWORK = NetworkFilter(
    "net",
    (ip_network("10.1.0.0/24"), ip_network("fd01::/64")),
    "br0",
    (ip_network("10.1.0.0/24"),),
    (DENY,),
    host_rules=(RESOLVER,),
)


class Kept(NamedTuple):
    """A namespace and the backend in it."""

    host: Netns
    backend: NftablesBackend

    def nft(self, *words: str) -> str:
        """Run nft; `@e-key0` stands for the chain whose name begins so."""
        return self.host.run("nft", *(re.sub(r"@([ehin]-\w+)", self.chain, word) for word in words)).stdout

    def chain(self, prefix: re.Match[str]) -> str:
        """The whole name of a chain: behind the prefix it has the fingerprint of its rules."""
        found = re.findall(rf"chain ({prefix[1]}-[0-9a-f]+) ", self.host.run("nft", "list", "chains", "inet").stdout)
        assert len(found) == 1, found
        return str(found[0])


def attachment(number: int, *rules: Rule, **more: object) -> list[FilterObject]:
    addresses = (ip_address("10.1.0.2") + number, ip_address("fd01::2") + number)
    mac = f"02:00:0a:01:00:{number + 2:02x}"
    endpoint = Endpoint(f"key{number}", "net", f"web-{number}", "br0", addresses, mac, f"cv{number}")
    opened = Rule(Verdict.ACCEPT, TCP, (AddressRange.of(ip_network("10.9.0.0/24")),), origin="net_out[0]")
    ports = (PortMapping(TCP, 7000 + number, addresses[0], 80),)
    policy = EndpointPolicy(endpoint.key, rules or (opened,), ports)
    return [endpoint, replace(policy, **more)]  # type: ignore[arg-type]


OBJECTS: list[FilterObject] = [NETWORK, *attachment(0), *attachment(1)]


@pytest.fixture
def kept(netns: NetnsFactory) -> Iterator[Kept]:
    host = netns.make("host")
    if not host.call(available):
        pytest.skip("this kernel has no nf_tables")
    backend = host.call(NftablesBackend)
    backend.sync(OBJECTS)
    yield Kept(host, backend)
    backend.close()


def reasons(kept: Kept) -> list[str]:
    return [str(one) for one in kept.backend.check(OBJECTS)]


def handles(kept: Kept, chain: str) -> list[str]:
    return re.findall(r"# handle (\d+)", kept.nft("-a", "list", "chain", "inet", "conetd", chain))


def test_the_first_start_finds_nothing_wrong(netns: NetnsFactory) -> None:
    backend = netns.make("host").call(NftablesBackend)
    assert not backend.sync([])
    assert not backend.sync([])
    backend.close()


def test_what_is_applied_twice_is_not_sent_twice(kept: Kept) -> None:
    kept.backend.disturbed()
    before = kept.nft("-a", "list", "ruleset")
    kept.backend.apply(put=OBJECTS)
    kept.backend.apply(drop=[("Endpoint", "nobody's")])
    assert not kept.backend.disturbed()
    assert kept.nft("-a", "list", "ruleset") == before


def test_everything_is_as_wanted_after_an_apply(kept: Kept) -> None:
    more = attachment(2)
    kept.backend.apply(put=more, drop=[("Endpoint", "key1"), ("EndpointPolicy", "key1")])
    assert not kept.backend.check([NETWORK, *attachment(0), *more])
    assert not kept.backend.sync([NETWORK, *attachment(0), *more])


def test_what_is_held_is_what_was_put(kept: Kept) -> None:
    assert kept.backend.held("NetworkFilter", "net") == NETWORK
    kept.backend.apply(drop=[("NetworkFilter", "net")])
    assert kept.backend.held("NetworkFilter", "net") is None


def test_dropping_everything_leaves_only_what_is_fixed(kept: Kept) -> None:
    kept.backend.apply(
        drop=[("NetworkFilter", "net"), *((kind, f"key{n}") for n in (0, 1) for kind in ("Endpoint", "EndpointPolicy"))]
    )
    rules = kept.nft("list", "table", "inet", "conetd")
    assert "10.1.0." not in rules
    assert "key0" not in rules
    assert "n-net" not in rules
    assert "h-net" not in rules
    assert not kept.backend.sync([])


FIRST = '"br0" . 10.1.0.2'
DAMAGES = {
    "everything flushed": ("flush ruleset", "does not exist"),
    "one table gone": ("delete table bridge conetd", "does not exist"),
    "an element gone": (
        'delete element inet conetd source4 { "br0" . 10.1.0.2 }',
        "has lost 1 of its elements in source4",
    ),
    "an element changed": (
        f"delete element inet conetd egress4 {{ {FIRST} }}; "
        f"add element inet conetd egress4 {{ {FIRST} : jump @e-key1 }}",
        "has lost 1 of its elements in egress4",
    ),
    "an interval gone": (
        "delete element inet conetd same4 { 10.1.0.0/24 . 10.1.0.0/24 }",
        "has lost 1 of its elements in same4",
    ),
    "a chain emptied": ("flush chain inet conetd @e-key0", "has other rules in its chain e-key0-"),
    "a rule added": ("add rule inet conetd @e-key0 accept", "has other rules in its chain e-key0-"),
    "a rule inserted": ("insert rule inet conetd @n-net accept", "has other rules in its chain n-net-"),
    "a rule added to what is open of the host": (
        "add rule inet conetd @h-net accept",
        "has other rules in its chain h-net-",
    ),
    "the way to what is open of the host gone": (
        'delete element inet conetd host { "br0" }',
        "has lost 1 of its elements in host",
    ),
    "a chain gone": (
        f"delete element inet conetd egress4 {{ {FIRST} }}; "
        'delete element inet conetd egress6 { "br0" . fd01::2 }; '
        "flush chain inet conetd @e-key0; delete chain inet conetd @e-key0",
        "has lost its chain e-key0-",
    ),
    "a fixed rule added": ("insert rule inet conetd forward accept", "has other rules in its chain forward"),
    "a fixed chain emptied": ("flush chain bridge conetd identity", "has other rules in its chain identity"),
    "a policy changed": ("add chain inet conetd input { policy drop; }", "at another hook or with another policy"),
    "a chain put in": (
        "add chain inet conetd mine { type filter hook forward priority 3; policy drop; }",
        "none of ours",
    ),
    "a set put in": ("add set inet conetd mine { type ipv4_addr; }", "has other sets: mine"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_told_and_repaired(kept: Kept, damage: str) -> None:
    command, told = DAMAGES[damage]
    kept.backend.disturbed()
    kept.nft(command)
    assert kept.backend.disturbed()
    assert any(told in one for one in reasons(kept)), reasons(kept)
    assert any(told in str(one) for one in kept.backend.sync(OBJECTS))
    assert not reasons(kept)
    assert not kept.backend.sync(OBJECTS)
    assert not kept.backend.disturbed()


SURPLUS = {
    "an element": (
        'add element inet conetd source4 { "br0" . 10.1.0.99 : accept }',
        "had an element in source4 that nobody wants",
    ),
    "a port of nobody": ("add element bridge conetd ports { cv99 }", "had an element in ports that nobody wants"),
    "a chain": ("add chain inet conetd e-nobody; add rule inet conetd e-nobody accept", "had a chain e-nobody"),
}


@pytest.mark.parametrize("surplus", SURPLUS)
def test_what_nobody_wants_is_removed(kept: Kept, surplus: str) -> None:
    command, told = SURPLUS[surplus]
    kept.nft(command)
    assert not reasons(kept), "others are not looked for"
    assert any(told in str(one) for one in kept.backend.sync(OBJECTS))
    assert not kept.backend.sync(OBJECTS)


def test_repairing_one_chain_leaves_the_others_as_they_are(kept: Kept) -> None:
    kept.nft("flush", "chain", "inet", "conetd", "@e-key0")
    before = [handles(kept, chain) for chain in ("@e-key1", "@n-net", "forward")]
    kept.backend.sync(OBJECTS)
    assert [handles(kept, chain) for chain in ("@e-key1", "@n-net", "forward")] == before


def test_an_apply_notices_by_itself_that_everything_was_flushed(kept: Kept) -> None:
    kept.nft("flush", "ruleset")
    kept.backend.apply(put=attachment(2))
    assert not kept.backend.check([*OBJECTS, *attachment(2)])


def test_a_start_finds_its_tables_as_they_were_left(kept: Kept) -> None:
    before = kept.nft("-a", "list", "ruleset")
    second = kept.host.call(NftablesBackend)
    assert not second.sync(OBJECTS)
    assert not second.disturbed()
    assert kept.nft("-a", "list", "ruleset") == before
    second.close()


def test_an_apply_before_the_first_sync_takes_nothing_from_the_others(kept: Kept) -> None:
    second = kept.host.call(NftablesBackend)
    second.apply(put=attachment(2))
    assert not kept.backend.check([*OBJECTS, *attachment(2)][:5])
    second.close()


def test_other_tables_are_left_alone(kept: Kept) -> None:
    kept.host.run("nft", "-f", "-", input=FOREIGN)
    before = kept.nft("-a", "list", "table", "inet", "theirs")
    kept.backend.apply(put=attachment(2))
    kept.backend.sync(OBJECTS)
    kept.nft("delete", "table", "inet", "conetd")
    kept.backend.sync(OBJECTS)
    kept.backend.remove_all()
    assert kept.nft("-a", "list", "table", "inet", "theirs") == before


def test_remove_all_leaves_nothing_and_may_be_repeated(kept: Kept) -> None:
    kept.backend.remove_all()
    kept.backend.remove_all()
    assert not kept.nft("list", "ruleset")
    assert kept.backend.held("NetworkFilter", "net") is None


def test_what_the_kernel_refuses_is_named_and_nothing_is_changed(kept: Kept) -> None:
    before = kept.nft("-a", "list", "ruleset")
    endpoint, policy = attachment(2)
    assert isinstance(endpoint, Endpoint)
    with pytest.raises(KernelError, match="web-2") as caught:
        kept.backend.apply(put=[*attachment(3), replace(endpoint, interface="a-name-of-more-than-16-bytes"), policy])
    assert caught.value.errno == errno.EINVAL
    assert kept.nft("-a", "list", "ruleset") == before
    assert kept.backend.held("Endpoint", "key3") is None
    kept.backend.apply(put=attachment(3))
    assert not kept.backend.check([*OBJECTS, *attachment(3)])


def test_opened_uplinks_are_kept_through_a_sync_and_a_flush(kept: Kept) -> None:
    kept.backend.set_opened(4, ["up0", "up1"])
    kept.backend.set_opened(6, ["up2"])
    kept.backend.set_opened(4, ["up1"])
    kept.nft("flush", "ruleset")
    kept.backend.sync(OBJECTS)
    opened = [kept.nft("list", "set", "inet", "conetd", f"opened{version}") for version in (4, 6)]
    assert [re.findall('"(up.)"', one) for one in opened] == [["up1"], ["up2"]]


def test_a_link_stays_shut_when_its_endpoint_went_unseen(kept: Kept) -> None:
    kept.backend.sync([NETWORK, *attachment(0)])
    assert '"cv1"' in kept.nft("list", "set", "bridge", "conetd", "closed_ports")
    kept.backend.apply(put=attachment(1))
    assert '"cv1"' not in kept.nft("list", "set", "bridge", "conetd", "closed_ports")


def test_a_comment_leads_from_the_rule_to_its_line_in_the_document(kept: Kept) -> None:
    assert "web-0: net_out[0]" in kept.nft("list", "chain", "inet", "conetd", "@e-key0")
    assert "network net deny_networks[0]" in kept.nft("list", "chain", "inet", "conetd", "@n-net")


def test_a_policy_of_thousands_of_overlapping_rules_is_held(kept: Kept) -> None:
    rules = tuple(
        Rule(
            Verdict.ACCEPT,
            TCP if number % 3 else UDP,
            (AddressRange(ip_address("11.0.0.0") + number * 50, ip_address("11.0.0.0") + number * 50 + 120),),
            ports=(PortRange(number % 100, number % 100 + 30 + number % 7),),
            origin=f"net_out[{number}]",
        )
        for number in range(1000)
    )
    objects = attachment(0, *rules)
    kept.backend.apply(put=objects)
    assert not kept.backend.check(objects)
    assert len(handles(kept, "@e-key0")) < 10


def test_more_elements_than_one_message_holds_are_all_there(kept: Kept) -> None:
    rules = tuple(
        Rule(Verdict.ACCEPT, TCP, (AddressRange(one, one),), ports=(PortRange(number + 1, number + 1),))
        for number, one in enumerate(ip_address("11.0.0.0") + 2 * number for number in range(5000))
    )
    kept.backend.apply(put=attachment(0, *rules))
    assert kept.nft("list", "chain", "inet", "conetd", "@e-key0").count("tcp . 11.0.") == 5000
