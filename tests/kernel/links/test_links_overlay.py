"""The objects of an overlay: VTEPs, forwarding entries, neighbours and routes to remote hosts."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from pytest_netns import Netns

from conetd.kernel import Kernel
from conetd.plan import Address, FdbEntry, Neighbour, Plan, Route, Vxlan
from tests.kernel.links_lab import link

VTEP = Vxlan("vx7", 7, ip_address("192.0.2.1"), 4790, "ee:ee:0a:ff:00:01", 1450)
REMOTE = "ee:ee:0a:ff:00:02"
ROUTE = Route(ip_network("10.255.2.0/24"), "vx7", ip_address("10.255.2.0"), ip_address("10.255.0.1"), onlink=True)
PLAN = Plan(
    links=(VTEP,),
    addresses=(Address("vx7", ip_interface("10.255.0.1/32")),),
    routes=(
        Route(ip_network("10.255.2.0/24"), "vx7", ip_address("10.255.2.0"), ip_address("10.255.0.1"), onlink=True),
    ),
    neighbours=(Neighbour("vx7", ip_address("10.255.2.0"), REMOTE),),
    fdb=(FdbEntry("vx7", REMOTE, ip_address("192.0.2.2")),),
)
ALIAS = "conetd:overlay"


@pytest.fixture
def overlay(kernel: Kernel):
    kernel.ensure(PLAN, ALIAS)
    return PLAN


def test_the_vtep_is_up_with_its_settings(kernel: Kernel, overlay: Plan, host: Netns) -> None:
    vtep = link(host, "vx7")
    data = vtep["linkinfo"]["info_data"]
    assert "UP" in vtep["flags"]
    assert (vtep["address"], vtep["mtu"]) == ("ee:ee:0a:ff:00:01", 1450)
    assert (data["id"], data["local"], data["port"], data["learning"]) == (7, "192.0.2.1", 4790, False)
    assert data["gbp"] is True


def test_what_was_made_is_what_diff_looks_for(kernel: Kernel, overlay: Plan) -> None:
    assert kernel.diff(PLAN, None, ALIAS) == []


def test_a_second_time_changes_nothing(kernel: Kernel, overlay: Plan, host: Netns) -> None:
    def look() -> object:
        return [
            host.json(*command.split())
            for command in ("ip -j -d link", "ip -j addr", "ip -j -d route", "ip -j neigh", "bridge -j fdb")
        ]

    before = look()
    kernel.ensure(PLAN, ALIAS)
    assert look() == before


def test_frames_for_the_remote_vtep_go_to_its_host_for_good(kernel: Kernel, overlay: Plan, host: Netns) -> None:
    [entry] = [one for one in host.json("bridge", "-j", "fdb") if one["mac"] == REMOTE]
    assert (entry["dst"], entry["state"]) == ("192.0.2.2", "permanent")


def test_the_route_to_the_remote_host_is_onlink_with_its_source(kernel: Kernel, overlay: Plan, host: Netns) -> None:
    [route] = host.json("ip", "-j", "-d", "route", "show", "10.255.2.0/24")
    assert (route["gateway"], route["prefsrc"], route["flags"]) == ("10.255.2.0", "10.255.0.1", ["onlink"])


def test_an_ipv6_underlay_works_the_same(kernel: Kernel, host: Netns) -> None:
    plan = Plan(
        links=(replace(VTEP, local=ip_address("2001:db8::1"), gbp=False),),
        fdb=(FdbEntry("vx7", REMOTE, ip_address("2001:db8::2")),),
        neighbours=(Neighbour("vx7", ip_address("fd00::2"), REMOTE),),
    )
    kernel.ensure(plan, ALIAS)
    assert kernel.diff(plan, None, ALIAS) == []
    assert link(host, "vx7")["linkinfo"]["info_data"]["local6"] == "2001:db8::1"


DAMAGES = [
    ("ip neigh del 10.255.2.0 dev vx7", "neighbour 10.255.2.0 on vx7 is missing"),
    ("ip neigh replace 10.255.2.0 lladdr ee:ee:0a:ff:00:09 dev vx7", "neighbour 10.255.2.0 on vx7 is missing"),
    (f"bridge fdb del {REMOTE} dev vx7", f"forwarding entry {REMOTE} on vx7 is missing"),
    (f"bridge fdb replace {REMOTE} dev vx7 dst 192.0.2.9", f"forwarding entry {REMOTE} on vx7 is missing"),
    ("ip route del 10.255.2.0/24", "route to 10.255.2.0/24 on vx7 is missing"),
    ("ip route add 10.255.9.0/24 dev vx7 proto 157", "route to 10.255.9.0/24 on vx7 is not wanted"),
    ("ip link set vx7 down", "link vx7 is down"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES, ids=[damage for damage, _ in DAMAGES])
def test_damage_is_told_and_mended(kernel: Kernel, overlay: Plan, host: Netns, damage: str, told: str) -> None:
    host.run(*damage.split())
    assert told in [str(drift) for drift in kernel.diff(PLAN, None, ALIAS)]
    kernel.ensure(PLAN, ALIAS)
    assert kernel.diff(PLAN, None, ALIAS) == []


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"vni": 8}, "link vx7 has the id 7, not 8"),
    ({"port": 4791}, "link vx7 has the port 4790, not 4791"),
    ({"local": ip_address("192.0.2.3")}, "link vx7 has the local address 192.0.2.1, not 192.0.2.3"),
    ({"gbp": False}, "link vx7 is with group policy marks"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=[next(iter(change)) for change, _ in CHANGES])
def test_a_vtep_that_does_not_match_is_replaced(
    kernel: Kernel, overlay: Plan, change: dict[str, Any], told: str
) -> None:
    changed = replace(PLAN, links=(replace(VTEP, **change),))
    assert [str(drift) for drift in kernel.diff(changed, None, ALIAS)] == [told]
    kernel.ensure(changed, ALIAS)
    assert kernel.diff(changed, None, ALIAS) == []


def test_entries_of_another_plan_on_the_vtep_go_with_that_plan(kernel: Kernel, overlay: Plan, host: Netns) -> None:
    peer = Plan(
        routes=(Route(ip_network("10.255.3.0/24"), "vx7", ip_address("10.255.3.0"), onlink=True),),
        neighbours=(Neighbour("vx7", ip_address("10.255.3.0"), "ee:ee:0a:ff:00:03"),),
        fdb=(FdbEntry("vx7", "ee:ee:0a:ff:00:03", ip_address("192.0.2.3")),),
    )
    kernel.ensure(peer, ALIAS)
    assert kernel.diff(peer) == []
    kernel.remove(peer)
    assert len(kernel.diff(peer)) == 3
    assert kernel.diff(PLAN, None, ALIAS) == []


def test_remove_takes_the_vtep(kernel: Kernel, overlay: Plan) -> None:
    kernel.remove(PLAN)
    assert kernel.links() == {"lo"}
