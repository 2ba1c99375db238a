"""How what was made goes again: at once or in two steps, twice as well as once, and nobody else's with it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.errors import KernelError
from conetd.kernel import Kernel, Work
from conetd.kernel.links import GROUP_CLOSED, GROUP_GOING
from conetd.kernel.namespaces import NetNS, open_namespace
from conetd.kernel.netlink import NETLINK_ROUTE, Netlink
from conetd.kernel.reaping import reap
from conetd.plan import Bridge, Plan, Route, Side, Sysctl
from tests.kernel.links_lab import ALIAS, RememberingFilter, attachment


@pytest.fixture
def many(kernel: Kernel, network: Plan, host: Netns, netns: NetnsFactory):
    """Plans of ten attachments that are in the kernel: more than are deleted together."""
    plans = [attachment(number) for number in range(10, 20)]
    opened = [host.call(open_namespace, netns.make(f"c{number}").pid) for number in range(10)]
    works = [Work(one, ALIAS, netns) for one, netns in zip(plans, opened, strict=True)]
    assert kernel.ensure_many(works) == [None] * 10
    for one in opened:
        one.close()
    return plans


def names(plans: list[Plan]) -> list[str]:
    return [link.name for plan in plans for link in plan.links]


def reap_on(host: Netns, names: list[str]) -> None:
    def run() -> None:
        with Netlink(NETLINK_ROUTE) as netlink:
            reap(netlink, names)

    host.call(run)


def test_after_remove_the_host_is_as_before(
    kernel: Kernel, network: Plan, inside: NetNS, host: Netns, filter: RememberingFilter
) -> None:
    def look() -> object:
        addresses = host.json("ip", "-j", "addr", "show", "scope", "global")
        held = {one["ifname"]: [info for info in one["addr_info"] if info] for one in addresses if one}
        return held, host.json("bridge", "-j", "fdb"), dict(filter.holds)

    before = look()
    kernel.ensure(attachment(2), ALIAS, inside)
    kernel.remove(attachment(2), inside)
    assert look() == before


def test_remove_twice_is_success(
    kernel: Kernel, network: Plan, plan: Plan, inside: NetNS, filter: RememberingFilter
) -> None:
    for _ in range(2):
        kernel.remove(plan, inside)
    for _ in range(2):
        kernel.remove(network)
    assert kernel.links() == {"lo"}
    assert filter.holds == {}


def test_remove_needs_no_namespace(kernel: Kernel, plan: Plan) -> None:
    kernel.remove(plan)
    assert "cv2" not in kernel.links()


def test_remove_succeeds_when_the_namespace_took_the_link_along(
    kernel: Kernel, plan: Plan, inside: NetNS, web: Netns, host: Netns
) -> None:
    host.run("ip", "link", "del", "cv2")
    kernel.remove(plan, inside)


def test_remove_leaves_a_strangers_link_of_that_name(kernel: Kernel, host: Netns) -> None:
    host.run("ip", "link", "add", "red0", "type", "bridge")
    kernel.remove(Plan(links=(Bridge("red0", "0a:00:00:00:00:07", 1500),)))
    assert "red0" in kernel.links()


def test_remove_takes_what_lies_on_links_of_other_plans(
    kernel: Kernel, network: Plan, plan: Plan, inside: NetNS, host: Netns, web: Netns
) -> None:
    extra = Plan(
        routes=(
            Route(ip_network("10.5.0.0/16"), "blue0"),
            Route(ip_network("10.6.0.0/16"), "eth0", side=Side.CONTAINER),
        )
    )
    kernel.ensure(extra, ALIAS, inside)
    kernel.remove(extra, inside)
    assert host.json("ip", "-j", "route", "show", "10.5.0.0/16") == []
    assert web.json("ip", "-j", "route", "show", "10.6.0.0/16") == []


def test_remove_goes_on_when_the_filter_refuses(kernel: Kernel, plan: Plan, filter: RememberingFilter) -> None:
    filter.refuses.add("key2")
    with pytest.raises(KernelError, match="could not change the filter"):
        kernel.remove(plan)
    assert "cv2" not in kernel.links()


def test_a_refused_closing_fails_its_own_plan_alone(
    kernel: Kernel, many: list[Plan], filter: RememberingFilter
) -> None:
    filter.refuses.add("key12")
    errors = kernel.close_many(many)
    assert [number for number, error in enumerate(errors) if error is not None] == [2]


def test_closing_drops_the_filter_of_all_in_one_transaction_and_keeps_the_links(
    kernel: Kernel, many: list[Plan], filter: RememberingFilter
) -> None:
    before = filter.transactions
    assert kernel.close_many(many) == [None] * 10
    assert filter.transactions == before + 1
    assert not [key for kind, key in filter.holds if kind == "EndpointPolicy"]
    assert set(names(many)) <= kernel.links()


def test_closing_what_is_gone_is_success(kernel: Kernel) -> None:
    assert kernel.close_many([attachment(2)]) == [None]


def test_closing_takes_what_lies_on_links_of_other_plans(
    kernel: Kernel, network: Plan, plan: Plan, inside: NetNS, host: Netns
) -> None:
    whole = replace(plan, routes=(*plan.routes, Route(ip_network("10.5.0.0/16"), "blue0")))
    kernel.ensure(whole, ALIAS, inside)
    assert kernel.close_many([whole]) == [None]
    assert host.json("ip", "-j", "route", "show", "10.5.0.0/16") == []


def test_reaping_deletes_what_is_closed_and_nothing_else(kernel: Kernel, many: list[Plan], host: Netns) -> None:
    kernel.close_many(many[:9])
    reap_on(host, names(many[:9]))
    assert kernel.links() == {"lo", "blue0", *names(many[9:])}


def test_reaping_leaves_a_link_that_was_made_anew(kernel: Kernel, plan: Plan, inside: NetNS, host: Netns) -> None:
    kernel.close_many([plan])
    kernel.ensure(plan, ALIAS, inside)
    reap_on(host, ["cv2"])
    assert kernel.diff(plan, inside, ALIAS) == []


def test_reaping_leaves_a_strangers_link_in_groups_of_ours(kernel: Kernel, many: list[Plan], host: Netns) -> None:
    for name, group in (("red0", GROUP_GOING), ("red1", GROUP_CLOSED)):
        host.run("ip", "link", "add", name, "group", str(group), "type", "bridge")
    kernel.close_many(many)
    reap_on(host, names(many))
    assert kernel.links() == {"lo", "blue0", "red0", "red1"}


def test_reaping_twice_is_success(kernel: Kernel, plan: Plan, host: Netns) -> None:
    kernel.close_many([plan])
    reap_on(host, ["cv2"])
    reap_on(host, ["cv2"])
    assert "cv2" not in kernel.links()


def test_links_that_belong_to_nobody_are_found_and_reaped(kernel: Kernel, many: list[Plan], host: Netns) -> None:
    owned = kernel.owned_links()
    assert owned["cv10"] == ALIAS
    host.run("ip", "link", "add", "red0", "type", "bridge")
    kernel.reap([*owned, "red0"])
    assert kernel.links() == {"lo", "red0"}


def test_owned_links_tells_one_that_lost_its_alias(kernel: Kernel, plan: Plan, host: Netns) -> None:
    host.run("ip", "link", "set", "cv2", "alias", "")
    assert kernel.owned_links() == {"blue0": "conetd:blue", "cv2": ""}


def test_a_handle_makes_tells_and_removes_under_its_alias(
    kernel: Kernel, network: Plan, inside: NetNS, host: Netns
) -> None:
    handle = kernel.handle(ALIAS, inside)
    host.call(handle.ensure, attachment(2))
    assert kernel.owned_links()["cv2"] == ALIAS
    assert host.call(handle.diff, attachment(2)) == []
    host.call(handle.remove, attachment(2))
    assert "cv2" not in kernel.links()


def test_sysctls_of_a_removed_plan_are_left_alone(kernel: Kernel, network: Plan, host: Netns) -> None:
    kernel.ensure(Plan(sysctls=(Sysctl("ipv4/conf/blue0/arp_notify", "1"),)))
    kernel.remove(Plan(sysctls=(Sysctl("ipv4/conf/blue0/arp_notify", "1"),)))
    assert host.sysctl("net/ipv4/conf/blue0/arp_notify") == "1"


def test_remove_goes_on_when_the_namespace_cannot_be_entered(kernel: Kernel, plan: Plan, inside: NetNS) -> None:
    inside.close()
    with pytest.raises(KernelError, match="could not enter network namespace"):
        kernel.remove(plan, inside)
    assert "cv2" not in kernel.links()
