"""A host gets a part of the network, and an attachment an address of its host's part."""

from __future__ import annotations

import time
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import pytest
from conetd_vxlan import VxlanConfig, VxlanDriver
from conetd_vxlan.config import ConfigSchema

from conetd.driver import Attachment, Conflict, Exhausted, Host, Interface, Invalid, Lease, Network, Requested

DRIVER = VxlanDriver()
PEERS = [
    {"host": "h1", "underlay": "198.51.100.1", "subnet": "10.1.7.0/24"},
    {"host": "h2", "underlay": "198.51.100.2", "subnet": "10.1.9.0/24"},
]


def host(name: str = "h1", **interfaces: list[str]) -> Host:
    """A host that speaks to the world from the addresses of its first interface; the second has jumbo frames."""
    found = [
        Interface(one, mtu, tuple(map(ip_address, texts)))
        for (one, texts), mtu in zip(interfaces.items(), (1500, 9000), strict=False)
    ]
    return Host(name, tuple(found), found[0].addresses if found else ())


H1 = host(eth0=["192.0.2.1", "2001:db8::1"], eth1=["2001:db8:1::1", "198.51.100.1"])


def network(part: str | None = "10.1.3.0/24", **config: Any) -> Network[VxlanConfig]:
    loaded: VxlanConfig = ConfigSchema().load({"vni": 42, "subnet": "10.1.0.0/16"} | config)
    if part is None:
        return Network("blue", "vxlan", loaded)
    lease = Lease({"subnet": part, "underlay": "192.0.2.1", "mtu": 1500}, frozenset({f"subnet:{part}"}))
    if loaded.subnet6 is not None:
        lease.data["subnet6"] = "fd00::300/120"
    return Network("blue", "vxlan", loaded, lease=lease)


def of_host(on: Network[VxlanConfig], who: Host = H1, current: Lease | None = None, held: Iterable[str] = ()) -> Lease:
    return DRIVER.allocate_host(on, who, current, frozenset(held))


def allocate(on: Network[VxlanConfig], held: Iterable[str] = (), **requested: str) -> Lease:
    mac = requested.pop("mac", None)
    wanted = Requested(mac=mac, **{name: ip_address(value) for name, value in requested.items()})
    return DRIVER.allocate(on, Attachment("blue", "web", "key", "eth0", wanted), frozenset(held))


def test_a_host_gets_the_lowest_part_and_is_reached_where_it_speaks_to_the_world() -> None:
    assert of_host(network(None)) == Lease(
        {"subnet": "10.1.0.0/24", "underlay": "192.0.2.1", "mtu": 1500}, frozenset({"subnet:10.1.0.0/24"})
    )


def test_a_host_gets_the_lowest_part_that_no_other_has() -> None:
    held = {"subnet:10.1.0.0/24", "subnet:10.1.1.0/24", "subnet:10.1.3.0/24"}
    assert of_host(network(None), held=held).data["subnet"] == "10.1.2.0/24"


def test_the_part_of_subnet6_goes_with_it() -> None:
    lease = of_host(network(None, subnet6="fd00::/64"), held={"subnet:10.1.0.0/24"})

    assert lease.data["subnet6"] == "fd00::100/120"
    assert lease.claims == {"subnet:10.1.1.0/24"}


def test_a_host_keeps_its_part_when_its_address_changes() -> None:
    current = Lease({"subnet": "10.1.5.0/24", "underlay": "192.0.2.77", "mtu": 1400}, frozenset({"subnet:10.1.5.0/24"}))

    assert of_host(network(None), current=current) == Lease(
        {"subnet": "10.1.5.0/24", "underlay": "192.0.2.1", "mtu": 1500}, current.claims
    )


def test_when_every_part_is_taken_no_further_host_fits() -> None:
    held = [f"subnet:10.1.{number}.0/24" for number in range(256)]

    assert of_host(network(None), held=held[:-1]).data["subnet"] == "10.1.255.0/24"
    with pytest.raises(Exhausted, match=r'"blue" has no part left for another host: all 256 of 10.1.0.0/16'):
        of_host(network(None), held=held)


def test_the_next_part_is_found_at_once_among_thousands() -> None:
    on = network(None, subnet="10.0.0.0/8")
    held = frozenset(f"subnet:10.{number >> 8}.{number & 255}.0/24" for number in range(10_000))
    DRIVER.allocate_host(on, H1, None, held)

    began = time.perf_counter()
    lease = DRIVER.allocate_host(on, H1, None, held)

    assert time.perf_counter() - began < 0.05
    assert lease.data["subnet"] == "10.39.16.0/24"


@pytest.mark.parametrize(
    ("underlay", "address", "mtu"),
    [
        ("eth0", "192.0.2.1", 1500),
        ("eth1", "198.51.100.1", 9000),  # IPv4 first
        ("2001:db8:1::1", "2001:db8:1::1", 9000),
    ],
)
def test_the_underlay_is_what_the_config_names(underlay: str, address: str, mtu: int) -> None:
    data = of_host(network(None, underlay=underlay)).data

    assert (data["underlay"], data["mtu"]) == (address, mtu)


@pytest.mark.parametrize("who", [H1, host(eth0=["192.0.2.1"], eth1=["198.51.100.1"], name="other")])
def test_a_static_peer_has_the_part_and_underlay_of_its_entry(who: Host) -> None:
    data = of_host(network(None, peers=PEERS), who).data

    assert (data["subnet"], data["underlay"], data["mtu"]) == ("10.1.7.0/24", "198.51.100.1", 9000)


HAS = "which has 192.0.2.1 on eth0, 2001:db8::1 on eth0, 2001:db8:1::1 on eth1, 198.51.100.1 on eth1"


@pytest.mark.parametrize(
    ("config", "who", "field", "complaint"),
    [
        ({"underlay": "eth7"}, H1, "config.underlay", f"eth7 is no interface of this host, {HAS}"),
        ({"underlay": "eth0"}, host(eth0=[]), "config.underlay", "eth0 has no address that other hosts can send to"),
        ({"underlay": "192.0.2.9"}, H1, "config.underlay", f"192.0.2.9 is no address of this host, {HAS}"),
        ({"underlay": "eth0", "subnet": "192.0.0.0/16"}, H1, "config.underlay", "lies within the network's own subnet"),
        ({}, host(), "config.underlay", "must be given: without a default route"),
        (
            {"peers": PEERS},
            host("h3", eth0=["192.0.2.3"]),
            "config.peers",
            'no entry is of this host, "h3", which has 192',
        ),
        (
            {"peers": PEERS},
            host("h2", eth0=["192.0.2.2"]),
            "config.peers[1].underlay",
            "198.51.100.2 is no address of this host",
        ),
        ({"peers": PEERS, "underlay": "eth0"}, H1, "config.underlay", "eth0 is neither 198.51.100.1"),
    ],
)
def test_a_host_that_cannot_take_part_is_told_why(
    config: dict[str, Any], who: Host, field: str, complaint: str
) -> None:
    with pytest.raises(Invalid) as refused:
        of_host(network(None, **config), who)

    assert list(refused.value.fields) == [field]
    assert complaint in refused.value.fields[field]
    assert 'network "blue"' in str(refused.value)


def test_a_lease_holds_an_address_of_the_hosts_part_and_a_mac() -> None:
    assert allocate(network()) == Lease(
        {"ip": "10.1.3.1", "mac": "0a:c0:0a:01:03:01"},
        frozenset({"ip:10.1.3.1", "mac:0a:c0:0a:01:03:01"}),
        frozenset({4}),
    )


def test_the_ipv6_address_has_the_same_place_in_its_part() -> None:
    lease = allocate(network(subnet6="fd00::/64"), {"ip:10.1.3.1"})

    assert (lease.data["ip"], lease.data["ip6"]) == ("10.1.3.2", "fd00::302")
    assert lease.claims == {"ip:10.1.3.2", "ip:fd00::302", "mac:0a:c0:0a:01:03:02"}
    assert lease.gateways == {4, 6}


def test_all_of_the_part_but_its_first_address_is_given_out_and_then_it_is_full() -> None:
    on, held, given = network("10.1.3.4/30"), set[str](), []
    for _ in range(3):
        lease = allocate(on, held)
        given.append(lease.data["ip"])
        held |= lease.claims

    assert given == ["10.1.3.5", "10.1.3.6", "10.1.3.7"]
    with pytest.raises(Exhausted, match=r'"blue" is full on this host: every address of its part, 10.1.3.4/30'):
        allocate(on, held)


def test_what_was_asked_for_is_what_is_leased() -> None:
    lease = allocate(network(subnet6="fd00::/64"), ip="10.1.3.9", mac="02:00:00:00:00:09")

    assert lease.data == {"ip": "10.1.3.9", "ip6": "fd00::309", "mac": "02:00:00:00:00:09"}


def test_an_ipv6_address_alone_decides_for_the_ipv4_address() -> None:
    assert allocate(network(subnet6="fd00::/64"), ip6="fd00::320").data["ip"] == "10.1.3.32"


@pytest.mark.parametrize(
    ("requested", "field", "complaint"),
    [
        ({"ip": "10.1.4.9"}, "ip", "10.1.4.9 does not lie in 10.1.3.0/24, this host's part: addresses are routed"),
        ({"ip": "fd00::301"}, "ip", "does not lie in 10.1.3.0/24"),
        ({"ip": "10.1.3.0"}, "ip", "is the host's own"),
        ({"ip6": "fd00::409"}, "ip6", "does not lie in fd00::300/120"),
        ({"ip6": "10.1.3.9"}, "ip6", "does not lie in fd00::300/120"),
        ({"ip6": "fd00::300"}, "ip6", "is the host's own"),
        ({"ip": "10.1.3.9", "ip6": "fd00::308"}, "ip6", "has not the place of 10.1.3.9: it goes with 10.1.3.8"),
        ({"mac": "01:00:00:00:00:09"}, "mac", "not the address of a single interface"),
        ({"mac": "0a:fe:00:00:00:01"}, "mac", "is that of the host's end"),
    ],
)
def test_a_request_that_cannot_be_granted_is_refused(requested: dict[str, str], field: str, complaint: str) -> None:
    with pytest.raises(Invalid) as refused:
        allocate(network(subnet6="fd00::/64"), **requested)

    assert list(refused.value.fields) == [field]
    assert complaint in refused.value.fields[field]


def test_an_ipv6_address_cannot_be_had_without_subnet6() -> None:
    with pytest.raises(Invalid, match="the network has no subnet6"):
        allocate(network(), ip6="fd00::309")


@pytest.mark.parametrize(
    ("requested", "held", "field"),
    [
        ({"ip": "10.1.3.9"}, "ip:10.1.3.9", "ip"),
        ({"ip6": "fd00::309"}, "ip:fd00::309", "ip6"),
        ({"mac": "02:00:00:00:00:09"}, "mac:02:00:00:00:00:09", "mac"),
    ],
)
def test_what_another_has_is_a_conflict(requested: dict[str, str], held: str, field: str) -> None:
    with pytest.raises(Conflict, match="is already taken") as refused:
        allocate(network(subnet6="fd00::/64"), {held}, **requested)

    assert list(refused.value.fields) == [field]


def test_a_derived_mac_that_somebody_asked_for_gives_way_to_the_next() -> None:
    assert allocate(network(), {"mac:0a:c0:0a:01:03:01"}).data["mac"] == "0a:c1:0a:01:03:01"
