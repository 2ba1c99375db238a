"""A vxlan network's config is complete once loaded, and refused where it contradicts itself."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import pytest
from conetd_vxlan.config import ConfigSchema, Peer, VxlanConfig

from conetd import documents
from conetd.errors import Invalid

PLAIN = {"vni": 42, "subnet": "10.1.0.0/16"}
BOTH = PLAIN | {"subnet6": "fd00:1::/64"}


def load(**document: Any) -> VxlanConfig:
    loaded: VxlanConfig = documents.load(ConfigSchema(), document, "config")
    return loaded


def peer(number: int, **more: str) -> dict[str, str]:
    return {"host": f"h{number}", "underlay": f"192.0.2.{number}", "subnet": f"10.1.{number}.0/24"} | more


def peers(*changes: dict[str, str]) -> dict[str, Any]:
    """A config with one peer as it should be and others that differ from h2, h3 … by the changes."""
    return PLAIN | {"peers": [peer(1), *(peer(number, **change) for number, change in enumerate(changes, 2))]}


def test_a_vni_and_a_subnet_are_all_a_network_needs() -> None:
    assert load(**PLAIN) == VxlanConfig(vni=42, subnet=IPv4Network("10.1.0.0/16"), host_prefix=24, port=4789)


@pytest.mark.parametrize(
    ("prefix", "host_prefix"), [(8, 24), (16, 24), (22, 24), (23, 25), (24, 26), (27, 29), (28, 30)]
)
def test_a_hosts_part_is_a_24_unless_that_left_fewer_than_four(prefix: int, host_prefix: int) -> None:
    assert load(vni=1, subnet=f"10.0.0.0/{prefix}").host_prefix == host_prefix


@pytest.mark.parametrize(
    "document",
    [
        PLAIN,
        BOTH,
        peers({}),
        BOTH
        | {
            "host_prefix": 20,
            "port": 8472,
            "underlay": "eth1",
            "mtu": 1400,
            "masquerade": False,
            "deny_networks": ["10.0.0.0/8", "fd00::/8"],
            "dns_servers": ["192.0.2.53"],
            "search_domains": ["example.org"],
        },
        PLAIN | {"underlay": "2001:db8::1"},
    ],
)
def test_what_is_loaded_and_dumped_loads_to_the_same_again(document: dict[str, Any]) -> None:
    loaded = load(**document)

    dumped = ConfigSchema().dump(loaded)

    assert load(**dumped) == loaded
    assert dumped.items() >= document.items()


def test_peers_are_hosts_with_their_parts() -> None:
    (first, second) = load(**peers({"underlay": "192.0.2.9"})).peers

    assert first == Peer("h1", ip_address("192.0.2.1"), IPv4Network("10.1.1.0/24"))
    assert second.underlay == ip_address("192.0.2.9")


@pytest.mark.parametrize(("text", "value"), [("eth0", "eth0"), ("192.0.2.1", ip_address("192.0.2.1"))])
def test_the_underlay_is_an_interface_or_an_address(text: str, value: object) -> None:
    assert load(**PLAIN, underlay=text).underlay == value


@pytest.mark.parametrize(
    ("document", "path", "complaint"),
    [
        ({"subnet": "10.1.0.0/16"}, "vni", "Missing data"),
        ({"vni": 1}, "subnet", "Missing data"),
        (PLAIN | {"vni": 0}, "vni", "greater than or equal to 1"),
        (PLAIN | {"vni": 1 << 24}, "vni", "less than or equal to 16777215"),
        (PLAIN | {"vni": "7"}, "vni", "Not a valid integer"),
        (PLAIN | {"port": 0}, "port", "greater than or equal to 1"),
        (PLAIN | {"port": 65536}, "port", "less than or equal to 65535"),
        (PLAIN | {"subnet": "10.1.0.5/16"}, "subnet", "the network is 10.1.0.0/16"),
        (PLAIN | {"subnet": "fd00::/64"}, "subnet", "must be an IPv4 network"),
        (PLAIN | {"subnet": "10.0.0.0/7"}, "subnet", "prefix length from 8 to 28"),
        (PLAIN | {"subnet": "10.1.0.0/29"}, "subnet", "prefix length from 8 to 28"),
        (PLAIN | {"subnet": "127.0.0.0/16"}, "subnet", "not a range that hosts can have"),
        (PLAIN | {"subnet6": "10.2.0.0/16"}, "subnet6", "must be an IPv6 network"),
        (PLAIN | {"subnet6": "fe80::/64"}, "subnet6", "link-local"),
        (
            PLAIN | {"subnet6": "fd00::/113"},
            "subnet6",
            "is smaller than 10.1.0.0/16: it needs a prefix length of at most 112",
        ),
        (PLAIN | {"host_prefix": 16}, "host_prefix", "must be from 17 to 30 for 10.1.0.0/16. (got 16)"),
        (PLAIN | {"host_prefix": 31}, "host_prefix", "must be from 17 to 30"),
        (PLAIN | {"underlay": "a-name-too-long-"}, "underlay", "neither an interface's name nor an address"),
        (PLAIN | {"underlay": "lo"}, "underlay", "neither an interface's name nor an address"),
        (PLAIN | {"underlay": "10.1.0.9"}, "underlay", "lies within the network's own 10.1.0.0/16"),
        (PLAIN | {"mtu": 575}, "mtu", "must be from 576 to 65535"),
        (BOTH | {"mtu": 1279}, "mtu", "must be from 1280 to 65535, for IPv6"),
        (PLAIN | {"masquerade": 1}, "masquerade", "must be true or false"),
        (PLAIN | {"deny_networks": ["10.0.0.1/8"]}, "deny_networks[0]", "host bits"),
        (PLAIN | {"dns_servers": ["ns1"]}, "dns_servers[0]", "is not an IP address"),
        (PLAIN | {"search_domains": ["a..b"]}, "search_domains[0]", "is no domain name"),
        (PLAIN | {"allow_host_access": True}, "allow_host_access", "Unknown field"),
        (PLAIN | {"peers": {}}, "peers", "must be a list"),
        (PLAIN | {"peers": [{"host": "a", "underlay": "192.0.2.1"}]}, "peers[0].subnet", "is missing"),
        (peers({"name": "x"}), "peers[1].name", "Unknown field"),
        (peers({"host": "-"}), "peers[1].host", "is no name"),
        (peers({"underlay": "eth0"}), "peers[1].underlay", "is not an IP address"),
        (peers({"underlay": "0.0.0.0"}), "peers[1].underlay", "no address that other hosts can send to"),
        (peers({"underlay": "10.1.0.1"}), "peers[1].underlay", "lies within the network's own 10.1.0.0/16"),
        (peers({"underlay": "2001:db8::1"}), "peers[1].underlay", "must be an IPv4 address, like that of entry [0]"),
        (peers({"subnet": "10.1.2.0/25"}), "peers[1].subnet", "is no part of 10.1.0.0/16 with the prefix length 24"),
        (peers({"subnet": "10.2.2.0/24"}), "peers[1].subnet", "is no part of 10.1.0.0/16"),
        (peers({"host": "h1"}), "peers[1].host", "is that of entry [0] of this list, too"),
        (peers({"underlay": "192.0.2.1"}), "peers[1].underlay", "is that of entry [0]"),
        (peers({}, {"subnet": "10.1.2.0/24"}), "peers[2].subnet", "is that of entry [1]"),
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
        (PLAIN, ["10.1.0.0/16"]),
        (PLAIN | {"masquerade": False}, []),
        (BOTH, ["10.1.0.0/16", "fd00:1::/64"]),
        (BOTH | {"masquerade": False}, []),
        (PLAIN | {"subnet6": "2001:db8::/64"}, ["10.1.0.0/16"]),
    ],
)
def test_ipv6_is_masqueraded_when_unique_local(document: dict[str, Any], masqueraded: list[str]) -> None:
    assert [str(subnet) for subnet in load(**document).masqueraded] == masqueraded


@pytest.mark.parametrize(
    ("subnet6", "part", "part6"),
    [
        ("fd00:1::/64", "10.1.0.0/24", "fd00:1::/120"),
        ("fd00:1::/64", "10.1.3.0/24", "fd00:1::300/120"),
        ("fd00:1::/112", "10.1.255.128/25", "fd00:1::ff80/121"),
    ],
)
def test_a_part_of_subnet6_has_the_place_of_the_part_of_subnet(subnet6: str, part: str, part6: str) -> None:
    assert load(**PLAIN, subnet6=subnet6).part6(IPv4Network(part)) == IPv6Network(part6)


def test_without_subnet6_there_is_no_part_of_it() -> None:
    assert load(**PLAIN).part6(IPv4Network("10.1.3.0/24")) is None


def test_a_hosts_parts_have_as_many_addresses_in_both_ip_versions() -> None:
    assert load(**BOTH, host_prefix=26).prefixes == ((4, 26), (6, 122))
    assert load(**PLAIN).prefixes == ((4, 24),)
