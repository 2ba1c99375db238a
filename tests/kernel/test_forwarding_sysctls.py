"""Where forwarding is switched on for containers, what is recorded of it, and how the host gets it back."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.errors import Invalid, KernelError
from conetd.kernel import forwarding, sysctls
from conetd.kernel.forwarding import SysctlChange

OURS = {"blue0"}
FORCED = Path("/proc/sys/net/ipv6/conf/all/force_forwarding").exists()
needs_force = pytest.mark.skipif(not FORCED, reason="needs a kernel with force_forwarding (6.17)")


@pytest.fixture
def host(netns: NetnsFactory):
    """A host that forwards nothing, with a bridge of ours, an uplink of both families and a link without an address."""
    host, world = netns.make("host"), netns.make("world")
    host.connect(world, "192.0.2.1/24", "192.0.2.2/24", name="up0", extra={"2001:db8::1/64": "2001:db8::2/64"})
    for name in ("blue0", "idle0"):
        host.run("ip", "link", "add", name, "up", "type", "bridge")
    host.run("ip", "addr", "add", "10.0.0.1/24", "dev", "blue0")
    host.sysctl("net/ipv4/conf/all/forwarding", 0)
    host.sysctl("net/ipv4/conf/default/forwarding", 0)
    return host


def made(host: Netns, versions: set[int]):
    changes = host.call(forwarding.plan_forwarding, versions, OURS)
    host.call(forwarding.apply, changes)
    return changes


def test_an_uplink_has_a_global_address_and_is_none_of_ours(host: Netns) -> None:
    assert host.call(forwarding.uplinks, 4, OURS) == {"up0"}
    assert host.call(forwarding.uplinks, 6, OURS) == {"up0"}


def test_planning_changes_nothing(host: Netns) -> None:
    host.call(forwarding.plan_forwarding, {4, 6}, OURS)
    assert host.sysctl("net/ipv4/conf/up0/forwarding") == "0"


def test_ipv4_is_switched_on_for_our_interfaces_and_the_uplinks_alone(host: Netns) -> None:
    assert made(host, {4}) == (
        SysctlChange("ipv4/conf/blue0/forwarding", "0", "1"),
        SysctlChange("ipv4/conf/up0/forwarding", "0", "1"),
    )
    found = {name: host.sysctl(f"net/ipv4/conf/{name}/forwarding") for name in ("blue0", "up0", "idle0", "all")}
    assert found == {"blue0": "1", "up0": "1", "idle0": "0", "all": "0"}


def test_what_is_on_already_is_no_change(host: Netns) -> None:
    made(host, {4, 6})
    assert host.call(forwarding.plan_forwarding, {4, 6}, OURS) == ()


def test_an_interface_that_does_not_exist_is_passed_over(host: Netns) -> None:
    assert all("later0" not in one.path for one in host.call(forwarding.plan_forwarding, {4, 6}, {"later0"}))


def test_without_ipv6_networks_nothing_of_ipv6_changes(host: Netns) -> None:
    assert all(change.path.startswith("ipv4/") for change in made(host, {4}))


@needs_force
def test_ipv6_is_forced_per_interface_where_the_kernel_can(host: Netns) -> None:
    assert made(host, {6}) == (
        SysctlChange("ipv6/conf/blue0/force_forwarding", "0", "1"),
        SysctlChange("ipv6/conf/up0/force_forwarding", "0", "1"),
    )
    assert host.sysctl("net/ipv6/conf/all/forwarding") == "0"


def test_ipv6_elsewhere_is_global_and_uplinks_go_on_taking_advertisements(
    host: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "_FORCE6", "ipv6/conf/all/no_such_switch")
    assert made(host, {6}) == (
        SysctlChange("ipv6/conf/up0/accept_ra", "1", "2"),
        SysctlChange("ipv6/conf/all/forwarding", "0", "1"),
    )
    assert host.sysctl("net/ipv6/conf/up0/forwarding") == "1"


def test_an_uplink_that_takes_no_advertisements_keeps_refusing_them(
    host: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "_FORCE6", "ipv6/conf/all/no_such_switch")
    host.sysctl("net/ipv6/conf/up0/accept_ra", 0)
    assert [change.path for change in made(host, {6})] == ["ipv6/conf/all/forwarding"]


def test_a_host_that_forwards_ipv6_already_is_left_alone(host: Netns) -> None:
    host.sysctl("net/ipv6/conf/all/forwarding", 1)
    assert host.call(forwarding.plan_forwarding, {6}, OURS) == ()


@pytest.mark.parametrize("version", [4, pytest.param(6, marks=needs_force)])
def test_the_uplink_that_only_we_opened_is_told(host: Netns, version: int) -> None:
    changes = made(host, {version})
    assert host.call(forwarding.opened, changes, version, OURS) == {"up0"}


def test_an_uplink_that_was_open_before_is_not_told(host: Netns) -> None:
    host.sysctl("net/ipv4/conf/up0/forwarding", 1)
    assert host.call(forwarding.opened, made(host, {4}), 4, OURS) == frozenset()


def test_a_host_that_forwards_everywhere_since_has_no_uplink_opened_by_us(host: Netns) -> None:
    changes = made(host, {4})
    host.sysctl("net/ipv4/conf/all/forwarding", 1)
    assert host.call(forwarding.opened, changes, 4, OURS) == frozenset()


def test_the_global_switch_for_ipv6_opens_every_interface_that_is_not_ours(
    host: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "_FORCE6", "ipv6/conf/all/no_such_switch")
    assert host.call(forwarding.opened, made(host, {6}), 6, OURS) == {"up0", "idle0"}


def test_restoring_puts_every_value_back(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_FORCE6", "ipv6/conf/all/no_such_switch")
    changes = made(host, {4, 6})
    host.call(forwarding.restore, changes)
    assert [host.sysctl(f"net/{change.path}") for change in changes] == [change.old for change in changes]


def test_restoring_leaves_what_somebody_else_changed_since(host: Netns) -> None:
    changes = (SysctlChange("ipv4/conf/up0/arp_announce", "0", "1"),)
    host.call(forwarding.apply, changes)
    host.sysctl("net/ipv4/conf/up0/arp_announce", 2)
    host.call(forwarding.restore, changes)
    assert host.sysctl("net/ipv4/conf/up0/arp_announce") == "2"


def test_changes_of_an_interface_that_is_gone_are_passed_over(host: Netns) -> None:
    changes = made(host, {4})
    host.run("ip", "link", "del", "blue0")
    host.call(forwarding.apply, changes)
    host.call(forwarding.restore, changes)
    assert host.sysctl("net/ipv4/conf/up0/forwarding") == "0"


def test_a_value_the_kernel_refuses_is_told(host: Netns) -> None:
    with pytest.raises(KernelError, match="arp_announce to many: Invalid argument"):
        host.call(forwarding.apply, [SysctlChange("ipv4/conf/up0/arp_announce", "0", "many")])


def test_a_path_out_of_the_network_sysctls_is_refused(host: Netns) -> None:
    with pytest.raises(Invalid, match=r"sysctl '../kernel/panic' does not lie below /proc/sys/net"):
        host.call(sysctls.write, "../kernel/panic", "0")
