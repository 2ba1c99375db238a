"""What the filter's objects come to in nftables: elements, chains, and the change from one state to the next."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from conetd.errors import KernelError
from conetd.kernel.nft import wire
from conetd.kernel.nft.chain import Chain, recognised
from conetd.kernel.nft.elements import link_local, name_key
from conetd.kernel.nft.mirror import Mirror
from conetd.kernel.nft.objects import of_attachment, of_network
from conetd.kernel.nft.verdicts import elements
from conetd.model import TCP, UDP, AddressRange, PortRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, PortMapping, Tunnel, TunnelPeer
from conetd.policy.boxes import Box

V4, V6 = ip_address("10.1.0.2"), ip_address("fd01::2")
NETWORK = NetworkFilter("net", (ip_network("10.1.0.0/24"), ip_network("fd01::/64")), "br0")
ENDPOINT = Endpoint("key", "net", "web-1", "br0", (V4, V6), "02:00:0a:01:00:02", "cv0")
ROUTED = replace(ENDPOINT, interface="cv0", port=None)
POLICY = EndpointPolicy("key")


def sets(endpoint: Endpoint | None, policy: EndpointPolicy | None, network: NetworkFilter | None) -> set[str]:
    return {name for name, _, _ in of_attachment(endpoint, policy, network).elements}


def chains(policy: EndpointPolicy, network: NetworkFilter = NETWORK) -> dict[str, Chain]:
    return {chain.name.rpartition("-")[0]: chain for chain in of_attachment(ENDPOINT, policy, network).chains}


def words(chain: Chain) -> str:
    return " | ".join(rule.words for rule in chain.rules)


def deny(*networks: str, log: bool = False) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            Verdict.REJECT, destinations=(AddressRange.of(ip_network(one)),), log=log, origin=f"deny_networks[{number}]"
        )
        for number, one in enumerate(networks)
    )


def test_a_link_local_address_follows_from_the_mac() -> None:
    assert ip_address(link_local(bytes.fromhex("02000a010002"))) == ip_address("fe80::aff:fe01:2")


def test_without_an_endpoint_there_is_nothing() -> None:
    assert not sets(None, POLICY, NETWORK)


def test_without_a_policy_its_link_is_known_and_nothing_it_says_is_its_own() -> None:
    assert sets(ENDPOINT, None, NETWORK) == {"ours", "ports", "entry"}
    shut = ("entry", name_key("cv0"), wire.verdict_data(wire.DROP))
    assert shut in of_attachment(ROUTED, None, replace(NETWORK, interface=None)).elements


def test_without_its_network_nobody_judges_and_so_nothing_leaves() -> None:
    found = sets(ENDPOINT, POLICY, None)
    assert {"source4", "source6", "port4", "port6"} <= found
    assert not {"egress4", "egress6", "network"} & found


def test_of_an_unknown_network_neighbours_are_apart() -> None:
    assert "isolated_ports" in sets(ENDPOINT, POLICY, None)
    assert "isolated_ports" not in sets(ENDPOINT, POLICY, NETWORK)


def test_a_container_without_ipv6_has_no_link_local_address_either() -> None:
    assert not {"source6", "port6", "egress6"} & sets(replace(ENDPOINT, addresses=(V4,)), POLICY, NETWORK)


def test_behind_a_bridge_the_way_to_a_mark_is_by_the_address() -> None:
    assert "m-key" not in chains(POLICY)
    contributed = of_attachment(replace(ENDPOINT, mark=7), POLICY, NETWORK)
    (chain,) = (one for one in contributed.chains if one.name.startswith("m-"))
    marked = {name_key("br0") + one.packed for one in (V4, V6)}
    assert {key for _, key, data in contributed.elements if data == wire.verdict_data(wire.GOTO, chain.name)} == marked


def test_an_interface_of_its_own_leads_to_a_chain_that_knows_its_addresses() -> None:
    contributed = of_attachment(ROUTED, POLICY, replace(NETWORK, interface=None))
    (chain,) = (one for one in contributed.chains if one.name.startswith("s-"))
    assert ("entry", name_key("cv0"), wire.verdict_data(wire.GOTO, chain.name)) in contributed.elements
    assert not {"source4", "source6"} & {name for name, _, _ in contributed.elements}
    assert words(chain).count("web-1: own address") == 3


def test_an_interface_that_is_shared_leads_to_the_addresses_of_all() -> None:
    shared = ("entry", name_key("br0"), wire.verdict_data(wire.GOTO, "source"))
    for network in (NETWORK, replace(NETWORK, interface=None), None):
        assert shared in of_attachment(ENDPOINT, POLICY, network).elements
    assert shared in of_attachment(replace(ENDPOINT, port=None), POLICY, NETWORK).elements
    assert shared in of_network(NETWORK).elements


def test_host_access_is_given_to_the_interface_the_containers_come_in_by() -> None:
    open_network = replace(NETWORK, host_access=True)
    assert ("host_access", name_key("br0"), b"") in of_network(open_network).elements
    routed = replace(ENDPOINT, interface="cv0", port=None)
    assert "host_access" in sets(routed, POLICY, replace(open_network, interface=None))


def test_what_a_network_opens_of_the_host_is_a_chain_its_interfaces_lead_to() -> None:
    resolver = Rule(Verdict.ACCEPT, UDP, ports=(PortRange(53, 53),), origin="dns_servers[0]")
    network = replace(NETWORK, host_rules=(resolver,))
    contributed = of_network(network)
    assert "host for net dns_servers[0] | host for net dns_servers[0]" in [words(chain) for chain in contributed.chains]
    assert "host" in {name for name, _, _ in contributed.elements}
    routed = replace(ENDPOINT, interface="cv0", port=None)
    assert "host" in sets(routed, POLICY, replace(network, interface=None))
    assert "host" not in {name for name, _, _ in of_network(NETWORK).elements}


def test_the_networks_rules_are_shared_by_its_containers() -> None:
    network = replace(NETWORK, rules=deny("10.0.0.0/8"))
    assert not chains(POLICY, network)["e-key"].rules
    (chain,) = of_network(network).chains
    assert words(chain) == "network net deny_networks[0] | network net: not denied"
    assert ("network", name_key("br0"), wire.verdict_data(wire.GOTO, chain.name)) in of_network(network).elements


def test_an_interface_of_its_own_leads_to_the_networks_rules_by_itself() -> None:
    routed = replace(ENDPOINT, interface="cv0", port=None)
    assert "network" in sets(routed, POLICY, replace(NETWORK, interface=None))
    assert "network" not in sets(ENDPOINT, POLICY, NETWORK)


@pytest.mark.parametrize(
    ("policy", "rules"),
    [(replace(POLICY, log_denied=True), deny("10.0.0.0/8")), (POLICY, deny("10.0.0.0/8", log=True))],
    ids=["log_denied", "a rule of the network that logs"],
)
def test_what_is_logged_under_a_handle_is_judged_in_its_own_chain(
    policy: EndpointPolicy, rules: tuple[Rule, ...]
) -> None:
    chain = chains(policy, replace(NETWORK, rules=rules))["e-key"]
    assert words(chain) == "web-1: network deny_networks[0] | web-1: not denied"


def test_a_chain_for_logs_stands_only_where_an_accepted_connection_is_logged() -> None:
    rule = Rule(Verdict.ACCEPT, TCP, log=True, origin="net_out[0]")
    assert set(chains(replace(POLICY, rules=(replace(rule, log=False), *deny("10.0.0.0/8", log=True))))) == {"e-key"}
    assert set(chains(replace(POLICY, rules=(rule,)))) == {"e-key", "l-key"}


def test_what_stays_inside_the_network_is_judged_where_a_policy_says_so() -> None:
    assert not {"inside4", "w-key"} & (sets(ENDPOINT, POLICY, NETWORK) | chains(POLICY).keys())
    opened = Rule(Verdict.ACCEPT, TCP, origin="policies[0]")
    judged = replace(POLICY, inside=(opened,))
    assert {"inside4", "inside6"} <= sets(ENDPOINT, judged, NETWORK)
    assert words(chains(judged)["w-key"]).endswith("web-1: inside policies[0] | web-1: inside not allowed")


def test_who_has_an_ingress_is_guarded_from_connections_that_come_back() -> None:
    assert "guarded4" not in sets(ENDPOINT, POLICY, NETWORK)
    assert {"guarded4", "guarded6"} <= sets(ENDPOINT, replace(POLICY, ingress=()), NETWORK)


def test_identities_are_kept_with_connections_in_a_tunnelled_network_alone() -> None:
    guarded = replace(POLICY, ingress=())
    tunnelled = replace(NETWORK, tunnel=TUNNEL)
    assert "identity" not in words(chains(guarded)["i-key"])
    assert words(chains(guarded, tunnelled)["i-key"]).count("web-1: ingress identity") == 2


def test_ingress_ends_with_a_drop_of_its_own() -> None:
    assert words(chains(replace(POLICY, ingress=()))["i-key"]) == "web-1: ingress not allowed"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("ports", [True, False])
def test_elements_are_written_as_any_other_element(family: int, ports: bool) -> None:
    first, last = (V4, V4 + 9) if family == 4 else (V6, V6 + 9)
    box = Box(6, 17, int(first), int(last), 80, 90)
    key, end = (bytes((p, 0, 0, 0)) + a.packed for p, a in ((6, first), (17, last)))
    if ports:
        key, end = key + b"\x00\x50\0\0", end + b"\x00\x5a\0\0"
    assert elements([box], family, ports=ports) == (wire.element(key, key_end=end),)


def test_rules_are_recognised_only_if_all_are_there_in_order() -> None:
    first, second, third = Chain(
        "c", of_network(replace(NETWORK, rules=deny("10.0.0.0/8", "fd00::/8"))).chains[0].rules
    ).comments
    whole = [first, second, third]
    assert recognised(whole)
    for other in ([first, second], [second, first, third], [*whole, third], [first, "", third], [first, first, third]):
        assert not recognised(other)


def test_rules_of_another_chain_give_another_fingerprint() -> None:
    prints = {
        of_network(replace(NETWORK, rules=deny(one))).chains[0].fingerprint for one in ("10.0.0.0/8", "11.0.0.0/8")
    }
    assert len(prints) == 2


# Tunnels.


TUNNEL = Tunnel("cx0", 4789, 42, ((4, 24), (6, 120)))


def peer(number: int) -> TunnelPeer:
    part = ip_network(f"10.1.{number}.0/24")
    return TunnelPeer(f"peer{number}", "cx0", 4789, 42, ip_address("192.0.2.0") + number, "ee:ee:0a:01:04:00", (part,))


def test_a_tunnel_opens_of_the_host_what_its_network_does() -> None:
    resolver = Rule(Verdict.ACCEPT, UDP, ports=(PortRange(53, 53),), origin="dns_servers[0]")
    network = replace(NETWORK, interface=None, tunnel=TUNNEL)
    for opened, name in ((replace(network, host_access=True), "host_access"),
                         (replace(network, host_rules=(resolver,)), "host")):  # fmt: skip
        assert (name, name_key("cx0")) in [place[:2] for place in of_network(opened).elements]
    assert not {"host", "host_access", "ours", "network"} & {name for name, _, _ in of_network(network).elements}


def test_an_ip_version_without_a_prefix_does_not_come_out_of_the_tunnel() -> None:
    (chain,) = (
        one
        for one in of_network(replace(NETWORK, tunnel=replace(TUNNEL, prefixes=((4, 24),)))).chains
        if one.name.startswith("t-")
    )
    assert words(chain) == "tunnel of net: from another host, IPv4 | tunnel of net: of nobody"


@pytest.mark.parametrize(("local", "packed"), [("192.0.2.1", "c0000201"), ("2001:db8::1", "20010db8" + "0" * 23 + "1")])
def test_the_address_that_other_hosts_send_to_is_known_by_its_ip_version(local: str, packed: str) -> None:
    address = ip_address(local)
    elements = of_network(replace(NETWORK, tunnel=replace(TUNNEL, local=address))).elements
    assert [one for one in elements if one[0].startswith("vtep_addresses")] == [
        (f"vtep_addresses{address.version}", bytes.fromhex(packed), b"")
    ]


def test_without_the_address_that_other_hosts_send_to_none_is_known() -> None:
    elements = of_network(replace(NETWORK, tunnel=TUNNEL)).elements
    assert [one for one in elements if one[0].startswith("vtep_addresses")] == []


def test_one_more_host_is_a_few_elements_however_many_there_are() -> None:
    mirror = Mirror([replace(NETWORK, tunnel=TUNNEL), ENDPOINT, POLICY, *(peer(number) for number in range(1, 200))])
    (unit,) = mirror.change([peer(200)], ()).units
    assert [name for name, _, _ in unit.add] == ["underlay4", "tunnel4"]
    assert not unit.new_chains + unit.delete + unit.gone_chains
    (unit,) = mirror.change((), [("TunnelPeer", "peer7")]).units
    assert [name for name, _ in unit.delete] == ["underlay4", "tunnel4"]


# From one state to the next.


def mapping(to: str, host_port: int = 7000) -> PortMapping:
    return PortMapping(TCP, host_port, ip_address(to), 8080)


def other(number: int = 3, **more: object) -> tuple[Endpoint, EndpointPolicy]:
    endpoint = replace(
        ENDPOINT, key="other", handle="web-2", addresses=(V4 + 1,), mac="02:00:0a:01:00:03", port=f"cv{number}"
    )
    return endpoint, replace(EndpointPolicy("other"), **more)  # type: ignore[arg-type]


def test_the_same_again_is_no_change() -> None:
    objects: list[FilterObject] = [NETWORK, ENDPOINT, POLICY]
    assert not Mirror(objects).change(objects, ())


def test_a_new_policy_is_another_chain_and_the_elements_that_lead_to_it() -> None:
    mirror = Mirror([NETWORK, ENDPOINT, POLICY])
    rules = (Rule(Verdict.ACCEPT, TCP, ports=(PortRange(80, 80),)),)
    (unit,) = mirror.change([replace(POLICY, rules=rules)], ()).units
    assert unit.live
    assert len(unit.new_chains) == len(unit.gone_chains) == 1
    assert unit.new_chains[0].name not in unit.gone_chains
    assert {name for name, _ in unit.delete} == {name for name, _, _ in unit.add} == {"egress4", "egress6"}


def test_a_shared_element_stays_until_its_last_owner_goes() -> None:
    mirror = Mirror([NETWORK, ENDPOINT, POLICY])
    ours = ("ours", name_key("br0"))
    change = mirror.change((), [("Endpoint", "key")])
    assert ours not in [place for unit in change.units for place in unit.delete]
    mirror.commit(change)
    assert ours in [place for unit in mirror.change((), [("NetworkFilter", "net")]).units for place in unit.delete]


def test_a_port_that_moves_is_taken_before_it_is_given() -> None:
    mirror = Mirror([NETWORK, ENDPOINT, replace(POLICY, ports=(mapping("10.1.0.2"),)), *other()])
    change = mirror.change([other(ports=(mapping("10.1.0.3"),))[1], POLICY], ())
    assert [name for unit in change.units for name, _ in unit.delete] == ["published4"]
    assert [name for unit in change.units for name, _, _ in unit.add] == ["published4"]


def test_a_port_wanted_by_two_is_refused_and_the_second_named() -> None:
    mirror = Mirror([NETWORK, ENDPOINT, replace(POLICY, ports=(mapping("10.1.0.2"),))])
    with pytest.raises(KernelError, match=r"web-2.*File exists"):
        mirror.change(other(ports=(mapping("10.1.0.3"),)), ())


def test_a_network_that_comes_later_opens_its_containers() -> None:
    mirror = Mirror([ENDPOINT, POLICY])
    added = {name for unit in mirror.change([NETWORK], ()).units for name, _, _ in unit.add}
    assert {"egress4", "egress6", "same4", "bridges"} <= added


def test_a_change_of_the_networks_rules_reaches_those_who_judge_by_themselves() -> None:
    mirror = Mirror([NETWORK, ENDPOINT, replace(POLICY, log_denied=True)])
    change = mirror.change([replace(NETWORK, rules=deny("10.0.0.0/8"))], ())
    assert {chain.name[:5] for unit in change.units for chain in unit.new_chains} == {"n-net", "e-key"}


def test_the_link_of_a_dropped_endpoint_is_shut_and_opened_when_it_comes_back() -> None:
    mirror = Mirror([NETWORK, ENDPOINT])
    change = mirror.change((), [("Endpoint", "key")])
    assert change.closed == [("closed_ports", name_key("cv0"))]
    mirror.commit(change)
    assert mirror.change([ENDPOINT], ()).reopened == [("closed_ports", name_key("cv0"))]


def test_a_link_that_passes_to_another_endpoint_is_not_shut() -> None:
    own = replace(NETWORK, interface=None)
    mirror = Mirror([own, ROUTED])
    change = mirror.change([replace(ROUTED, key="next")], [("Endpoint", "key")])
    assert not change.closed
    assert change.reopened == [("closed", name_key("cv0"))]


def test_chains_at_hooks_come_and_go_with_the_networks_that_need_them() -> None:
    mirror = Mirror([NETWORK])
    over = replace(NETWORK, key="over", interface=None, tunnel=TUNNEL)
    change = mirror.change([replace(NETWORK, isolated=True), over], ())
    assert change.needed == {"mapped", "output", "leaving"}
    mirror.commit(change)
    assert not mirror.change([replace(NETWORK, key="more", interface="br1", isolated=True)], ()).needed
    change = mirror.change((), [("NetworkFilter", "over")])
    assert change.unneeded == {"output", "leaving"}
    mirror.commit(change)
    assert mirror.optional == {"mapped"}


def test_looking_ahead_leaves_the_mirror_as_it_is() -> None:
    mirror = Mirror([NETWORK, ENDPOINT, POLICY])
    ahead = mirror.after(mirror.change((), [("Endpoint", "key")]))
    assert ("Endpoint", "key") in mirror.objects
    assert ("Endpoint", "key") not in ahead.objects
    assert not mirror.change([ENDPOINT], ())
