"""Who reaches a published port, on each filter backend, and with which address."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from conetd.plan import EndpointPolicy, PortMapping
from tests.kernel.filter_lab import GATEWAY, OUTSIDE, SUBNETS, UP, UP_SECOND, FilterLab, mapping, reject
from tests.kernel.traffic import REFUSED, Flow


def test_a_published_port_is_reached_from_another_machine_whose_address_is_kept(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == str(OUTSIDE[flow.family])


def test_a_published_port_is_reached_from_the_host(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.host, flow, UP[flow.family], 7000) == str(UP[flow.family])


@pytest.mark.parametrize("isolated", [False, True], ids=["", "isolated"])
def test_a_published_port_is_reached_from_the_same_network(lab: FilterLab, flow: Flow, isolated: bool) -> None:
    lab.serve(lab.a.netns, flow)
    lab.network(lab.blue, isolated=isolated)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.b.netns, flow, UP[flow.family], 7000) == str(GATEWAY[flow.family])


def test_a_published_port_is_reached_from_another_network(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.c.netns, flow, UP[flow.family], 7000) == str(GATEWAY[flow.family])


@pytest.mark.parametrize("isolated", [False, True], ids=["", "isolated"])
def test_a_published_port_is_reached_from_its_own_container(lab: FilterLab, flow: Flow, isolated: bool) -> None:
    lab.serve(lab.a.netns, flow)
    lab.network(lab.blue, isolated=isolated)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.a.netns, flow, UP[flow.family], 7000) == str(GATEWAY[flow.family])


def test_what_is_published_is_judged_after_translation(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    lab.policy(lab.c, reject(SUBNETS["blue"][flow.family == 6]))
    assert lab.reach(lab.c.netns, flow, UP[flow.family], 7000) == REFUSED


def test_a_port_published_on_one_address_is_not_on_others(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow, host_ip=UP_SECOND[flow.family])])
    assert lab.reach(lab.outside.netns, flow, UP_SECOND[flow.family], 7000) == str(OUTSIDE[flow.family])
    assert lab.reach(lab.host, flow, UP_SECOND[flow.family], 7000) != REFUSED
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == REFUSED


def test_a_given_address_comes_before_every_address(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow, 8081)
    lab.serve(lab.b.netns, flow)
    lab.policy(lab.b, ports=[mapping(lab.b, flow)])
    lab.policy(lab.a, ports=[mapping(lab.a, flow, to_port=8081, host_ip=UP_SECOND[flow.family])])
    assert lab.reach(lab.outside.netns, flow, UP_SECOND[flow.family], 7000) == str(OUTSIDE[flow.family])
    lab.policy(lab.b)
    lab.forget_flows()
    assert lab.reach(lab.outside.netns, flow, UP_SECOND[flow.family], 7000) == str(OUTSIDE[flow.family])
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == REFUSED


def test_a_published_port_is_not_on_the_loopback(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    assert lab.reach(lab.host, flow, ip_address("127.0.0.1" if flow.family == 4 else "::1"), 7000) == REFUSED


def test_a_port_no_longer_published_is_closed(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    lab.policy(lab.a)
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == REFUSED


def test_a_port_handed_to_another_container_leads_there(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.b.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow)])
    ports: tuple[PortMapping, ...] = (mapping(lab.b, flow),)
    lab.put(EndpointPolicy("b", ports=ports), EndpointPolicy("a"))
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == str(OUTSIDE[flow.family])


def test_a_target_routed_elsewhere_sees_its_gateway(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.a.netns, flow)
    lab.policy(lab.a, ports=[mapping(lab.a, flow, masquerade=True)])
    assert lab.reach(lab.outside.netns, flow, UP[flow.family], 7000) == str(GATEWAY[flow.family])
