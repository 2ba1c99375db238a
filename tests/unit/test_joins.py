"""What an up joins, interface names, default routes, and which entry keeps which port."""

from __future__ import annotations

import pytest

from conetd.errors import Conflict, Invalid
from conetd.model import Lease, PortRequest, Requested
from conetd.reconcile.joins import (
    check_unchanged,
    choose_default_routes,
    choose_joins,
    match_ports,
    name_interfaces,
    settle,
)
from conetd.store import AttachmentRecord, ContainerRecord, Join


def record(network: str, *gateways: int, **more: object) -> AttachmentRecord:
    lease = Lease({}, frozenset({"ip:10.0.0.2", "mac:0a:00:00:00:00:02"}), frozenset(gateways))
    return AttachmentRecord(network, "web", 0, "eth0", Requested(), lease, **more)  # type: ignore[arg-type]


def test_a_clients_config_goes_before_the_property_and_the_setting() -> None:
    container = ContainerRecord("web", (Join("own"),))
    assert choose_joins(container, {"network.attach_to": "other"}, ["default"]) == (Join("own"),)


def test_an_empty_config_joins_nothing() -> None:
    assert choose_joins(ContainerRecord("web", ()), {"attach_to": "other"}, ["default"]) == ()


@pytest.mark.parametrize("name", ["network.attach_to", "attach_to"])
def test_the_property_goes_before_the_setting(name: str) -> None:
    assert choose_joins(None, {name: "a, b"}, ["default"]) == (Join("a"), Join("b"))


def test_the_setting_serves_whoever_says_nothing() -> None:
    assert choose_joins(ContainerRecord("web"), {}, ["a", "b"]) == (Join("a"), Join("b"))


def test_nothing_to_join_is_refused_with_all_three_places_named() -> None:
    with pytest.raises(Invalid, match=r"no config was PUT.*network\.attach_to.*default_attach_to"):
        choose_joins(None, {}, [])


def test_a_property_that_names_a_network_twice_is_refused() -> None:
    with pytest.raises(Invalid, match="twice"):
        choose_joins(None, {"attach_to": "a,a"}, [])


def test_interfaces_are_named_in_the_order_of_the_joins() -> None:
    assert name_interfaces([Join("a"), Join("b")], {}) == {"a": "eth0", "b": "eth1"}


def test_a_name_that_was_asked_for_is_not_given_to_another() -> None:
    assert name_interfaces([Join("a"), Join("b", ifname="eth0")], {}) == {"a": "eth1", "b": "eth0"}


def test_a_live_interface_keeps_its_name() -> None:
    assert name_interfaces([Join("new"), Join("old")], {"old": "eth0"}) == {"old": "eth0", "new": "eth1"}


def test_asking_for_a_name_in_use_is_refused() -> None:
    with pytest.raises(Invalid, match="eth0 is wanted twice"):
        name_interfaces([Join("new", ifname="eth0"), Join("old")], {"old": "eth0"})


def test_the_first_network_with_a_gateway_gives_the_default_route_for_each_version_apart() -> None:
    chosen = choose_default_routes([record("none"), record("v4", 4), record("both", 4, 6), record("late", 6)])
    assert [set(one.default_route) for one in chosen] == [set(), {4}, {6}, set()]


def test_an_entry_that_stands_keeps_its_port() -> None:
    entry = PortRequest(6, 0, 8080)
    held = settle(entry, 61005)
    assert match_ports([PortRequest(6, 0, 9090), entry], [held]) == [(PortRequest(6, 0, 9090), None), (entry, held)]


def test_equal_entries_keep_a_port_each() -> None:
    entry = PortRequest(6, 0, 8080)
    held = [settle(entry, 61005), settle(entry, 61006)]
    assert [found for _, found in match_ports([entry, entry, entry], held)] == [*held, None]


def test_container_port_zero_is_the_host_port() -> None:
    assert settle(PortRequest(17, 0, 0), 61005).port.container_port == 61005


@pytest.mark.parametrize(
    "join",
    [
        Join("blue", ip="10.0.0.3"),
        Join("blue", mac="0a:00:00:00:00:03"),
        Join("blue", ifname="net0"),
        Join("blue", ip6="fd00::3"),
    ],
)
def test_a_live_attachment_cannot_become_another(join: Join) -> None:
    with pytest.raises(Conflict, match="only while it is down") as caught:
        check_unchanged(record("blue"), join, "attach_to[0]")
    assert next(iter(caught.value.fields)).startswith("attach_to[0].")


def test_naming_what_a_live_attachment_has_already_is_fine() -> None:
    check_unchanged(record("blue"), Join("blue", ip="10.0.0.2", mac="0a:00:00:00:00:02", ifname="eth0"), "attach_to[0]")
