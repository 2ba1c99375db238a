"""What becomes of what is there already: untouched where it is as planned, mended where not, never a stranger's."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from pytest_netns import Netns

from conetd.errors import KernelError
from conetd.kernel import Kernel
from conetd.kernel.links import GROUP_OURS
from conetd.kernel.namespaces import NetNS, open_namespace
from conetd.plan import Address, Bridge, Plan, Route, Side, Sysctl
from tests.kernel.links_lab import ALIAS, NETWORK_ALIAS, RememberingFilter, attachment, link, picture


def test_ensure_twice_changes_nothing_the_second_time(
    kernel: Kernel,
    network: Plan,
    plan: Plan,
    inside: NetNS,
    host: Netns,
    web: Netns,
) -> None:
    before = picture(host, web)
    kernel.ensure(network, NETWORK_ALIAS)
    kernel.ensure(plan, ALIAS, inside)
    assert picture(host, web) == before


def test_diff_changes_nothing(
    kernel: Kernel,
    network: Plan,
    plan: Plan,
    inside: NetNS,
    host: Netns,
    web: Netns,
) -> None:
    host.run("ip", "link", "set", "cv2", "mtu", "1400", "alias", "")
    before = picture(host, web)
    kernel.diff(network, None, NETWORK_ALIAS)
    kernel.diff(plan, inside, ALIAS)
    assert picture(host, web) == before


HOST = "host"
CONTAINER = "container"
DAMAGES = [
    (CONTAINER, "ip addr del 10.0.0.2/24 dev eth0", "address 10.0.0.2/24 on eth0 is missing"),
    (CONTAINER, "ip addr del fd00::2/64 dev eth0", "address fd00::2/64 on eth0 is missing"),
    (CONTAINER, "ip route del default", "route to 0.0.0.0/0 on eth0 is missing"),
    (CONTAINER, "ip -6 route del default", "route to ::/0 on eth0 is missing"),
    (CONTAINER, "ip link set eth0 down", "link cv2 has a peer that is down"),
    (CONTAINER, "ip link set eth0 mtu 1400", "link cv2 has a peer with an MTU of 1400, not 1450"),
    (
        CONTAINER,
        "ip link set eth0 address 0a:00:00:00:01:09",
        "link cv2 has a peer with the MAC 0a:00:00:00:01:09, not 0a:00:00:00:01:02",
    ),
    (CONTAINER, "ip link set eth0 name eth5", "link cv2 has no peer eth0 in the container"),
    (CONTAINER, "ip route add 10.9.0.0/16 dev eth0 proto 157", "route to 10.9.0.0/16 on eth0 is not wanted"),
    (CONTAINER, "sysctl -qw net.ipv4.conf.eth0.arp_notify=0", "sysctl net/ipv4/conf/eth0/arp_notify is 0, not 1"),
    (HOST, "ip link set cv2 down", "link cv2 is down"),
    (HOST, "ip link set cv2 mtu 1400", "link cv2 has an MTU of 1400, not 1450"),
    (HOST, "ip link set cv2 nomaster", "link cv2 is not a port of blue0"),
    (HOST, "ip link set cv2 alias ''", "link cv2 has the alias ''"),
    (HOST, "ip link set cv2 group 7", "link cv2 is in the link group 7"),
    (HOST, "ip link del cv2", "link cv2 is missing"),
    (
        HOST,
        "bridge link set dev cv2 learning on",
        "link cv2 has lost its port settings (learning off, locked, hairpin on)",
    ),
    (
        HOST,
        "bridge fdb del 0a:00:00:00:01:02 dev cv2 master",
        "link cv2 has no static forwarding entry for 0a:00:00:00:01:02",
    ),
]


@pytest.mark.parametrize(("where", "damage", "told"), DAMAGES, ids=[damage for _, damage, _ in DAMAGES])
def test_damage_to_an_attachment_is_told_and_mended(
    kernel: Kernel, plan: Plan, inside: NetNS, host: Netns, web: Netns, where: str, damage: str, told: str
) -> None:
    (host if where == HOST else web).run("sh", "-c", damage)
    assert told in [str(drift) for drift in kernel.diff(plan, inside, ALIAS)]
    kernel.ensure(plan, ALIAS, inside)
    assert kernel.diff(plan, inside, ALIAS) == []


NETWORK_DAMAGES = [
    ("ip addr del 10.0.0.1/24 dev blue0", "address 10.0.0.1/24 on blue0 is missing"),
    ("ip link set blue0 down", "link blue0 is down"),
    ("ip link set blue0 mtu 1300", "link blue0 has an MTU of 1300, not 1450"),
    (
        "ip link set blue0 address 0a:00:00:00:00:09",
        "link blue0 has the MAC 0a:00:00:00:00:09, not 0a:00:00:00:00:01",
    ),
    (
        "ip link set blue0 type bridge mcast_snooping 1",
        "link blue0 has spanning tree, a forward delay or multicast snooping on",
    ),
    ("ip link del blue0", "link blue0 is missing"),
]


@pytest.mark.parametrize(("damage", "told"), NETWORK_DAMAGES, ids=[damage for damage, _ in NETWORK_DAMAGES])
def test_damage_to_a_network_is_told_and_mended(
    kernel: Kernel, network: Plan, host: Netns, damage: str, told: str
) -> None:
    host.run("sh", "-c", damage)
    assert told in [str(drift) for drift in kernel.diff(network, None, NETWORK_ALIAS)]
    kernel.ensure(network, NETWORK_ALIAS)
    assert kernel.diff(network, None, NETWORK_ALIAS) == []


def test_mending_the_host_end_keeps_the_link(kernel: Kernel, plan: Plan, inside: NetNS, host: Netns) -> None:
    before = link(host, "cv2")["ifindex"]
    host.run("ip", "link", "set", "cv2", "nomaster", "down")
    kernel.ensure(plan, ALIAS, inside)
    assert link(host, "cv2")["ifindex"] == before


def test_an_attach_that_was_cut_off_after_the_link_is_completed(
    kernel: Kernel, network: Plan, inside: NetNS, host: Netns, web: Netns
) -> None:
    pair = f"link add cv2 group {GROUP_OURS} mtu 1450 type veth peer name eth0 netns {web.pid} mtu 1450"
    host.run("ip", *pair.split(), "address", "0a:00:00:00:01:02")
    kernel.ensure(attachment(2), ALIAS, inside)
    assert kernel.diff(attachment(2), inside, ALIAS) == []


def test_an_attachment_moves_with_its_container_to_another_namespace(
    kernel: Kernel, plan: Plan, host: Netns, db: Netns
) -> None:
    with host.call(open_namespace, db.pid) as another:
        kernel.ensure(plan, ALIAS, another)
        assert kernel.diff(plan, another, ALIAS) == []


def test_an_address_of_a_strangers_stays(kernel: Kernel, plan: Plan, inside: NetNS, web: Netns) -> None:
    web.run("ip", "addr", "add", "198.51.100.1/24", "dev", "eth0")
    kernel.ensure(plan, ALIAS, inside)
    assert "198.51.100.1" in {one["local"] for one in link(web, "eth0")["addr_info"]}


def test_a_link_that_is_closed_is_made_anew(kernel: Kernel, plan: Plan, inside: NetNS, host: Netns) -> None:
    before = link(host, "cv2")["ifindex"]
    kernel.close_many([plan])
    assert [str(drift) for drift in kernel.diff(plan, inside, ALIAS)] == [
        "link cv2 is marked to be deleted",
        "filter key2 is missing",
    ]
    kernel.ensure(plan, ALIAS, inside)
    assert link(host, "cv2")["ifindex"] != before
    assert kernel.diff(plan, inside, ALIAS) == []


def test_a_bridge_of_a_strangers_is_refused_and_stays_as_it_is(kernel: Kernel, host: Netns) -> None:
    host.run("ip", "link", "add", "red0", "type", "bridge")
    before = link(host, "red0")
    with pytest.raises(KernelError) as failure:
        kernel.ensure(Plan(links=(Bridge("red0", "0a:00:00:00:00:07", 1500),)), "conetd:red")
    assert str(failure.value) == (
        "could not create link red0: File exists (it is somebody else's: it bears no mark of conetd)"
    )
    assert link(host, "red0") == before


def test_a_name_taken_inside_the_container_is_told(kernel: Kernel, network: Plan, inside: NetNS, web: Netns) -> None:
    web.run("ip", "link", "add", "eth0", "type", "bridge")
    with pytest.raises(KernelError, match=r"could not create link cv2: File exists \(the container has a link eth0\)"):
        kernel.ensure(attachment(2), ALIAS, inside)


def test_a_link_of_ours_of_another_kind_is_replaced(kernel: Kernel, host: Netns) -> None:
    host.run("ip", "link", "add", "blue0", "group", str(GROUP_OURS), "type", "veth", "peer", "name", "x0")
    plan = Plan(links=(Bridge("blue0", "0a:00:00:00:00:01", 1450),))
    assert [str(drift) for drift in kernel.diff(plan)] == ["link blue0 is a veth link, not a bridge"]
    kernel.ensure(plan, NETWORK_ALIAS)
    assert kernel.diff(plan) == []


def test_a_route_of_ours_that_leads_elsewhere_is_taken_over(kernel: Kernel, network: Plan, host: Netns) -> None:
    host.run("ip", "link", "add", "other0", "up", "type", "bridge")
    host.run("ip", "route", "add", "10.5.0.0/16", "dev", "other0", "proto", "157")
    plan = Plan(routes=(Route(ip_network("10.5.0.0/16"), "blue0"),))
    kernel.ensure(plan)
    [route] = host.json("ip", "-j", "route", "show", "10.5.0.0/16")
    assert route["dev"] == "blue0"


def test_a_route_of_a_strangers_is_not_taken_over(kernel: Kernel, network: Plan, host: Netns) -> None:
    host.run("ip", "link", "add", "other0", "up", "type", "bridge")
    host.run("ip", "route", "add", "10.5.0.0/16", "dev", "other0")
    with pytest.raises(KernelError, match=r"could not add route to 10.5.0.0/16 on blue0: File exists"):
        kernel.ensure(Plan(routes=(Route(ip_network("10.5.0.0/16"), "blue0"),)))


def test_diff_without_a_namespace_looks_at_the_host_alone(kernel: Kernel, plan: Plan, web: Netns) -> None:
    web.run("ip", "link", "set", "eth0", "down")
    assert kernel.diff(plan, None, ALIAS) == []


def test_diff_tells_what_the_filter_lacks(kernel: Kernel, plan: Plan, inside: NetNS, filter: RememberingFilter) -> None:
    filter.remove_all()
    assert [str(drift) for drift in kernel.diff(plan, inside)] == ["filter key2 is missing"]


def test_a_late_sysctl_of_the_host_is_mended(kernel: Kernel, network: Plan, host: Netns) -> None:
    plan = replace(network, sysctls=(Sysctl("ipv4/conf/blue0/arp_notify", "1"),))
    kernel.ensure(plan)
    host.sysctl("net/ipv4/conf/blue0/arp_notify", 0)
    assert [str(drift) for drift in kernel.diff(plan)] == ["sysctl net/ipv4/conf/blue0/arp_notify is 0, not 1"]
    kernel.ensure(plan)
    assert host.sysctl("net/ipv4/conf/blue0/arp_notify") == "1"


def test_an_address_of_yesterdays_plan_goes(kernel: Kernel, network: Plan, host: Netns) -> None:
    moved = replace(network, addresses=(Address("blue0", ip_interface("10.0.0.254/24")),))
    kernel.ensure(moved, NETWORK_ALIAS)
    found = [one["local"] for one in link(host, "blue0")["addr_info"] if one["scope"] == "global"]
    assert found == ["10.0.0.254"]


def test_an_address_that_goes_with_one_of_yesterdays_plan_comes_back(
    kernel: Kernel, network: Plan, host: Netns
) -> None:
    host.sysctl("net/ipv4/conf/all/promote_secondaries", 0)
    host.sysctl("net/ipv4/conf/blue0/promote_secondaries", 0)
    second = Address("blue0", ip_interface("10.0.0.254/24"))  # the kernel deletes it with the first of its subnet
    kernel.ensure(replace(network, addresses=(*network.addresses, second)), NETWORK_ALIAS)
    kernel.ensure(replace(network, addresses=(second,)), NETWORK_ALIAS)
    assert kernel.diff(replace(network, addresses=(second,)), None, NETWORK_ALIAS) == []


def test_an_address_the_plan_has_no_more_is_told_and_goes(
    kernel: Kernel, plan: Plan, inside: NetNS, web: Netns
) -> None:
    extra = Address("eth0", ip_interface("10.0.0.77/24"), Side.CONTAINER)
    kernel.ensure(replace(plan, addresses=(*plan.addresses, extra)), ALIAS, inside)
    assert [str(drift) for drift in kernel.diff(plan, inside)] == ["address 10.0.0.77/24 on eth0 is not wanted"]
    kernel.ensure(plan, ALIAS, inside)
    assert "10.0.0.77" not in {one["local"] for one in link(web, "eth0")["addr_info"]}


def test_a_changed_gateway_replaces_the_default_route(kernel: Kernel, plan: Plan, inside: NetNS, web: Netns) -> None:
    route = Route(ip_network("0.0.0.0/0"), "eth0", via=ip_address("10.0.0.254"), side=Side.CONTAINER)
    kernel.ensure(replace(plan, routes=(route, *plan.routes[1:])), ALIAS, inside)
    assert [one["gateway"] for one in web.json("ip", "-j", "route", "show", "default")] == ["10.0.0.254"]
