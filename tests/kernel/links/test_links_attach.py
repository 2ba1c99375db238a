"""What an attachment gets: links, addresses and routes as planned, together and in the right order."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.errors import KernelError, NotFound
from conetd.kernel import Kernel, Work
from conetd.kernel.namespaces import NetNS, open_namespace
from conetd.plan import Address, Bridge, EndpointPolicy, Plan, Route, Side, Sysctl, Veth
from tests.kernel.links_lab import ALIAS, NETWORK_ALIAS, RememberingFilter, attachment, link


def test_what_was_made_is_what_diff_looks_for(kernel: Kernel, network: Plan, inside: NetNS) -> None:
    kernel.ensure(attachment(2), ALIAS, inside)
    assert kernel.diff(attachment(2), inside, ALIAS) == []
    assert kernel.diff(network, None, NETWORK_ALIAS) == []


def test_the_container_has_its_interface_up_with_mac_mtu_and_addresses(
    kernel: Kernel, network: Plan, inside: NetNS, web: Netns
) -> None:
    kernel.ensure(attachment(2), ALIAS, inside)
    eth0 = link(web, "eth0")
    assert (eth0["address"], eth0["mtu"], eth0["operstate"]) == ("0a:00:00:00:01:02", 1450, "UP")
    found = {(one["local"], one["prefixlen"]) for one in eth0["addr_info"] if one["scope"] == "global"}
    assert found == {("10.0.0.2", 24), ("fd00::2", 64)}


def test_default_routes_lead_to_the_gateway_and_carry_our_protocol_number(
    kernel: Kernel, network: Plan, inside: NetNS, web: Netns
) -> None:
    kernel.ensure(attachment(2), ALIAS, inside)
    [four] = web.json("ip", "-j", "-4", "route", "show", "default")
    [six] = web.json("ip", "-j", "-6", "route", "show", "default")
    assert (four["gateway"], four["protocol"]) == ("10.0.0.1", "157")
    assert (six["gateway"], six["protocol"]) == ("fd00::1", "157")


def test_an_ipv6_address_is_usable_at_once_where_duplicates_are_looked_for(
    kernel: Kernel, network: Plan, inside: NetNS, web: Netns
) -> None:
    for which in ("all", "default"):
        web.sysctl(f"net/ipv6/conf/{which}/accept_dad", 1)
    kernel.ensure(attachment(2), ALIAS, inside)
    [address] = [one for one in link(web, "eth0")["addr_info"] if one["local"] == "fd00::2"]
    assert "tentative" not in address


def test_the_host_end_is_a_locked_port_that_learns_nothing(
    kernel: Kernel, network: Plan, inside: NetNS, host: Netns
) -> None:
    kernel.ensure(attachment(2), ALIAS, inside)
    end = link(host, "cv2")
    port = end["linkinfo"]["info_slave_data"]
    assert (end["master"], port["learning"], port["locked"], port["hairpin"]) == ("blue0", False, True, True)


def test_the_bridge_knows_the_mac_for_good_and_once(kernel: Kernel, network: Plan, inside: NetNS, host: Netns) -> None:
    kernel.ensure(attachment(2), ALIAS, inside)
    entries = [one for one in host.json("bridge", "-j", "fdb") if one["mac"] == "0a:00:00:00:01:02"]
    assert [(one["ifname"], one["state"]) for one in entries] == [("cv2", "static")]


def test_the_host_end_of_a_port_speaks_no_ipv6(kernel: Kernel, network: Plan, inside: NetNS, host: Netns) -> None:
    kernel.ensure(attachment(2), ALIAS, inside)
    assert link(host, "cv2")["addr_info"] == []


def test_an_alias_too_long_is_cut_to_what_the_kernel_takes(
    kernel: Kernel, network: Plan, inside: NetNS, host: Netns
) -> None:
    long = "conetd:blue:" + "ü" * 200
    kernel.ensure(attachment(2), long, inside)
    assert len(kernel.owned_links()["cv2"].encode()) == 254
    assert kernel.diff(attachment(2), inside, long) == []


def test_a_bridge_is_up_without_snooping_and_with_its_mac(kernel: Kernel, network: Plan, host: Netns) -> None:
    bridge = link(host, "blue0")
    data = bridge["linkinfo"]["info_data"]
    assert (bridge["address"], "UP" in bridge["flags"]) == ("0a:00:00:00:00:01", True)
    assert (data["mcast_snooping"], data["stp_state"], data["forward_delay"]) == (0, 0, 0)


def test_a_bridge_keeps_its_mtu_when_its_last_port_leaves(
    kernel: Kernel, network: Plan, inside: NetNS, host: Netns
) -> None:
    kernel.ensure(attachment(2), ALIAS, inside)
    kernel.remove(attachment(2), inside)
    assert link(host, "blue0")["mtu"] == 1450


def test_early_sysctls_are_inherited_and_late_ones_set(
    kernel: Kernel, network: Plan, inside: NetNS, web: Netns
) -> None:
    kernel.ensure(attachment(2), ALIAS, inside)
    assert web.sysctl("net/ipv6/conf/eth0/accept_ra") == "0"
    assert web.sysctl("net/ipv4/conf/eth0/arp_notify") == "1"


def test_without_ipv6_no_address_of_it_appears(kernel: Kernel, network: Plan, inside: NetNS, web: Netns) -> None:
    plan = attachment(2)
    silent = replace(
        plan,
        addresses=plan.addresses[:1],
        routes=plan.routes[:1],
        sysctls=(Sysctl("ipv6/conf/default/disable_ipv6", "1", Side.CONTAINER, early=True),),
    )
    kernel.ensure(silent, ALIAS, inside)
    assert {one["family"] for one in link(web, "eth0")["addr_info"]} == {"inet"}


def test_many_works_cost_one_filter_transaction(
    kernel: Kernel, network: Plan, inside: NetNS, other: NetNS, filter: RememberingFilter
) -> None:
    before = filter.transactions
    works = [Work(attachment(2), ALIAS, inside), Work(attachment(3), ALIAS, other)]
    assert kernel.ensure_many(works) == [None, None]
    assert filter.transactions == before + 1
    assert {"key2", "key3"} <= {key for _, key in filter.holds}


def test_a_refused_filter_fails_its_own_work_alone(
    kernel: Kernel, network: Plan, inside: NetNS, other: NetNS, filter: RememberingFilter
) -> None:
    filter.refuses.add("key2")
    refused, fine = kernel.ensure_many([Work(attachment(2), ALIAS, inside), Work(attachment(3), ALIAS, other)])
    assert isinstance(refused, KernelError)
    assert fine is None


def test_no_link_is_made_when_the_filter_refuses(
    kernel: Kernel, network: Plan, inside: NetNS, filter: RememberingFilter
) -> None:
    filter.refuses.add("key2")
    with pytest.raises(KernelError):
        kernel.ensure(attachment(2), ALIAS, inside)
    assert "cv2" not in kernel.links()


def test_a_work_that_fails_half_way_leaves_the_others_fine(
    kernel: Kernel, network: Plan, inside: NetNS, other: NetNS, netns: NetnsFactory, host: Netns
) -> None:
    third = netns.make("third")
    bad = attachment(3)
    bad = replace(bad, routes=(Route(ip_network("0.0.0.0/0"), "eth7", side=Side.CONTAINER),))
    with host.call(open_namespace, third.pid) as last:
        plans = [attachment(2), bad, attachment(4)]
        works = [Work(plan, ALIAS, opened) for plan, opened in zip(plans, (inside, other, last), strict=True)]
        errors = kernel.ensure_many(works)
        assert [error is None for error in errors] == [True, False, True]
        assert str(errors[1]) == "could not find link eth7: No such device"
        assert kernel.diff(plans[0], inside) == []
        assert kernel.diff(plans[2], last) == []


def test_a_namespace_that_cannot_be_entered_fails_its_own_work_alone(
    kernel: Kernel, network: Plan, inside: NetNS, other: NetNS
) -> None:
    other.close()
    fine, failed = kernel.ensure_many([Work(attachment(2), ALIAS, inside), Work(attachment(3), ALIAS, other)])
    assert fine is None
    assert isinstance(failed, KernelError)
    assert failed.operation == "enter"


def test_a_sysctl_that_is_not_there_is_named(kernel: Kernel, network: Plan, inside: NetNS) -> None:
    plan = replace(attachment(2), sysctls=(Sysctl("ipv4/conf/eth0/nonsense", "1", Side.CONTAINER),))
    with pytest.raises(KernelError, match=r"could not set sysctl net/ipv4/conf/eth0/nonsense to 1: No such file"):
        kernel.ensure(plan, ALIAS, inside)


def test_without_a_namespace_an_attachment_is_refused(kernel: Kernel, network: Plan) -> None:
    with pytest.raises(NotFound, match="cannot make link cv2: the container has no network namespace any more"):
        kernel.ensure(attachment(2), ALIAS, None)


def test_a_bridge_that_is_not_there_is_named(kernel: Kernel, inside: NetNS) -> None:
    with pytest.raises(KernelError, match="could not find link blue0: No such device"):
        kernel.ensure(attachment(2), ALIAS, inside)


def test_two_networks_of_one_container_with_different_early_sysctls_get_their_own(
    kernel: Kernel, network: Plan, inside: NetNS, web: Netns
) -> None:
    def plan(number: int, ifname: str, silent: str) -> Plan:
        return Plan(
            links=(Veth(f"cv{number}", ifname, f"0a:00:00:00:01:{number:02x}", 1450, "blue0"),),
            sysctls=(Sysctl("ipv6/conf/default/disable_ipv6", silent, Side.CONTAINER, early=True),),
        )

    works = [Work(plan(2, "eth0", "1"), ALIAS, inside), Work(plan(3, "eth1", "0"), ALIAS, inside)]
    assert kernel.ensure_many(works) == [None, None]
    found = [web.sysctl(f"net/ipv6/conf/{ifname}/disable_ipv6") for ifname in ("eth0", "eth1")]
    assert found == ["1", "0"]


def test_a_bridge_and_its_first_port_may_come_in_one_plan(kernel: Kernel, inside: NetNS) -> None:
    plan = Plan(links=(Bridge("blue0", "0a:00:00:00:00:01", 1450),)) + attachment(2)
    plan = replace(plan, links=plan.links[::-1])
    kernel.ensure(plan, ALIAS, inside)
    assert kernel.diff(plan, inside, ALIAS) == []


def test_a_full_bridge_is_told_with_its_limit(kernel: Kernel, network: Plan, inside: NetNS, host: Netns) -> None:
    pairs = "".join(f"link add d{number} type veth peer name e{number}\n" for number in range(512))
    ends = [f"{end}{number}" for number in range(512) for end in "de"][:1023]
    host.run("ip", "-batch", "-", input=pairs + "".join(f"link set {end} master blue0\n" for end in ends))
    with pytest.raises(KernelError) as failure:
        kernel.ensure(attachment(2), ALIAS, inside)
    assert failure.value.errno == errno.EXFULL
    assert str(failure.value) == (
        "could not create link cv2: Exchange full (a bridge takes 1023 ports, and blue0 has them all)"
    )


def test_a_policy_alone_enters_no_namespace(kernel: Kernel, filter: RememberingFilter) -> None:
    kernel.ensure(Plan(filter=(EndpointPolicy("key9"),)))
    assert filter.holds[("EndpointPolicy", "key9")] == EndpointPolicy("key9")


def test_an_address_on_the_host_end_of_a_routed_pair(kernel: Kernel, inside: NetNS, host: Netns) -> None:
    pair = Veth("cv2", "eth0", "0a:00:00:00:01:02", 1450, host_mac="ee:ee:00:00:00:02")
    plan = attachment(2, bridge=None)
    plan += Plan(
        addresses=(Address("cv2", ip_interface("169.254.1.1/32")),),
        routes=(Route(ip_network("10.0.0.2/32"), "cv2"),),
    )
    plan = replace(plan, routes=plan.routes[2:], links=(pair,))
    kernel.ensure(plan, ALIAS, inside)
    assert link(host, "cv2")["address"] == "ee:ee:00:00:00:02"
    [route] = host.json("ip", "-j", "route", "show", "10.0.0.2")
    assert (route["dev"], route["scope"], route["protocol"]) == ("cv2", "link", "157")
    assert kernel.diff(plan, inside, ALIAS) == []
