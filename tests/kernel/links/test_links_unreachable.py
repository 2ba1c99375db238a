"""What is refused where no longer route leads, and who made the route that refuses it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from pytest_netns import Netns

from conetd.errors import KernelError
from conetd.kernel import Kernel, Work
from conetd.plan import Plan
from tests.kernel.overlay_lab import ALIAS, NETWORK, WHOLE, member, whole

FOUR, SIX = WHOLE
PLAN = Plan(unreachable=WHOLE)


def routes(host: Netns) -> list[tuple[str, str]]:
    found = [one for family in ("-4", "-6") for one in host.json("ip", "-j", "-d", family, "route")]
    return [(one["dst"], one["protocol"]) for one in found if one["type"] == "unreachable"]


def test_packets_there_are_refused_and_the_route_carries_our_number(kernel: Kernel, host: Netns) -> None:
    kernel.ensure(PLAN)
    assert routes(host) == [(str(FOUR), "157"), (str(SIX), "157")]
    assert kernel.unreachable() == set(WHOLE)
    assert kernel.diff(PLAN) == []


def test_a_longer_route_to_another_host_still_leads_there(kernel: Kernel, host: Netns) -> None:
    kernel.ensure(whole(member(1)), ALIAS)
    for destination in ("10.128.1.7", "fd00::107"):
        [route] = host.json("ip", "-j", "route", "get", destination)
        assert route["dev"] == "vx7"


@pytest.mark.parametrize("destination", ["10.128.9.7", "fd00::907"])
def test_an_absent_host_is_unreachable_in_spite_of_a_default_route(
    kernel: Kernel, host: Netns, destination: str
) -> None:
    kernel.ensure(whole(member(1)), ALIAS)
    host.run("ip", "link", "add", "up0", "up", "type", "bridge")
    for family in ("-4", "-6"):
        host.run("ip", family, "route", "add", "default", "dev", "up0")
    tried = host.run("ip", "route", "get", destination, check=False)
    assert "No route to host" in tried.stderr


def test_twice_is_once(kernel: Kernel, host: Netns) -> None:
    kernel.ensure(PLAN)
    kernel.ensure(PLAN)
    kernel.ensure(NETWORK, ALIAS)
    kernel.ensure(NETWORK, ALIAS)
    assert len(routes(host)) == 2


@pytest.mark.parametrize("destination", WHOLE, ids=str)
@pytest.mark.parametrize("plan", [PLAN, NETWORK], ids=["alone", "with a link"])
def test_one_that_is_missing_is_told_and_made(kernel: Kernel, host: Netns, plan: Plan, destination: object) -> None:
    kernel.ensure(plan, ALIAS)
    host.run("ip", "route", "del", "unreachable", str(destination))
    assert [str(drift) for drift in kernel.diff(plan)] == [f"unreachable route to {destination} is missing"]
    kernel.ensure(plan, ALIAS)
    assert kernel.diff(plan) == []


@pytest.mark.parametrize("destination", WHOLE, ids=str)
@pytest.mark.parametrize("kind", ["unreachable", "unicast"])
@pytest.mark.parametrize("plan", [PLAN, NETWORK], ids=["alone", "with a link"])
def test_a_strangers_route_to_the_very_same_destination_is_told_and_stays(
    kernel: Kernel, host: Netns, plan: Plan, kind: str, destination: object
) -> None:
    device = "" if kind == "unreachable" else "dev lo"
    host.run(*f"ip route add {kind} {destination} {device}".split())
    with pytest.raises(KernelError) as failure:
        kernel.ensure(plan, ALIAS)
    assert str(failure.value) == (
        f"could not add unreachable route to {destination}: File exists (there is a route to it that is not conetd's)"
    )
    kernel.remove(plan)
    family = "-6" if destination is SIX else "-4"
    [route] = host.json("ip", "-j", "-d", family, "route", "show", "exact", str(destination))
    assert (route["type"], route["protocol"]) == (kind, "boot")


def test_one_that_is_refused_leaves_other_works_fine(kernel: Kernel, host: Netns) -> None:
    host.run("ip", "route", "add", "unreachable", str(FOUR))
    other = Plan(unreachable=(ip_network("10.77.0.0/16"),))
    refused, fine = kernel.ensure_many([Work(PLAN), Work(other)])
    assert isinstance(refused, KernelError)
    assert fine is None
    assert kernel.diff(other) == []


def test_remove_takes_them_and_twice_is_success(kernel: Kernel, host: Netns) -> None:
    kernel.ensure(NETWORK, ALIAS)
    for _ in range(2):
        kernel.remove(NETWORK)
    assert routes(host) == []


def test_orphans_are_found_and_dropped_without_a_plan(kernel: Kernel, host: Netns) -> None:
    kernel.ensure(PLAN)
    kernel.drop_unreachable([FOUR])
    kernel.drop_unreachable([FOUR])
    assert kernel.unreachable() == {SIX}


def test_a_strangers_is_neither_found_nor_dropped(kernel: Kernel, host: Netns) -> None:
    host.run("ip", "route", "add", "unreachable", str(FOUR))
    assert kernel.unreachable() == frozenset()
    kernel.drop_unreachable([FOUR])
    assert [destination for destination, _ in routes(host)] == [str(FOUR)]
