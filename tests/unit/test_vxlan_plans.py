"""The vxlan driver's plans say what its config, the hosts' leases and a container's lease mean."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from conetd_vxlan import VxlanConfig, VxlanDriver

from conetd.driver import JSON, Attachment, Conflict, Lease, Network
from conetd.model import attachment_key
from conetd.plan import (
    Address,
    AddressRange,
    Endpoint,
    FdbEntry,
    Neighbour,
    NetworkFilter,
    Plan,
    Route,
    Rule,
    Side,
    Sysctl,
    Tunnel,
    TunnelPeer,
    Verdict,
    Veth,
    Vxlan,
)

DRIVER = VxlanDriver()
KEY = attachment_key("blue", "web")
IP, IP6, MAC = ip_address("10.1.3.5"), ip_address("fd00::305"), "0a:c0:0a:01:03:05"
GATEWAY, GATEWAY6 = ip_address("169.254.1.1"), ip_address("fe80::1")
SUBNET, SUBNET6 = ip_network("10.1.0.0/16"), ip_network("fd00::/64")
OTHER: JSON = {"subnet": "10.1.9.0/24", "underlay": "192.0.2.9", "mtu": 1500}
OTHER6 = OTHER | {"subnet6": "fd00::900/120"}


def network(
    name: str = "blue", *, ip6: bool = False, underlay: str = "192.0.2.1", uplink_mtu: int = 1500, **config: Any
) -> Network[VxlanConfig]:
    """The network on a host that has 10.1.3.0/24 and fd00::300/120 of it."""
    document = {"vni": 42, "subnet": "10.1.0.0/16"} | ({"subnet6": "fd00::/64"} if ip6 else {}) | config
    data = {"subnet": "10.1.3.0/24", "underlay": underlay, "mtu": uplink_mtu}
    lease = Lease(data | ({"subnet6": "fd00::300/120"} if ip6 else {}), frozenset({"subnet:10.1.3.0/24"}))
    return Network(name, "vxlan", DRIVER.config_schema().load(document), lease=lease)


BLUE, BLUE6 = network(), network(ip6=True)
VTEP = f"cx{BLUE.key}"
END = f"cv{KEY}"


def attachment(
    *, ip6: bool = False, default_route: frozenset[int] = frozenset({4, 6}), identity: int = 0
) -> Attachment:
    data = {"ip": str(IP), "mac": MAC} | ({"ip6": str(IP6)} if ip6 else {})
    lease = Lease(data, frozenset())
    return Attachment("blue", "web", KEY, "eth0", lease=lease, default_route=default_route, identity=identity)


def sysctls(plan: Plan) -> dict[str, str]:
    return {one.path: one.value for one in plan.sysctls if one.side is Side.HOST}


def inside_routes(plan: Plan) -> list[tuple[str, str]]:
    return [(str(one.destination), str(one.via)) for one in plan.routes if one.side is Side.CONTAINER]


def test_a_network_is_a_vtep_with_the_first_address_of_the_hosts_part() -> None:
    plan = DRIVER.plan_network(network(port=8472))

    assert plan.links == (Vxlan(VTEP, 42, ip_address("192.0.2.1"), 8472, "ee:ee:0a:01:03:00", 1450, gbp=True),)
    assert plan.addresses == (Address(VTEP, ip_interface("10.1.3.0/32")),)
    assert plan.forward == {4}


def test_with_subnet6_the_vtep_has_the_first_address_of_that_part_too() -> None:
    plan = DRIVER.plan_network(BLUE6)

    assert plan.addresses[1] == Address(VTEP, ip_interface("fd00::300/128"))
    assert plan.forward == {4, 6}
    assert sysctls(plan) == {
        f"ipv6/conf/{VTEP}/disable_ipv6": "0",
        f"ipv6/conf/{VTEP}/accept_dad": "0",
        f"ipv6/conf/{VTEP}/accept_ra": "0",
    }


def test_without_subnet6_neither_vtep_nor_container_speaks_ipv6() -> None:
    assert sysctls(DRIVER.plan_network(BLUE)) == {f"ipv6/conf/{VTEP}/disable_ipv6": "1"}

    plan = DRIVER.plan_attachment(BLUE, attachment())
    assert sysctls(plan)[f"ipv6/conf/{END}/disable_ipv6"] == "1"
    assert Sysctl("ipv6/conf/default/disable_ipv6", "1", Side.CONTAINER, early=True) in plan.sysctls


def test_a_link_too_small_for_ipv6_is_asked_for_no_sysctl_that_it_has_not() -> None:
    small = network(mtu=1279)

    assert sysctls(DRIVER.plan_network(small)) == {}
    assert sysctls(DRIVER.plan_attachment(small, attachment())) == {f"ipv4/conf/{END}/forwarding": "1"}


def test_what_is_for_no_host_of_the_network_never_leaves_by_the_default_route() -> None:
    assert DRIVER.plan_network(BLUE6).unreachable == (SUBNET, SUBNET6)


@pytest.mark.parametrize(
    ("config", "mtu"),
    [
        ({}, 1450),
        ({"uplink_mtu": 9000}, 8950),
        ({"underlay": "2001:db8::1"}, 1430),
        ({"mtu": 1300}, 1300),
        ({"uplink_mtu": 1300, "ip6": True}, 1280),
        ({"uplink_mtu": 600}, 576),
        ({"uplink_mtu": 65536}, 65486),
    ],
)
def test_a_packet_of_the_mtu_fits_the_underlay_once_it_is_encapsulated(config: dict[str, Any], mtu: int) -> None:
    blue = network(**config)

    [vtep] = DRIVER.plan_network(blue).links
    [veth] = DRIVER.plan_attachment(blue, attachment()).links
    assert (vtep.mtu, veth.mtu, DRIVER.describe(blue, attachment())["mtu"]) == (mtu, mtu, mtu)


def test_the_networks_filter_says_what_holds_for_all_its_containers() -> None:
    blue = network(ip6=True, host_prefix=24, deny_networks=["10.0.0.0/8"], dns_servers=["192.0.2.1"])
    [wanted] = DRIVER.plan_network(blue).filter

    assert isinstance(wanted, NetworkFilter)
    assert replace(wanted, host_rules=()) == NetworkFilter(
        blue.key,
        (SUBNET, SUBNET6),
        name="blue",
        masquerade=(SUBNET, SUBNET6),
        rules=(
            Rule(
                Verdict.REJECT,
                destinations=(AddressRange.of(ip_network("10.0.0.0/8")),),
                origin="config.deny_networks[0]",
            ),
        ),
        tunnel=Tunnel(VTEP, 4789, 42, ((4, 24), (6, 120)), local=ip_address("192.0.2.1")),
    )
    assert [rule.origin for rule in wanted.host_rules] == ["config.dns_servers[0]"] * 2


def test_another_host_is_a_route_a_neighbour_and_a_forwarding_entry_and_a_peer_of_the_filter() -> None:
    via, part = ip_address("10.1.9.0"), ip_network("10.1.9.0/24")

    assert DRIVER.plan_member(BLUE, "h9", OTHER) == Plan(
        routes=(Route(part, VTEP, via=via, source=ip_address("10.1.3.0"), onlink=True),),
        neighbours=(Neighbour(VTEP, via, "ee:ee:0a:01:09:00"),),
        fdb=(FdbEntry(VTEP, "ee:ee:0a:01:09:00", ip_address("192.0.2.9")),),
        filter=(TunnelPeer(f"{BLUE.key}/h9", VTEP, 4789, 42, ip_address("192.0.2.9"), "ee:ee:0a:01:09:00", (part,)),),
    )


def test_with_ipv6_another_host_has_a_route_and_a_neighbour_more() -> None:
    plan = DRIVER.plan_member(BLUE6, "h9", OTHER6)
    via, part = ip_address("fd00::900"), ip_network("fd00::900/120")

    assert plan.routes[1] == Route(part, VTEP, via=via, source=ip_address("fd00::300"), onlink=True)
    assert plan.neighbours[1] == Neighbour(VTEP, via, "ee:ee:0a:01:09:00")
    assert len(plan.fdb) == 1
    [peer] = plan.filter
    assert isinstance(peer, TunnelPeer)
    assert peer.subnets == (ip_network("10.1.9.0/24"), part)


def test_a_host_on_an_underlay_of_the_other_ip_version_cannot_be_reached() -> None:
    assert DRIVER.plan_member(BLUE, "h9", OTHER | {"underlay": "2001:db8::9"}) == Plan()


def test_a_host_that_comes_back_at_another_address_replaces_itself_in_the_filter() -> None:
    [before] = DRIVER.plan_member(BLUE, "h9", OTHER).filter
    [after] = DRIVER.plan_member(BLUE, "h9", OTHER | {"underlay": "192.0.2.99"}).filter

    assert before.key == after.key
    assert before != after


def test_two_networks_keep_the_same_host_apart() -> None:
    [one] = DRIVER.plan_member(BLUE, "h9", OTHER).filter
    [two] = DRIVER.plan_member(network("red"), "h9", OTHER).filter

    assert one.key != two.key


def test_static_peers_are_part_of_the_network_but_for_the_host_itself() -> None:
    peers = [{"host": f"h{n}", "underlay": f"192.0.2.{n}", "subnet": f"10.1.{n}.0/24"} for n in (3, 9)]
    blue = network(peers=peers)

    assert DRIVER.plan_network(blue) == DRIVER.plan_network(BLUE) + DRIVER.plan_member(BLUE, "h9", OTHER)


def test_static_peers_have_parts_of_subnet6_too() -> None:
    blue = network(ip6=True, peers=[{"host": "h9", "underlay": "192.0.2.9", "subnet": "10.1.9.0/24"}])

    assert DRIVER.plan_network(blue) == DRIVER.plan_network(BLUE6) + DRIVER.plan_member(BLUE6, "h9", OTHER6)


def test_a_container_has_a_routed_pair_of_its_own() -> None:
    plan = DRIVER.plan_attachment(BLUE, attachment())
    [veth] = plan.links

    assert isinstance(veth, Veth)
    assert veth.host_mac is not None
    assert replace(veth, host_mac=None) == Veth(END, "eth0", MAC, 1450)
    assert plan.addresses == (Address("eth0", ip_interface("10.1.3.5/32"), Side.CONTAINER),)
    assert plan.routes == (
        Route(ip_network("10.1.3.5/32"), END),
        Route(ip_network("0.0.0.0/0"), "eth0", via=GATEWAY, onlink=True, side=Side.CONTAINER),
    )
    assert plan.neighbours == (
        Neighbour(END, IP, MAC),
        Neighbour("eth0", GATEWAY, veth.host_mac, Side.CONTAINER),
    )
    assert sysctls(plan)[f"ipv4/conf/{END}/forwarding"] == "1"


def test_with_subnet6_the_container_has_the_same_in_ipv6() -> None:
    plan = DRIVER.plan_attachment(BLUE6, attachment(ip6=True))
    [veth] = plan.links

    assert isinstance(veth, Veth)
    assert plan.addresses[1] == Address("eth0", ip_interface("fd00::305/128"), Side.CONTAINER)
    assert Route(ip_network("fd00::305/128"), END) in plan.routes
    assert Route(ip_network("::/0"), "eth0", via=GATEWAY6, onlink=True, side=Side.CONTAINER) in plan.routes
    assert Neighbour(END, IP6, MAC) in plan.neighbours
    assert Neighbour("eth0", GATEWAY6, str(veth.host_mac), Side.CONTAINER) in plan.neighbours
    assert sysctls(plan) == {
        f"ipv6/conf/{END}/disable_ipv6": "0",
        f"ipv6/conf/{END}/accept_dad": "0",
        f"ipv6/conf/{END}/accept_ra": "0",
        f"ipv4/conf/{END}/forwarding": "1",
        f"ipv6/conf/{END}/force_forwarding": "1",
    }
    assert Sysctl("ipv6/conf/default/disable_ipv6", "0", Side.CONTAINER, early=True) in plan.sysctls


@pytest.mark.parametrize(
    ("default_route", "routes"),
    [
        (frozenset({4, 6}), [("0.0.0.0/0", "169.254.1.1"), ("::/0", "fe80::1")]),
        (frozenset({4}), [("0.0.0.0/0", "169.254.1.1"), ("fd00::/64", "fe80::1")]),
        (frozenset[int](), [("10.1.0.0/16", "169.254.1.1"), ("fd00::/64", "fe80::1")]),
    ],
)
def test_without_the_default_route_a_container_still_reaches_the_network(
    default_route: frozenset[int], routes: list[tuple[str, str]]
) -> None:
    plan = DRIVER.plan_attachment(BLUE6, attachment(ip6=True, default_route=default_route))

    assert inside_routes(plan) == routes


def test_a_container_speaks_from_its_addresses_by_its_link_with_the_mark_of_its_identity() -> None:
    assert DRIVER.plan_attachment(BLUE6, attachment(ip6=True, identity=77)).filter == (
        Endpoint(KEY, BLUE.key, "web", END, (IP, IP6), MAC, mark=77),
    )


def test_the_client_is_told_addresses_gateways_and_resolvers() -> None:
    blue = network(ip6=True, dns_servers=["192.0.2.53"], search_domains=["example.org"])

    assert DRIVER.describe(blue, attachment(ip6=True)) == {
        "addresses": ["10.1.3.5/32", "fd00::305/128"],
        "mac": MAC,
        "gateway": "169.254.1.1",
        "gateway6": "fe80::1",
        "dns_servers": ["192.0.2.53"],
        "search_domains": ["example.org"],
        "mtu": 1450,
    }


def test_without_ipv6_no_ipv6_gateway_is_told() -> None:
    assert "gateway6" not in DRIVER.describe(BLUE, attachment())


@pytest.mark.parametrize(
    ("config", "field", "complaint"),
    [
        ({"subnet": "10.1.128.0/20"}, "config.subnet", 'overlaps 10.1.0.0/16 of network "blue"'),
        ({"subnet6": "fd00::/72"}, "config.subnet6", 'overlaps fd00::/64 of network "blue"'),
        ({"vni": 42}, "config.vni", '42 is already used by network "blue"'),
    ],
)
def test_networks_that_cannot_stand_beside_each_other_are_a_conflict(
    config: dict[str, Any], field: str, complaint: str
) -> None:
    merged: dict[str, Any] = {"vni": 43, "subnet": "10.2.0.0/16"} | config

    with pytest.raises(Conflict, match=r'network "red".*"blue"') as refused:
        DRIVER.check_network(network("red", **merged), [BLUE6])

    assert refused.value.fields == {field: complaint}


def test_a_vni_that_is_used_is_named_with_both_networks() -> None:
    red = network("red", subnet="10.2.0.0/16", port=4790)

    with pytest.raises(Conflict, match='network "red": VNI 42 is already used by network "blue"'):
        DRIVER.check_network(red, [BLUE])


def test_a_network_does_not_stand_in_its_own_way() -> None:
    DRIVER.check_network(BLUE6, [BLUE6, network("red", vni=43, subnet="10.2.0.0/16")])
