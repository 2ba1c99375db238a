"""What the host tells of its own interfaces, for those that choose the one other hosts reach it by."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.kernel import Kernel
from conetd.model import Interface
from conetd.plan import Plan
from tests.kernel.overlay_lab import ALIAS, NETWORK


@pytest.fixture
def world(host: Netns, netns: NetnsFactory) -> Netns:
    world = netns.make("world")
    host.connect(world, "192.0.2.1/24", "192.0.2.2/24", name="up0", extra={"2001:db8::1/64": "2001:db8::2/64"})
    host.connect(world, "198.51.100.1/24", "198.51.100.2/24", name="up1", peer_name="up1")
    host.run("ip", "link", "set", "up1", "mtu", "1300")
    return world


def addresses(kernel: Kernel, name: str) -> list[str]:
    return [str(one) for interface in kernel.interfaces() if interface.name == name for one in interface.addresses]


def test_interfaces_have_their_mtu_and_their_addresses_of_both_versions(kernel: Kernel, world: Netns) -> None:
    assert kernel.interfaces() == (
        Interface("up0", 1500, (ip_address("192.0.2.1"), ip_address("2001:db8::1"))),
        Interface("up1", 1300, (ip_address("198.51.100.1"),)),
    )


def test_lo_and_interfaces_of_ours_are_left_out(kernel: Kernel, network: Plan) -> None:
    kernel.ensure(NETWORK, ALIAS)
    assert kernel.interfaces() == ()


def test_an_interface_without_addresses_has_none(kernel: Kernel, host: Netns) -> None:
    host.run("ip", "link", "add", "idle0", "up", "type", "bridge")
    assert kernel.interfaces() == (Interface("idle0", 1500),)


def test_a_second_ipv4_address_of_a_subnet_is_told(kernel: Kernel, host: Netns, world: Netns) -> None:
    host.run("ip", "addr", "add", "192.0.2.7/24", "dev", "up0")
    assert addresses(kernel, "up0") == ["192.0.2.1", "192.0.2.7", "2001:db8::1"]


def test_an_address_about_to_go_is_not_told(kernel: Kernel, host: Netns, world: Netns) -> None:
    host.run(*["ip", "addr", "change", "2001:db8::1/64", "dev", "up0", "valid_lft", "600", "preferred_lft", "0"])
    assert addresses(kernel, "up0") == ["192.0.2.1"]


def test_an_address_that_may_be_somebody_elses_is_not_told(kernel: Kernel, host: Netns) -> None:
    host.sysctl("net/ipv6/conf/all/accept_dad", 1)
    host.sysctl("net/ipv6/conf/default/accept_dad", 1)
    host.run(*["ip", "link", "add", "idle0", "type", "bridge"])  # down: its addresses stay tentative
    host.run(*["ip", "addr", "add", "2001:db8:1::1/64", "dev", "idle0"])
    assert addresses(kernel, "idle0") == []


def test_a_temporary_address_is_not_told(kernel: Kernel, host: Netns, world: Netns) -> None:
    host.sysctl("net/ipv6/conf/up0/use_tempaddr", 2)
    host.run(*["ip", "addr", "add", "2001:db8:2::1/64", "dev", "up0", "mngtmpaddr", "nodad"])
    told = host.json("ip", "-j", "-6", "addr", "show", "dev", "up0", "scope", "global")
    assert any(one.get("temporary") for one in told[0]["addr_info"]), "the kernel made no temporary address"
    assert set(addresses(kernel, "up0")) == {"192.0.2.1", "2001:db8::1", "2001:db8:2::1"}


def test_without_default_routes_there_are_no_sources(kernel: Kernel, world: Netns) -> None:
    assert kernel.sources() == ()


def test_there_is_a_source_of_each_version_with_a_default_route(kernel: Kernel, host: Netns, world: Netns) -> None:
    host.run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
    assert kernel.sources() == (ip_address("2001:db8::1"),)
    host.run("ip", "route", "add", "default", "via", "198.51.100.2")
    assert kernel.sources() == (ip_address("198.51.100.1"), ip_address("2001:db8::1"))
