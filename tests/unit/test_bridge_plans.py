"""The bridge driver's plans say what its config, a lease and a policy mean."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from conetd_bridge import BridgeConfig, BridgeDriver, BridgePolicy

from conetd.driver import Attachment, Conflict, HostPort, Invalid, Lease, Network
from conetd.model import attachment_key
from conetd.plan import (
    TCP,
    UDP,
    Address,
    AddressRange,
    Bridge,
    Endpoint,
    EndpointPolicy,
    IPAddress,
    Neighbour,
    NetworkFilter,
    Plan,
    PortMapping,
    PortRange,
    Route,
    Rule,
    Side,
    Verdict,
    Veth,
)

DRIVER = BridgeDriver()
KEY = attachment_key("blue", "web")
IP, IP6 = ip_address("10.1.0.2"), ip_address("fd00::2")
MAC = "0a:c0:0a:01:00:02"


def network(name: str = "blue", uplink_mtu: int = 1450, **config: Any) -> Network[BridgeConfig]:
    return Network(name, "bridge", DRIVER.config_schema().load({"subnet": "10.1.0.0/24"} | config), uplink_mtu)


def policy(**document: Any) -> BridgePolicy:
    loaded: BridgePolicy = DRIVER.policy_schema().load(document)
    return loaded


def attachment(
    *, ip6: bool = False, default_route: frozenset[int] = frozenset({4, 6}), ports: tuple[HostPort, ...] = ()
) -> Attachment:
    data = {"ip": str(IP), "mac": MAC} | ({"ip6": str(IP6)} if ip6 else {})
    return Attachment(
        "blue", "web", KEY, "eth0", lease=Lease(data, frozenset()), default_route=default_route, ports=ports
    )


def reject(cidr: str, origin: str) -> Rule:
    return Rule(Verdict.REJECT, destinations=(AddressRange.of(ip_network(cidr)),), origin=origin)


def sysctls(plan: Plan) -> dict[str, str]:
    return {one.path: one.value for one in plan.sysctls}


def endpoint_policy(plan: Plan) -> EndpointPolicy:
    (found,) = plan.filter
    assert isinstance(found, EndpointPolicy)
    return found


def test_a_network_is_a_bridge_with_the_gateway_on_it() -> None:
    blue = network()
    plan = DRIVER.plan_network(blue)

    assert plan.links == (Bridge(f"cb{blue.key}", "0a:c0:0a:01:00:01", 1450),)
    assert plan.addresses == (Address(f"cb{blue.key}", ip_interface("10.1.0.1/24")),)
    assert plan.forward == {4}


def test_without_subnet6_the_bridge_is_silent_in_ipv6() -> None:
    assert sysctls(DRIVER.plan_network(network(bridge="br0"))) == {"ipv6/conf/br0/disable_ipv6": "1"}


def test_a_bridge_too_small_for_ipv6_is_asked_for_no_sysctl_that_it_has_not() -> None:
    assert DRIVER.plan_network(network(mtu=1279)).sysctls == ()


def test_with_subnet6_the_bridge_has_its_gateway_and_takes_no_advertisements() -> None:
    plan = DRIVER.plan_network(network(bridge="br0", subnet6="fd00::/64"))

    assert plan.addresses[1] == Address("br0", ip_interface("fd00::1/64"))
    assert sysctls(plan).items() >= {"ipv6/conf/br0/disable_ipv6": "0", "ipv6/conf/br0/accept_ra": "0"}.items()
    assert plan.forward == {4, 6}


def test_the_networks_filter_says_what_holds_for_all_its_containers() -> None:
    blue = network(
        bridge="br0", subnet6="2001:db8::/64", deny_networks=["10.0.0.0/8"], allow_host_access=True, isolated=True
    )

    assert DRIVER.plan_network(blue).filter == (
        NetworkFilter(
            blue.key,
            (ip_network("10.1.0.0/24"), ip_network("2001:db8::/64")),
            name="blue",
            interface="br0",
            masquerade=(ip_network("10.1.0.0/24"),),
            rules=(reject("10.0.0.0/8", "config.deny_networks[0]"),),
            host_access=True,
            isolated=True,
        ),
    )


def test_resolvers_that_may_run_on_the_host_are_open_at_port_53_alone() -> None:
    [filter_] = DRIVER.plan_network(network(dns_servers=["10.1.0.1", "fd00::53"])).filter

    assert isinstance(filter_, NetworkFilter)
    opened = [(str(r.destinations[0].first), r.protocol, r.ports, r.verdict, r.origin) for r in filter_.host_rules]
    assert opened == [
        (address, protocol, (PortRange(53, 53),), Verdict.ACCEPT, f"config.dns_servers[{number}]")
        for number, address in enumerate(["10.1.0.1", "fd00::53"])
        for protocol in (17, 6)
    ]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (network(), 1450),
        (network(mtu=9000), 9000),
        (network(uplink_mtu=1000), 1000),
        (network(uplink_mtu=1000, subnet6="fd00::/64"), 1280),
    ],
)
def test_the_mtu_is_the_configured_one_else_the_uplinks(given: Network[BridgeConfig], wanted: int) -> None:
    assert DRIVER.plan_network(given).links[0].mtu == wanted
    assert DRIVER.plan_attachment(given, attachment()).links[0].mtu == wanted
    assert DRIVER.describe(given, attachment())["mtu"] == wanted


def test_an_attachment_is_a_pair_with_address_and_default_route() -> None:
    plan = DRIVER.plan_attachment(network(bridge="br0"), attachment())

    assert plan.links == (Veth(f"cv{KEY}", "eth0", MAC, 1450, bridge="br0"),)
    assert plan.addresses == (Address("eth0", ip_interface("10.1.0.2/24"), Side.CONTAINER),)
    assert plan.routes == (Route(ip_network("0.0.0.0/0"), "eth0", via=ip_address("10.1.0.1"), side=Side.CONTAINER),)


def test_an_attachment_with_ipv6_has_both_addresses_and_both_routes() -> None:
    plan = DRIVER.plan_attachment(network(subnet6="fd00::/64"), attachment(ip6=True))

    assert [str(one.interface) for one in plan.addresses] == ["10.1.0.2/24", "fd00::2/64"]
    assert [str(one.via) for one in plan.routes] == ["10.1.0.1", "fd00::1"]


def test_gateway_and_container_need_not_ask_for_each_other() -> None:
    plan = DRIVER.plan_attachment(network(bridge="br0", subnet6="fd00::/64"), attachment(ip6=True))

    bridge_mac = "0a:c0:0a:01:00:01"
    assert set(plan.neighbours) == {
        Neighbour("eth0", ip_address("10.1.0.1"), bridge_mac, Side.CONTAINER),
        Neighbour("eth0", ip_address("fd00::1"), bridge_mac, Side.CONTAINER),
        Neighbour("br0", IP, MAC),
        Neighbour("br0", IP6, MAC),
    }


@pytest.mark.parametrize(("versions", "routes"), [([], []), ([4], ["0.0.0.0/0"]), ([6], ["::/0"])])
def test_default_routes_are_given_for_the_versions_asked_for(versions: list[int], routes: list[str]) -> None:
    plan = DRIVER.plan_attachment(network(subnet6="fd00::/64"), attachment(ip6=True, default_route=frozenset(versions)))

    assert [str(route.destination) for route in plan.routes] == routes


def test_ipv6_is_off_in_the_container_before_its_interface_is_born() -> None:
    plan = DRIVER.plan_attachment(network(), attachment())

    assert sysctls(plan) == {"ipv6/conf/default/disable_ipv6": "1"}
    assert all(one.early and one.side is Side.CONTAINER for one in plan.sysctls)


def test_with_subnet6_the_interface_is_born_with_ipv6_and_without_delays() -> None:
    plan = DRIVER.plan_attachment(network(subnet6="fd00::/64"), attachment(ip6=True))

    assert sysctls(plan) == {
        "ipv6/conf/default/disable_ipv6": "0",
        "ipv6/conf/default/accept_dad": "0",
        "ipv6/conf/default/accept_ra": "0",
    }
    assert all(one.early and one.side is Side.CONTAINER for one in plan.sysctls)


def test_a_mac_that_was_asked_for_is_told_to_those_who_knew_the_address_at_another() -> None:
    asked = Lease({"ip": str(IP), "ip6": str(IP6), "mac": "02:00:00:00:00:01"}, frozenset())
    plan = DRIVER.plan_attachment(network(subnet6="fd00::/64"), replace(attachment(), lease=asked))

    notify = {"ipv4/conf/default/arp_notify": "1", "ipv6/conf/default/ndisc_notify": "1"}
    assert sysctls(plan).items() >= notify.items()
    assert all(one.early and one.side is Side.CONTAINER for one in plan.sysctls)


def test_the_endpoint_may_speak_with_its_own_addresses_and_mac_only() -> None:
    blue = network(bridge="br0", subnet6="fd00::/64")

    assert DRIVER.plan_attachment(blue, attachment(ip6=True)).filter == (
        Endpoint(KEY, blue.key, "web", "br0", (IP, IP6), MAC, port=f"cv{KEY}"),
    )


def test_what_net_out_opens_comes_before_what_the_policy_denies() -> None:
    given = policy(net_out=[{"protocol": 1}, {"log": True}], deny_networks=["10.0.0.0/8", "fd00::/8"], log_denied=True)

    assert DRIVER.plan_policy(network(), attachment(), given).filter == (
        EndpointPolicy(
            KEY,
            (
                Rule(Verdict.ACCEPT, TCP, origin="net_out[0]"),
                Rule(Verdict.ACCEPT, log=True, origin="net_out[1]"),
                reject("10.0.0.0/8", "deny_networks[0]"),
                reject("fd00::/8", "deny_networks[1]"),
            ),
            log_denied=True,
        ),
    )


def test_an_empty_policy_allows_what_the_network_allows() -> None:
    assert DRIVER.plan_policy(network(), attachment(), policy()).filter == (EndpointPolicy(KEY),)


def test_a_published_port_leads_to_each_address_of_the_container() -> None:
    given = attachment(ip6=True, ports=(HostPort(TCP, 8080, 80),))

    assert endpoint_policy(DRIVER.plan_policy(network(subnet6="fd00::/64"), given, policy())).ports == (
        PortMapping(TCP, 8080, IP, 80),
        PortMapping(TCP, 8080, IP6, 80),
    )


@pytest.mark.parametrize(("host_ip", "target"), [("192.0.2.1", IP), ("2001:db8::1", IP6)])
def test_a_port_published_on_one_address_leads_to_the_containers_of_that_version(
    host_ip: str, target: IPAddress
) -> None:
    given = attachment(ip6=True, ports=(HostPort(UDP, 53, 53, ip_address(host_ip)),))

    assert endpoint_policy(DRIVER.plan_policy(network(subnet6="fd00::/64"), given, policy())).ports == (
        PortMapping(UDP, 53, target, 53, ip_address(host_ip)),
    )


def test_a_port_is_masqueraded_for_the_versions_whose_default_route_leads_elsewhere() -> None:
    given = attachment(ip6=True, default_route=frozenset({6}), ports=(HostPort(TCP, 8080, 80),))

    found = endpoint_policy(DRIVER.plan_policy(network(subnet6="fd00::/64"), given, policy())).ports

    assert [one.masquerade for one in found] == [True, False]


def test_a_client_is_told_what_it_has_to_know() -> None:
    blue = network(subnet6="fd00::/64", dns_servers=["10.1.0.1", "fd00::1"], search_domains=["example.org"])

    assert DRIVER.describe(blue, attachment(ip6=True)) == {
        "addresses": ["10.1.0.2/24", "fd00::2/64"],
        "mac": MAC,
        "gateway": "10.1.0.1",
        "gateway6": "fd00::1",
        "dns_servers": ["10.1.0.1", "fd00::1"],
        "search_domains": ["example.org"],
        "mtu": 1450,
    }


def test_host_ports_are_requested_as_net_in_says() -> None:
    (request,) = DRIVER.port_requests(policy(net_in=[{"host_port": 0, "container_port": 80}]))

    assert (request.host_port, request.container_port, request.path) == (0, 80, "net_in[0]")


@pytest.mark.parametrize(
    ("new", "other", "field", "complaint"),
    [
        ({}, {"subnet": "10.1.0.128/25"}, "subnet", '10.1.0.0/24 overlaps 10.1.0.128/25 of network "red"'),
        (
            {"subnet6": "fd00::/64"},
            {"subnet": "10.2.0.0/24", "subnet6": "fd00::/56"},
            "subnet6",
            'fd00::/64 overlaps fd00::/56 of network "red"',
        ),
        ({"bridge": "br0"}, {"subnet": "10.2.0.0/24", "bridge": "br0"}, "bridge", 'already used by network "red"'),
    ],
)
def test_networks_that_cannot_stand_beside_each_other_are_a_conflict(
    new: dict[str, Any], other: dict[str, Any], field: str, complaint: str
) -> None:
    with pytest.raises(Conflict, match=f'network "blue": .*{complaint}') as refused:
        DRIVER.check_network(network(**new), [network("green", subnet="10.9.0.0/24"), network("red", **other)])

    assert list(refused.value.fields) == [f"config.{field}"]


def test_a_network_does_not_conflict_with_itself_or_with_strangers() -> None:
    DRIVER.check_network(network(), [network(), network("red", subnet="10.2.0.0/24", subnet6="fd00::/64")])


def test_a_port_on_an_ipv6_address_needs_a_network_with_ipv6() -> None:
    given = policy(net_in=[{"host_port": 80}, {"host_port": 81, "host_ip": "2001:db8::1"}])

    DRIVER.check_policy(network(subnet6="fd00::/64"), given)
    with pytest.raises(Invalid, match='network "blue" has no subnet6') as refused:
        DRIVER.check_policy(network(), given)

    assert list(refused.value.fields) == ["net_in[1].host_ip"]


def test_a_policy_loaded_and_dumped_loads_to_the_same_again() -> None:
    schema = DRIVER.policy_schema()
    loaded = policy(
        net_in=[{"host_port": 80}], net_out=[{"protocol": 1}], deny_networks=["10.0.0.0/8"], log_denied=True
    )

    assert schema.load(schema.dump(loaded)) == loaded


def test_plans_of_another_container_differ_in_every_kernel_name() -> None:
    other = replace(attachment(), handle="db", key=attachment_key("blue", "db"))

    assert DRIVER.plan_attachment(network(), other).links[0].name != f"cv{KEY}"
