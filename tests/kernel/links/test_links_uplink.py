"""What the host tells of its way to the rest of the world."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.kernel import Kernel
from conetd.kernel.host import local_addresses


@pytest.fixture
def world(host: Netns, netns: NetnsFactory):
    world = netns.make("world")
    host.connect(world, "192.0.2.1/24", "192.0.2.2/24", name="up0", extra={"2001:db8::1/64": "2001:db8::2/64"})
    host.connect(world, "198.51.100.1/24", "198.51.100.2/24", name="up1", peer_name="up1")
    host.run("ip", "link", "set", "up0", "mtu", "1400")
    host.run("ip", "link", "set", "up1", "mtu", "1300")
    return world


def test_without_a_default_route_the_mtu_is_1500_and_there_is_no_source(kernel: Kernel) -> None:
    assert kernel.default_route_mtu() == 1500
    assert kernel.default_route_source() is None


def test_the_ipv4_default_route_decides(kernel: Kernel, host: Netns, world: Netns) -> None:
    host.run("ip", "route", "add", "default", "via", "192.0.2.2")
    host.run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
    assert kernel.default_route_mtu() == 1400
    assert kernel.default_route_source() == ip_address("192.0.2.1")


def test_of_several_the_lowest_metric_decides(kernel: Kernel, host: Netns, world: Netns) -> None:
    host.run("ip", "route", "add", "default", "via", "192.0.2.2", "metric", "200")
    host.run("ip", "route", "add", "default", "via", "198.51.100.2", "metric", "100")
    assert kernel.default_route_mtu() == 1300
    assert kernel.default_route_source() == ip_address("198.51.100.1")


def test_a_source_the_route_names_itself_is_taken(kernel: Kernel, host: Netns, world: Netns) -> None:
    host.run("ip", "addr", "add", "192.0.2.77/32", "dev", "lo")
    host.run("ip", "route", "add", "default", "via", "192.0.2.2", "src", "192.0.2.77")
    assert kernel.default_route_source() == ip_address("192.0.2.77")


def test_a_default_route_without_a_gateway_has_its_links_address(kernel: Kernel, host: Netns, world: Netns) -> None:
    host.run("ip", "route", "add", "default", "dev", "up1")
    assert kernel.default_route_source() == ip_address("198.51.100.1")


def test_without_an_ipv4_one_the_ipv6_default_route_decides(kernel: Kernel, host: Netns, world: Netns) -> None:
    host.run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
    assert kernel.default_route_mtu() == 1400
    assert kernel.default_route_source() == ip_address("2001:db8::1")


def test_a_default_route_over_several_hops_has_the_first_ones_mtu(kernel: Kernel, host: Netns, world: Netns) -> None:
    hops = "nexthop via 198.51.100.2 nexthop via 192.0.2.2"
    host.run("ip", "route", "add", "default", *hops.split())
    assert kernel.default_route_mtu() == 1300


def test_local_addresses_are_those_of_all_interfaces(host: Netns, world: Netns) -> None:
    found = host.call(local_addresses)
    assert {ip_address(one) for one in ("192.0.2.1", "198.51.100.1", "2001:db8::1", "127.0.0.1", "::1")} <= found
