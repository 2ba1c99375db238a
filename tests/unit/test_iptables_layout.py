"""Which chains the legacy tables should hold for a set of objects."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from conetd.kernel.iptables.entries import CHAIN_NAME_MAX, Line, exactly, from_mac, pack, target_name
from conetd.kernel.iptables.layout import Layout, Wanted
from conetd.kernel.iptables.parts import chain
from conetd.model import Rule, Verdict, attachment_key, network_key
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, PortMapping, identity

KEY = network_key("blue")
NETWORK = NetworkFilter(KEY, (ip_network("10.0.0.0/16"),), "br0", (ip_network("10.0.0.0/16"),))


def endpoint(number: int = 1, **changes: object) -> Endpoint:
    address = ip_address("10.0.0.0") + number
    given: dict[str, object] = {
        "key": attachment_key("blue", str(number)),
        "network": KEY,
        "handle": f"c{number}",
        "interface": "br0",
        "addresses": (address,),
        "mac": "02:00:00:00:00:01",
        "port": "veth1",
    }
    return Endpoint(**(given | changes))  # type: ignore[arg-type]  # checked by the tests that use it


def built(*objects: FilterObject, opened: tuple[tuple[int, str], ...] = (), shut: tuple[str, ...] = ()) -> Wanted:
    return Layout().build({identity(one): one for one in objects}, opened, shut)


ONE = endpoint()
POLICY = EndpointPolicy(ONE.key)
SOURCE = pack(
    Line("RETURN", source=exactly(ONE.addresses[0]), matches=(from_mac(ONE.mac),), comment="c1"),
    4,
)


def test_nothing_wanted_is_no_chain_in_any_table() -> None:
    assert not any(table.chains or table.jumps for table in built().values())


def test_an_endpoint_with_a_policy_may_speak() -> None:
    assert SOURCE in built(NETWORK, ONE, POLICY)[4, "raw"].chains["conetd-s-br0"]


def test_an_endpoint_without_a_policy_may_not() -> None:
    assert built(NETWORK, ONE)[4, "raw"].chains["conetd-s-br0"] == [pack(Line("DROP"), 4)]


def test_an_endpoint_of_an_unknown_network_may_not() -> None:
    assert built(ONE, POLICY)[4, "raw"].chains["conetd-s-br0"] == [pack(Line("DROP"), 4)]


def test_an_interface_without_ipv6_addresses_is_closed_for_ipv6() -> None:
    assert built(NETWORK, ONE, POLICY)[6, "raw"].chains["conetd-s-br0"] == [pack(Line("DROP"), 6)]


def test_a_link_of_its_own_needs_no_mac_to_tell_who_speaks() -> None:
    alone = endpoint(interface="veth1", port=None)
    wanted = built(NetworkFilter(KEY, NETWORK.subnets), alone, EndpointPolicy(alone.key))
    allowed = pack(Line("RETURN", source=exactly(alone.addresses[0]), comment="c1"), 4)
    assert wanted[4, "raw"].chains["conetd-s-veth1"] == [allowed, pack(Line("DROP"), 4)]


def test_many_sources_are_split_by_the_end_of_their_address() -> None:
    many = [endpoint(number) for number in range(1, 101)]
    table = built(NETWORK, *many, *(EndpointPolicy(one.key) for one in many))[4, "raw"]
    assert max(len(rules) for rules in table.chains.values()) == 33


def test_the_same_objects_make_the_same_chains_in_any_order() -> None:
    objects: list[FilterObject] = [NETWORK, *(endpoint(number) for number in range(1, 9)), POLICY]
    assert built(*objects) == built(*reversed(objects))


def test_mappings_of_one_address_go_before_those_of_all() -> None:
    everywhere = PortMapping(6, 80, ip_address("10.0.0.1"), 8080)
    somewhere = PortMapping(6, 80, ip_address("10.0.0.2"), 8080, ip_address("192.0.2.1"))
    other = endpoint(2)
    wanted = built(
        NETWORK,
        ONE,
        EndpointPolicy(ONE.key, ports=(everywhere,)),
        other,
        EndpointPolicy(other.key, ports=(somewhere,)),
    )
    first, second = wanted[4, "nat"].chains["conetd-pre"]
    assert (somewhere.to.packed in first, everywhere.to.packed in second) == (True, True)


def test_an_opened_uplink_is_no_way_through_for_strangers() -> None:
    wanted = built(opened=((4, "eth0"),))
    assert wanted[4, "filter"].chains["conetd-forward"] == [pack(Line("DROP", incoming="eth0"), 4)]


def test_an_uplink_opened_for_one_ip_version_is_left_alone_in_the_other() -> None:
    assert built(opened=((4, "eth0"),))[6, "filter"].chains == {}


def test_a_link_left_behind_passes_nothing_in_either_direction() -> None:
    wanted = built(shut=("veth9",))
    assert wanted[4, "raw"].chains["conetd-raw"] == [pack(Line("DROP", incoming="veth9"), 4)]
    assert wanted[4, "filter"].chains["conetd-forward"] == [pack(Line("DROP", outgoing="veth9"), 4)]


def test_the_rules_of_the_network_are_shared_by_its_endpoints() -> None:
    network = NetworkFilter(KEY, NETWORK.subnets, "br0", rules=(Rule(Verdict.REJECT),))
    table = built(network, ONE, POLICY)[4, "filter"]
    assert [target_name(rule, 4) for rule in table.chains[chain("n", KEY)]] == ["REJECT"]
    assert pack(Line(chain("n", KEY)), 4) in table.chains[chain("e", ONE.key)]


def test_the_rules_of_the_network_log_in_the_name_of_each_endpoint_that_asks_for_it() -> None:
    network = NetworkFilter(KEY, NETWORK.subnets, "br0", rules=(Rule(Verdict.REJECT),))
    table = built(network, ONE, EndpointPolicy(ONE.key, log_denied=True))[4, "filter"]
    targets = [target_name(rule, 4) for rule in table.chains[chain("e", ONE.key)]]
    assert targets == ["NFLOG", "REJECT", "conetd-to"]


def test_without_a_mark_the_mangle_table_is_left_alone() -> None:
    wanted = built(NETWORK, ONE, POLICY)
    assert (wanted[4, "mangle"].chains, wanted[4, "mangle"].jumps) == ({}, {})


@pytest.mark.parametrize("key", ["short", KEY, "a" * 60])
def test_chain_names_fit_the_kernel(key: str) -> None:
    assert len(chain("e", key)) <= CHAIN_NAME_MAX


def test_the_chains_of_two_long_keys_have_two_names() -> None:
    assert chain("e", "a" * 60) != chain("e", "a" * 61)
