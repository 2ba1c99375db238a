"""How listings become events, how many events become one, and what is left of a plan beside another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, ip_address

import pytest

from conetd.cluster.errors import EtcdDown
from conetd.cluster.messages import Event, KeyValue
from conetd.cluster.watch import gathered
from conetd.plan import FdbEntry, Neighbour, NetworkFilter, Plan, Route, Side, TunnelPeer
from conetd.reconcile.etcd.copies import _events

# Listings


def test_what_a_listing_has_is_put_and_what_it_has_not_is_deleted() -> None:
    found = [KeyValue("/a", "1", 7), KeyValue("/b", "2", 8)]
    assert _events(found, {"/b", "/d", "/c"}) == [
        Event("/a", "1", 7),
        Event("/b", "2", 8),
        Event("/c", None, 0),
        Event("/d", None, 0),
    ]


def test_an_empty_listing_deletes_what_is_known() -> None:
    assert _events([], {"/a"}) == [Event("/a", None, 0)]
    assert _events([], set()) == []


# Watches


class Source:
    """A watch that tells what it is given, and then ends, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go_on = threading.Event()
        self.first_taken = threading.Event()
        self.all_told = threading.Event()
        self._error = error

    def __iter__(self) -> Iterator[tuple[int, list[Event]]]:
        yield 1, [Event("/a", "1", 1)]
        self.go_on.wait(10)
        yield 2, [Event("/a", "2", 2), Event("/b", "2", 2)]
        yield 3, [Event("/a", None, 3)]
        self.all_told.set()
        if self._error is not None:
            raise self._error


def told(source: Source) -> list[tuple[int, list[Event]]]:
    found = []
    for one in gathered(source):
        found.append(one)
        source.go_on.set()
        assert source.all_told.wait(10)  # the rest comes while the first is applied
    return found


def test_what_comes_while_events_are_applied_is_told_in_one_and_in_order() -> None:
    assert told(Source()) == [
        (1, [Event("/a", "1", 1)]),
        (3, [Event("/a", "2", 2), Event("/b", "2", 2), Event("/a", None, 3)]),
    ]


def test_what_was_told_before_a_watch_failed_is_told_before_the_error() -> None:
    source = Source(EtcdDown("gone"))
    watch = gathered(source)
    assert next(watch)[0] == 1
    source.go_on.set()
    assert source.all_told.wait(10)
    assert next(watch)[0] == 3
    with pytest.raises(EtcdDown, match="gone"):
        next(watch)


# What is left of a host beside those that stay

PART = ip_address("10.1.3.0")
MAC = "ee:ee:0a:01:03:00"


def member(underlay: str, part: str = "10.1.3.0") -> Plan:
    """What a host with this part and address has in the others' tables."""
    base = ip_address(part)
    mac = "ee:ee:" + ":".join(f"{one:02x}" for one in base.packed)
    network = IPv4Network(f"{part}/24")
    return Plan(
        routes=(Route(network, "cx0", via=base, source=ip_address("10.1.0.0"), onlink=True),),
        neighbours=(Neighbour("cx0", base, mac),),
        fdb=(FdbEntry("cx0", mac, ip_address(underlay)),),
        filter=(TunnelPeer(f"n-{underlay}", "cx0", 4789, 7, ip_address(underlay), mac, (network,)),),
    )


def test_nothing_of_a_plan_is_left_beside_the_same_plan() -> None:
    assert member("192.0.2.3").without(member("192.0.2.3")) == Plan()


def test_all_of_a_plan_is_left_beside_that_of_another_place() -> None:
    assert member("192.0.2.3").without(member("192.0.2.4", "10.1.4.0")) == member("192.0.2.3")


def test_of_a_host_whose_part_another_has_nothing_is_taken_away_that_is_the_others() -> None:
    left = member("192.0.2.3").without(member("192.0.2.4"))
    assert (left.routes, left.neighbours, left.fdb) == ((), (), ())
    assert left.filter == member("192.0.2.3").filter


def test_a_place_in_the_container_is_not_one_on_the_host() -> None:
    host = Route(IPv4Network("10.1.3.0/24"), "eth0")
    plan = Plan(routes=(host,), neighbours=(Neighbour("eth0", PART, MAC),), filter=(NetworkFilter("n", ()),))
    inside = Plan(
        routes=(replace(host, side=Side.CONTAINER),),
        neighbours=(Neighbour("eth0", PART, MAC, side=Side.CONTAINER),),
    )
    assert plan.without(inside) == plan


def test_links_and_addresses_are_never_left() -> None:
    plan = Plan(unreachable=(IPv4Network("10.1.0.0/16"),), forward=frozenset({4}))
    assert plan.without(Plan()) == Plan()


def test_plans_in_one_have_everything_of_each() -> None:
    one, other = member("192.0.2.3"), member("192.0.2.4", "10.1.4.0")
    both = Plan.of([one, other, Plan(forward=frozenset({6})), Plan(forward=frozenset({4}))])
    assert both.routes == one.routes + other.routes
    assert both.filter == one.filter + other.filter
    assert both.fdb == one.fdb + other.fdb
    assert both.neighbours == one.neighbours + other.neighbours
    assert both.forward == {4, 6}
    assert Plan.of([]) == Plan()
    assert one + other == Plan.of([one, other])
