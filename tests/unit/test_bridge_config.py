"""A bridge network's config is complete once loaded, and refused where it contradicts itself."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

import pytest
from conetd_bridge.config import BridgeConfig, ConfigSchema

from conetd import documents
from conetd.errors import Invalid
from conetd.plan import AddressRange

SUBNET = {"subnet": "10.1.0.0/24"}
BOTH = SUBNET | {"subnet6": "fd00:1::/64"}


def load(**document: Any) -> BridgeConfig:
    loaded: BridgeConfig = documents.load(ConfigSchema(), document, "config")
    return loaded


def test_a_subnet_is_all_a_network_needs() -> None:
    assert load(**SUBNET) == BridgeConfig(
        subnet=IPv4Network("10.1.0.0/24"),
        gateway=IPv4Address("10.1.0.1"),
        range=AddressRange(IPv4Address("10.1.0.1"), IPv4Address("10.1.0.254")),
    )


def test_the_ipv6_gateway_is_the_first_address() -> None:
    assert load(**BOTH).gateway6 == IPv6Address("fd00:1::1")


@pytest.mark.parametrize("text", ["10.1.0.128/25", "10.1.0.128-10.1.0.255", "10.1.0.128 - 10.1.0.255"])
def test_a_range_is_a_network_or_first_to_last(text: str) -> None:
    assert load(**SUBNET, range=text).range == AddressRange(IPv4Address("10.1.0.128"), IPv4Address("10.1.0.255"))


@pytest.mark.parametrize(
    "document",
    [
        SUBNET,
        BOTH,
        BOTH
        | {
            "gateway": "10.1.0.254",
            "gateway6": "fd00:1::fe",
            "range": "10.1.0.16/28",
            "bridge": "br-blue.1",
            "mtu": 9000,
            "masquerade": False,
            "masquerade6": True,
            "deny_networks": ["10.0.0.0/8", "fd00::/8"],
            "allow_host_access": True,
            "isolated": True,
            "dns_servers": ["10.1.0.1", "fd00:1::1"],
            "search_domains": ["example.org", "a-b.example."],
        },
    ],
)
def test_what_is_loaded_and_dumped_loads_to_the_same_again(document: dict[str, Any]) -> None:
    loaded = load(**document)

    dumped = ConfigSchema().dump(loaded)

    assert load(**dumped) == loaded
    assert dumped.items() >= {name: value for name, value in document.items() if name != "range"}.items()


@pytest.mark.parametrize(
    ("document", "path", "complaint"),
    [
        ({}, "subnet", "Missing data"),
        ({"subnet": "10.1.0.5/24"}, "subnet", "the network is 10.1.0.0/24"),
        ({"subnet": "fd00::/64"}, "subnet", "must be an IPv4 network"),
        ({"subnet": "10.1.0.0/31"}, "subnet", "is too small"),
        ({"subnet": "10.0.0.0/7"}, "subnet", "not a range that hosts can have"),
        ({"subnet": "127.0.0.0/24"}, "subnet", "not a range that hosts can have"),
        ({"subnet": "224.0.0.0/24"}, "subnet", "not a range that hosts can have"),
        (SUBNET | {"subnet6": "10.2.0.0/24"}, "subnet6", "must be an IPv6 network"),
        (SUBNET | {"subnet6": "fd00::/127"}, "subnet6", "is too small"),
        (SUBNET | {"subnet6": "fe80::/64"}, "subnet6", "link-local"),
        (SUBNET | {"gateway": "10.2.0.1"}, "gateway", "is not an address for a host in 10.1.0.0/24"),
        (SUBNET | {"gateway": "10.1.0.0"}, "gateway", "is not an address for a host"),
        (SUBNET | {"gateway": "10.1.0.255"}, "gateway", "is not an address for a host"),
        (SUBNET | {"gateway6": "fd00::1"}, "gateway6", "needs a subnet6"),
        (SUBNET | {"masquerade6": True}, "masquerade6", "needs a subnet6"),
        (BOTH | {"gateway6": "fd00:2::1"}, "gateway6", "is not an address for a host in fd00:1::/64"),
        (BOTH | {"gateway6": "fd00:1::"}, "gateway6", "is not an address for a host"),
        (SUBNET | {"range": "10.1.1.0/25"}, "range", "does not lie within 10.1.0.0/24"),
        (SUBNET | {"range": "10.1.0.250-10.1.1.5"}, "range", "does not lie within"),
        (SUBNET | {"range": "10.1.0.9-10.1.0.2"}, "range", "runs backwards"),
        (SUBNET | {"range": "10.1.0.0/31"}, "range", "holds no address"),
        (SUBNET | {"range": "10.1.0.9"}, "range", "10.0.0.10-10.0.0.99"),
        (SUBNET | {"range": 9}, "range", "10.0.0.10-10.0.0.99"),
        (SUBNET | {"bridge": "a-name-too-long-"}, "bridge", "is no interface name"),
        (SUBNET | {"bridge": "br/0"}, "bridge", "is no interface name"),
        (SUBNET | {"bridge": "lo"}, "bridge", "is no interface name"),
        (SUBNET | {"mtu": 575}, "mtu", "must be from 576 to 65535. (got 575)"),
        (SUBNET | {"mtu": 65536}, "mtu", "must be from 576 to 65535"),
        (SUBNET | {"mtu": "1500"}, "mtu", "Not a valid integer"),
        (BOTH | {"mtu": 1279}, "mtu", "must be from 1280 to 65535, for IPv6"),
        (SUBNET | {"masquerade": "no"}, "masquerade", "must be true or false"),
        (SUBNET | {"deny_networks": ["10.0.0.1/8"]}, "deny_networks[0]", "host bits"),
        (SUBNET | {"dns_servers": ["ns1"]}, "dns_servers[0]", "is not an IP address"),
        (SUBNET | {"search_domains": ["a..b"]}, "search_domains[0]", "is no domain name"),
        (SUBNET | {"search_domains": ["a\n"]}, "search_domains[0]", "is no domain name"),
        (SUBNET | {"subnets": []}, "subnets", "Unknown field"),
    ],
)
def test_a_config_is_refused_at_the_field_that_is_wrong(document: dict[str, Any], path: str, complaint: str) -> None:
    with pytest.raises(Invalid) as refused:
        load(**document)

    assert list(refused.value.fields) == [f"config.{path}"]
    assert complaint in refused.value.fields[f"config.{path}"]


@pytest.mark.parametrize(
    ("document", "masqueraded"),
    [
        (SUBNET, ["10.1.0.0/24"]),
        (SUBNET | {"masquerade": False}, []),
        (BOTH, ["10.1.0.0/24", "fd00:1::/64"]),
        (BOTH | {"masquerade": False}, []),
        (SUBNET | {"subnet6": "2001:db8::/64"}, ["10.1.0.0/24"]),
        (SUBNET | {"subnet6": "2001:db8::/64", "masquerade6": True}, ["10.1.0.0/24", "2001:db8::/64"]),
    ],
)
def test_ipv6_is_masqueraded_when_unique_local_or_asked_for(document: dict[str, Any], masqueraded: list[str]) -> None:
    assert [str(subnet) for subnet in load(**document).masqueraded] == masqueraded
