"""An attachment gets the lowest free addresses of its network, or those it asked for."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import pytest
from conetd_bridge import BridgeDriver
from conetd_bridge.addresses import PORTS_MAX
from conetd_bridge.config import BridgeConfig, ConfigSchema

from conetd.driver import Attachment, Conflict, Exhausted, Invalid, Lease, Network, Requested


def network(**config: str) -> Network[BridgeConfig]:
    return Network("blue", "bridge", ConfigSchema().load({"subnet": "10.1.0.0/24"} | config))


def allocate(on: Network[BridgeConfig], held: Iterable[str] = (), **requested: str) -> Lease:
    mac = requested.pop("mac", None)
    wanted = Requested(mac=mac, **{name: ip_address(value) for name, value in requested.items()})
    return BridgeDriver().allocate(on, Attachment("blue", "web", "key", "eth0", wanted), frozenset(held))


def fill(on: Network[BridgeConfig], count: int) -> tuple[set[str], list[Lease]]:
    held: set[str] = set()
    leases: list[Lease] = []
    for _ in range(count):
        leases.append(allocate(on, held))
        held |= leases[-1].claims
    return held, leases


def test_a_lease_holds_address_and_mac_and_offers_the_default_route() -> None:
    assert allocate(network()) == Lease(
        {"ip": "10.1.0.2", "mac": "0a:c0:0a:01:00:02"},
        frozenset({"ip:10.1.0.2", "mac:0a:c0:0a:01:00:02"}),
        frozenset({4}),
    )


def test_the_ipv6_address_has_the_same_place_in_its_subnet() -> None:
    lease = allocate(network(subnet6="fd00::/64"), {"ip:10.1.0.2"})

    assert (lease.data["ip"], lease.data["ip6"]) == ("10.1.0.3", "fd00::3")
    assert lease.claims == {"ip:10.1.0.3", "ip:fd00::3", "mac:0a:c0:0a:01:00:03"}
    assert lease.gateways == {4, 6}


def test_the_lowest_ipv6_address_is_taken_where_the_matching_one_is_held() -> None:
    assert allocate(network(subnet6="fd00::/64"), {"ip:10.1.0.2", "ip:fd00::3"}).data["ip6"] == "fd00::2"


def test_the_lowest_ipv6_address_is_taken_where_the_subnet_has_no_matching_one() -> None:
    on = network(subnet6="fd00::/125", range="10.1.0.100/31")

    assert allocate(on).data["ip6"] == "fd00::2"


def test_a_released_address_is_the_next_to_be_given() -> None:
    held, leases = fill(network(), 5)

    assert allocate(network(), held - leases[1].claims).data["ip"] == leases[1].data["ip"]


def test_only_the_range_is_given_out_and_neither_gateway_nor_broadcast() -> None:
    _, leases = fill(network(range="10.1.0.252-10.1.0.255", gateway="10.1.0.253"), 2)

    assert [lease.data["ip"] for lease in leases] == ["10.1.0.252", "10.1.0.254"]


def test_a_full_range_is_exhausted() -> None:
    on = network(range="10.1.0.252-10.1.0.255", gateway="10.1.0.253")
    held, _ = fill(on, 2)

    with pytest.raises(Exhausted, match=r'network "blue" is full: every address from 10.1.0.252 to 10.1.0.255'):
        allocate(on, held)


@pytest.mark.parametrize("config", [{}, {"subnet6": "fd00::/64"}])
def test_a_bridge_takes_1023_containers_and_not_one_more(config: dict[str, str]) -> None:
    on = network(subnet="10.0.0.0/16", **config)
    held, leases = fill(on, PORTS_MAX)

    assert len({lease.data["ip"] for lease in leases}) == PORTS_MAX == 1023
    with pytest.raises(Exhausted, match="the kernel gives a bridge 1023 ports"):
        allocate(on, held)


def test_no_ipv6_address_left_is_exhausted() -> None:
    on = network(subnet6="fd00::/126")
    held, _ = fill(on, 2)

    with pytest.raises(Exhausted, match="no address of fd00::/126 is free"):
        allocate(on, held)


def test_requested_addresses_are_given() -> None:
    lease = allocate(
        network(subnet6="fd00::/64", range="10.1.0.128/25"), ip="10.1.0.7", ip6="fd00::77", mac="02:00:00:00:00:01"
    )

    assert lease.data == {"ip": "10.1.0.7", "ip6": "fd00::77", "mac": "02:00:00:00:00:01"}


@pytest.mark.parametrize(
    ("requested", "complaint"),
    [
        ({"ip": "10.2.0.7"}, "is not an address for a host in 10.1.0.0/24"),
        ({"ip": "10.1.0.0"}, "is not an address for a host"),
        ({"ip": "10.1.0.255"}, "is not an address for a host"),
        ({"ip": "fd00::7"}, "is not an address for a host"),
        ({"ip": "10.1.0.1"}, "is the network's gateway"),
        ({"ip6": "fd01::7"}, "is not an address for a host in fd00::/64"),
        ({"ip6": "fd00::"}, "is not an address for a host"),
        ({"ip6": "10.1.0.7"}, "is not an address for a host"),
        ({"ip6": "fd00::1"}, "is the network's gateway"),
        ({"mac": "01:00:5e:00:00:01"}, "is not the address of a single interface"),
        ({"mac": "00:00:00:00:00:00"}, "is not the address of a single interface"),
        ({"mac": "0a:c0:0a:01:00:01"}, "is the bridge's own"),
    ],
)
def test_a_request_outside_the_network_is_invalid_at_its_field(requested: dict[str, str], complaint: str) -> None:
    with pytest.raises(Invalid, match=complaint) as refused:
        allocate(network(subnet6="fd00::/64"), **requested)

    assert list(refused.value.fields) == list(requested)


def test_an_ipv6_address_is_not_to_be_had_without_subnet6() -> None:
    with pytest.raises(Invalid, match="the network has no subnet6"):
        allocate(network(), ip6="fd00::7")


@pytest.mark.parametrize(
    "requested", [{"ip": "10.1.0.7"}, {"ip6": "fd00::7"}, {"mac": "02:00:00:00:00:01"}], ids=lambda one: next(iter(one))
)
def test_a_request_for_what_is_held_is_a_conflict_at_its_field(requested: dict[str, str]) -> None:
    held = {"ip:10.1.0.7", "ip:fd00::7", "mac:02:00:00:00:00:01"}

    with pytest.raises(Conflict, match="is already taken") as refused:
        allocate(network(subnet6="fd00::/64"), held, **requested)

    assert list(refused.value.fields) == list(requested)


def test_a_derived_mac_that_somebody_asked_for_is_not_given_twice() -> None:
    assert allocate(network(), {"mac:0a:c0:0a:01:00:02"}).data["mac"] == "0a:c1:0a:01:00:02"


def test_claims_may_come_as_a_list() -> None:
    wanted = Attachment("blue", "web", "key", "eth0")

    assert BridgeDriver().allocate(network(), wanted, ["ip:10.1.0.2"]).data["ip"] == "10.1.0.3"
