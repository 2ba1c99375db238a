"""What a VTEP has for other hosts: many at once, one alone, exactly what is planned, and gone with its host."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pytest_netns import Netns

from conetd.errors import KernelError
from conetd.kernel import Kernel, Work
from conetd.kernel.netlink import Netlink
from conetd.plan import Plan, Route
from tests.kernel.links_lab import link
from tests.kernel.overlay_lab import ALIAS, NETWORK, VTEP, mac, member, whole

MANY = 1000


@pytest.fixture
def vtep(kernel: Kernel) -> Plan:
    kernel.ensure(NETWORK, ALIAS)
    return NETWORK


@pytest.fixture
def two(kernel: Kernel, vtep: Plan) -> Plan:
    """The whole plan of a VTEP with two other hosts, in the kernel."""
    assert kernel.ensure_many([Work(member(1)), Work(member(2))]) == [None, None]
    return whole(member(1), member(2))


@pytest.fixture
def dumps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The message types of the requests that were sent alone, each for a list or one object."""
    asked: list[int] = []
    dump = Netlink.dump

    def count(netlink: Netlink, request: bytes) -> Any:
        asked.append(int.from_bytes(request[4:6], "little"))
        return dump(netlink, request)

    monkeypatch.setattr(Netlink, "dump", count)
    return asked


def told(kernel: Kernel, plan: Plan) -> list[str]:
    return [str(drift) for drift in kernel.diff(plan, None, ALIAS)]


def look(host: Netns) -> Any:
    commands = ("ip -j -d addr", "ip -j -d -4 route", "ip -j -d -6 route", "ip -j neigh", "bridge -j fdb")
    return [host.json(*command.split()) for command in commands]


def test_members_are_made_together_each_by_its_own_work(kernel: Kernel, vtep: Plan) -> None:
    members = [member(number) for number in range(1, MANY + 1)]
    assert kernel.ensure_many([Work(one) for one in members]) == [None] * MANY
    assert kernel.diff(whole(*members), None, ALIAS) == []


def test_members_are_made_together_by_one_work(kernel: Kernel, vtep: Plan) -> None:
    members = [member(number) for number in range(1, MANY + 1)]
    kernel.ensure(Plan.of(members))
    assert kernel.diff(whole(*members), None, ALIAS) == []


def test_members_come_with_the_vtep_in_one_work(kernel: Kernel) -> None:
    kernel.ensure(whole(member(1), member(2)), ALIAS)
    assert kernel.diff(whole(member(1), member(2)), None, ALIAS) == []


def test_a_second_time_changes_nothing(kernel: Kernel, two: Plan, host: Netns) -> None:
    before = look(host)
    assert kernel.ensure_many([Work(member(1)), Work(member(2))]) == [None, None]
    kernel.ensure(member(1) + member(2))
    kernel.ensure(two, ALIAS)
    assert look(host) == before


@pytest.mark.parametrize("count", [2, 50])
def test_what_is_asked_of_the_kernel_does_not_grow_with_the_members(
    kernel: Kernel, vtep: Plan, dumps: list[int], count: int
) -> None:
    members = [member(number) for number in range(1, count + 1)]
    works = [Work(one) for one in members]
    kernel.ensure_many(works)
    dumps.clear()
    kernel.ensure_many(works)
    kernel.ensure(whole(*members), ALIAS)
    kernel.diff(whole(*members), None, ALIAS)
    assert len(dumps) < 40


def test_a_member_that_fails_leaves_the_others_fine(kernel: Kernel, two: Plan, host: Netns) -> None:
    host.run("ip", "route", "add", "10.128.4.0/24", "dev", "lo")
    errors = kernel.ensure_many([Work(member(number)) for number in (1, 3, 4, 5)])
    assert [str(error) for error in errors if error] == [
        "could not add route to 10.128.4.0/24 on vx7: File exists (there is a route to it that is not conetd's)"
    ]
    assert errors[2] is not None
    assert kernel.diff(whole(*(member(number) for number in (1, 2, 3, 5)), replace(member(4), routes=()))) != []
    assert kernel.diff(member(3) + member(5)) == []


def test_a_member_that_moves_is_found_at_its_new_address(kernel: Kernel, two: Plan, host: Netns) -> None:
    kernel.ensure(member(1, "198.51.100.9"))
    assert [one["dst"] for one in host.json("bridge", "-j", "fdb") if one["mac"] == mac(1)] == ["198.51.100.9"]
    assert kernel.diff(whole(member(1, "198.51.100.9"), member(2)), None, ALIAS) == []


def test_a_route_of_ours_that_goes_another_way_on_the_vtep_is_replaced(kernel: Kernel, two: Plan, host: Netns) -> None:
    detour = Route(ip_network("10.128.1.0/24"), "vx7", ip_address("10.128.2.0"), ip_address("10.128.0.0"), onlink=True)
    kernel.ensure(replace(member(1), routes=(detour,)))
    [route] = host.json("ip", "-j", "route", "show", "10.128.1.0/24")
    assert route["gateway"] == "10.128.2.0"


def test_neighbours_and_routes_carry_our_number(kernel: Kernel, two: Plan, host: Netns) -> None:
    neighbours = host.json("ip", "-j", "-d", "neigh", "show", "dev", "vx7", "nud", "permanent")
    routes = [
        one
        for family in ("-4", "-6")
        for one in host.json("ip", "-j", "-d", family, "route", "show", "dev", "vx7")
        if "gateway" in one
    ]
    assert [one["protocol"] for one in neighbours + routes] == ["157"] * 8


SURPLUS = [
    ("ip neigh add 10.9.9.9 lladdr ee:ee:00:00:00:01 dev vx7", "neighbour 10.9.9.9 on vx7 is not wanted"),
    ("ip neigh add fd99::9 lladdr ee:ee:00:00:00:01 dev vx7", "neighbour fd99::9 on vx7 is not wanted"),
    (
        "bridge fdb add ee:ee:00:00:00:01 dev vx7 dst 192.0.2.8",
        "forwarding entry ee:ee:00:00:00:01 on vx7 is not wanted",
    ),
    (
        "bridge fdb add ee:ee:00:00:00:01 dev vx7 dst 192.0.2.8 port 4999",
        "forwarding entry ee:ee:00:00:00:01 on vx7 is not wanted",
    ),
    (
        "bridge fdb append 00:00:00:00:00:00 dev vx7 dst 192.0.2.8",
        "forwarding entry 00:00:00:00:00:00 on vx7 is not wanted",
    ),
    (
        f"bridge fdb replace {mac(1)} dev vx7 dst 192.0.2.1 port 4999",
        f"forwarding entry {mac(1)} on vx7 is missing",
    ),
    (f"bridge fdb replace {mac(1)} dev vx7 dst 192.0.2.1 vni 9", f"forwarding entry {mac(1)} on vx7 is missing"),
    (f"bridge fdb replace {mac(1)} dev vx7 dst 192.0.2.1 dynamic", f"forwarding entry {mac(1)} on vx7 is missing"),
    ("ip -6 route add fd77::/64 dev vx7 proto 157", "route to fd77::/64 on vx7 is not wanted"),
    (
        "ip link set vx7 type vxlan remote 192.0.2.77",
        "link vx7 sends to 192.0.2.77 what it has no forwarding entry for",
    ),
]


@pytest.mark.parametrize(("damage", "drift"), SURPLUS, ids=[damage for damage, _ in SURPLUS])
def test_what_was_put_onto_a_vtep_is_told_and_goes(
    kernel: Kernel, two: Plan, host: Netns, damage: str, drift: str
) -> None:
    host.run(*damage.split())
    assert drift in told(kernel, two)
    kernel.ensure(two, ALIAS)
    assert told(kernel, two) == []


def test_two_ways_for_what_has_no_entry_are_both_told_and_go(kernel: Kernel, two: Plan, host: Netns) -> None:
    for to in ("192.0.2.8", "192.0.2.9"):
        host.run("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vx7", "dst", to)
    assert told(kernel, two) == ["forwarding entry 00:00:00:00:00:00 on vx7 is not wanted"] * 2
    kernel.ensure(two, ALIAS)
    assert told(kernel, two) == []


def test_what_a_departed_host_left_is_told_and_goes(kernel: Kernel, two: Plan) -> None:
    assert sorted(told(kernel, whole(member(2)))) == [
        f"forwarding entry {mac(1)} on vx7 is not wanted",
        "neighbour 10.128.1.0 on vx7 is not wanted",
        "neighbour fd00::100 on vx7 is not wanted",
        "route to 10.128.1.0/24 on vx7 is not wanted",
        "route to fd00::100/120 on vx7 is not wanted",
    ]
    kernel.ensure(whole(member(2)), ALIAS)
    assert told(kernel, whole(member(2))) == []


def test_what_the_kernel_keeps_by_itself_on_a_vtep_is_not_told(kernel: Kernel, two: Plan, host: Netns) -> None:
    host.run("ip", "neigh", "add", "ff02::77", "lladdr", "33:33:00:00:00:77", "dev", "vx7", "nud", "noarp")
    assert told(kernel, two) == []


def test_a_neighbour_of_a_strangers_on_a_bridge_stays(kernel: Kernel, network: Plan, host: Netns) -> None:
    host.run("ip", "neigh", "add", "10.0.0.99", "lladdr", "0a:00:00:00:00:99", "dev", "blue0")
    kernel.ensure(network, "conetd:blue")
    assert [one["dst"] for one in host.json("ip", "-j", "neigh", "show", "dev", "blue0")] == ["10.0.0.99"]


def test_a_member_is_removed_alone(kernel: Kernel, two: Plan) -> None:
    kernel.remove(member(1))
    assert kernel.diff(whole(member(2)), None, ALIAS) == []


def test_many_members_are_removed_at_once(kernel: Kernel, vtep: Plan) -> None:
    members = [member(number) for number in range(1, MANY + 1)]
    kernel.ensure(Plan.of(members))
    kernel.remove(Plan.of(members))
    assert kernel.diff(NETWORK, None, ALIAS) == []


def test_removing_a_member_twice_is_success(kernel: Kernel, two: Plan, host: Netns) -> None:
    host.run("bridge", "fdb", "del", mac(1), "dev", "vx7")
    for _ in range(2):
        kernel.remove(member(1))
    assert kernel.diff(whole(member(2)), None, ALIAS) == []


def test_removing_a_member_after_its_vtep_is_success(kernel: Kernel, two: Plan) -> None:
    kernel.remove(two)
    kernel.remove(member(1))
    assert kernel.links() == {"lo"}


def test_a_member_without_its_vtep_is_an_error_that_names_it(kernel: Kernel) -> None:
    with pytest.raises(KernelError, match="could not find link vx7: No such device"):
        kernel.ensure(member(1))


@pytest.mark.parametrize("mtu", [1450, 1430, 8950])
def test_a_vtep_is_born_with_its_mtu(kernel: Kernel, host: Netns, mtu: int) -> None:
    kernel.ensure(Plan(links=(replace(VTEP, mtu=mtu),)), ALIAS)
    assert link(host, "vx7")["mtu"] == mtu


def test_a_vtep_whose_host_has_another_address_is_rebuilt_with_everything_on_it(
    kernel: Kernel, two: Plan, host: Netns
) -> None:
    moved = replace(two, links=(replace(VTEP, local=ip_address("192.0.2.100")),))
    assert told(kernel, moved) == ["link vx7 has the local address 192.0.2.1, not 192.0.2.100"]
    kernel.ensure(moved, ALIAS)
    assert told(kernel, moved) == []
    assert link(host, "vx7")["linkinfo"]["info_data"]["local"] == "192.0.2.100"
