"""Garden's wire forms are read as Garden means them, written back the same, and refused where they are ambiguous."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import Schema

from conetd import documents
from conetd.errors import Invalid
from conetd.model import ICMP, ICMPV6, TCP, UDP, AddressRange, Icmp, PortRange, PortRequest, Rule, Verdict
from conetd.policy.fields import Address, Addresses, Subnet, Subnets, Switch
from conetd.policy.garden import NetIn, NetOut


class Policy(Schema):
    net_in = NetIn()
    net_out = NetOut()


class Misc(Schema):
    subnet = Subnet(version=4)
    gateway = Address(version=4)
    dns_servers = Addresses()
    deny_networks = Subnets()
    log_denied = Switch()


def load(document: Any) -> Any:
    return documents.load(Policy(), document)


def rule(document: Any) -> Rule:
    found: Rule = load({"net_out": [document]})["net_out"][0]
    return found


def complaints(document: Any, schema: type[Schema] = Policy) -> dict[str, str]:
    with pytest.raises(Invalid) as refused:
        documents.load(schema(), document)
    return refused.value.fields


def addresses(first: str, last: str) -> tuple[AddressRange, ...]:
    return (AddressRange(ip_address(first), ip_address(last)),)


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({}, {}),
        ({"protocol": 0}, {}),
        ({"protocol": "all"}, {}),
        ({"protocol": 1}, {"protocol": TCP}),
        ({"protocol": "udp"}, {"protocol": UDP}),
        ({"protocol": 3}, {"protocol": ICMP}),
        ({"protocol": 4}, {"protocol": ICMPV6}),
        ({"networks": [{}]}, {}),
        ({"networks": [{"start": "8.8.8.8"}, {}]}, {}),
        ({"networks": [{"start": "8.8.8.8"}]}, {"destinations": addresses("8.8.8.8", "8.8.8.8")}),
        ({"networks": [{"end": "8.8.8.8"}]}, {"destinations": addresses("8.8.8.8", "8.8.8.8")}),
        ({"networks": [{"start": "fd00::1", "end": "fd00::9"}]}, {"destinations": addresses("fd00::1", "fd00::9")}),
        ({"networks": [{"start": "::ffff:8.8.8.8"}]}, {"destinations": addresses("8.8.8.8", "8.8.8.8")}),
        (
            {"protocol": 1, "ports": [{"start": 0, "end": 80}, {"start": 443, "end": 443}]},
            {"protocol": TCP, "ports": (PortRange(0, 80), PortRange(443, 443))},
        ),
        ({"protocol": 3, "icmps": {}}, {"protocol": ICMP, "icmp": Icmp(0)}),
        ({"protocol": 3, "icmps": {"type": 3, "code": 0}}, {"protocol": ICMP, "icmp": Icmp(3, 0)}),
        ({"protocol": 3, "icmps": {"type": 8, "code": None}}, {"protocol": ICMP, "icmp": Icmp(8)}),
        ({"protocol": 3, "icmps": {"type": 255, "code": 255}}, {"protocol": ICMP}),
        ({"protocol": "icmpv6", "icmps": {"type": 128}}, {"protocol": ICMPV6, "icmp": Icmp(128)}),
        ({"log": True}, {"log": True}),
    ],
)
def test_a_net_out_rule_means_what_garden_means(document: Any, wanted: Any) -> None:
    assert rule(document) == Rule(Verdict.ACCEPT, origin="net_out[0]", **wanted)


@pytest.mark.parametrize(
    ("document", "path", "complaint"),
    [
        ({"protocol": 5}, ".protocol", "0 to 4. (got 5)"),
        ({"protocol": "sctp"}, ".protocol", '(got "sctp")'),
        ({"protocol": True}, ".protocol", "(got true)"),
        ({"protocol": [1]}, ".protocol", "(got [1])"),
        ({"ports": [{"start": 1, "end": 2}]}, ".ports", "cannot be given for protocol all"),
        ({"protocol": 3, "ports": [{"start": 1, "end": 2}]}, ".ports", "cannot be given for protocol icmp"),
        ({"protocol": 1, "ports": [{"start": 80}]}, ".ports[0]", "both start and end"),
        ({"protocol": 1, "ports": [{}]}, ".ports[0]", "both start and end"),
        ({"protocol": 1, "ports": [{"start": 80, "end": 0}]}, ".ports[0]", "runs backwards"),
        ({"protocol": 1, "ports": [{"start": 1, "end": 65536}]}, ".ports[0].end", "from 0 to 65535. (got 65536)"),
        ({"protocol": 1, "ports": [{"start": -1, "end": 5}]}, ".ports[0].start", "(got -1)"),
        ({"protocol": 1, "ports": [{"start": 1.5, "end": 5}]}, ".ports[0].start", "(got 1.5)"),
        ({"protocol": 1, "ports": "80, 81"}, ".ports", "must be a list"),
        ({"protocol": 1, "icmps": {"type": 8}}, ".icmps", "cannot be given for protocol tcp"),
        ({"icmps": {}}, ".icmps", "cannot be given for protocol all"),
        ({"protocol": 3, "icmps": {"type": 256}}, ".icmps.type", "from 0 to 255. (got 256)"),
        ({"networks": [{"start": "10.0.0.9", "end": "10.0.0.1"}]}, ".networks[0]", "runs backwards"),
        ({"networks": [{"start": "10.0.0.9", "end": "fd00::1"}]}, ".networks[0]", "mixes IPv4 and IPv6"),
        ({"networks": [{}, {"start": "10.0.0.300"}]}, ".networks[1].start", '(got "10.0.0.300")'),
        ({"networks": [{"start": "010.0.0.1"}]}, ".networks[0].start", "is not an IP address"),
        ({"networks": [{"start": "fe80::1%eth0"}]}, ".networks[0].start", "is not an IP address"),
        ({"networks": [{"start": ""}]}, ".networks[0].start", "is not an IP address"),
        ({"networks": [{"cidr": "10.0.0.0/8"}]}, ".networks[0].cidr", "Unknown field"),
        ({"log": 1}, ".log", "must be true or false"),
        ({"proto": 1}, ".proto", "Unknown field"),
        ("tcp", "", "must be an object"),
    ],
)
def test_a_net_out_rule_is_refused_at_the_field_that_is_wrong(document: Any, path: str, complaint: str) -> None:
    found = complaints({"net_out": [document]})

    assert list(found) == [f"net_out[0]{path}"]
    assert complaint in found[f"net_out[0]{path}"]


def test_every_wrong_field_is_named_at_once() -> None:
    found = complaints({"net_out": [{"protocol": 9, "log": "no"}, {}, {"networks": [3]}]})

    assert list(found) == ["net_out[0].protocol", "net_out[0].log", "net_out[2].networks[0]"]


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({"host_port": 0}, PortRequest(TCP, 0, 0, None, "net_in[0]")),
        ({"host_port": 80, "container_port": 8080}, PortRequest(TCP, 80, 8080, None, "net_in[0]")),
        ({"host_port": 53, "protocol": "udp"}, PortRequest(UDP, 53, 0, None, "net_in[0]")),
        ({"host_port": 53, "protocol": 2}, PortRequest(UDP, 53, 0, None, "net_in[0]")),
        ({"host_port": 80, "host_ip": "192.0.2.1"}, PortRequest(TCP, 80, 0, ip_address("192.0.2.1"), "net_in[0]")),
    ],
)
def test_a_net_in_entry_is_a_port_request(document: Any, wanted: Any) -> None:
    assert load({"net_in": [document]})["net_in"] == (wanted,)


@pytest.mark.parametrize(
    ("document", "field", "complaint"),
    [
        ({}, "host_port", "is missing"),
        ({"host_port": 70000}, "host_port", "from 0 to 65535. (got 70000)"),
        ({"host_port": "80"}, "host_port", '(got "80")'),
        ({"host_port": 80, "container_port": -1}, "container_port", "(got -1)"),
        ({"host_port": 80, "protocol": "icmp"}, "protocol", "must be tcp or udp"),
        ({"host_port": 80, "protocol": 3}, "protocol", "must be tcp or udp"),
        ({"host_port": 80, "host_ip": "127.0.0.1"}, "host_ip", "loopback"),
        ({"host_port": 80, "host_ip": "::1"}, "host_ip", "loopback"),
        ({"host_port": 80, "host_ip": "0.0.0.0"}, "host_ip", "leave host_ip out"),
        ({"host_port": 80, "host_ip": "::"}, "host_ip", "leave host_ip out"),
        ({"host_port": 80, "host_ip": "224.0.0.1"}, "host_ip", "multicast"),
        ({"host_port": 80, "host_ip": "eth0"}, "host_ip", "is not an IP address"),
        ({"host_port": 80, "hostPort": 80}, "hostPort", "Unknown field"),
    ],
)
def test_a_net_in_entry_is_refused_at_the_field_that_is_wrong(document: Any, field: str, complaint: str) -> None:
    found = complaints({"net_in": [document]})

    assert list(found) == [f"net_in[0].{field}"]
    assert complaint in found[f"net_in[0].{field}"]


@pytest.mark.parametrize("other", [{}, {"host_ip": "192.0.2.1"}])
def test_a_port_published_twice_in_one_list_is_refused(other: dict[str, Any]) -> None:
    found = complaints({"net_in": [{"host_port": 80}, {"host_port": 80, "container_port": 81, **other}]})

    assert "already by entry [0]" in found["net_in[1].host_port"]


def test_one_port_number_is_published_for_each_protocol_and_address() -> None:
    entries = [
        {"host_port": 53, "host_ip": "192.0.2.1"},
        {"host_port": 53, "host_ip": "192.0.2.2"},
        {"host_port": 53, "protocol": "udp"},
        {"host_port": 0},
        {"host_port": 0},
    ]

    assert len(load({"net_in": entries})["net_in"]) == 5


byte = st.integers(0, 255)
pair = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted)
networks = st.lists(
    st.just({})
    | st.ip_addresses().map(lambda one: {"start": str(one)})
    | st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4))
    .map(sorted)
    .map(lambda two: {"start": str(two[0]), "end": str(two[1])}),
    max_size=3,
)
ports = st.lists(pair.map(lambda two: {"start": two[0], "end": two[1]}), max_size=3)
common = {"networks": networks, "log": st.booleans()}
net_out = st.lists(
    st.fixed_dictionaries({"protocol": st.sampled_from([1, 2, "tcp", "udp"])}, optional={"ports": ports, **common})
    | st.fixed_dictionaries(
        {"protocol": st.sampled_from([3, 4, "icmp"])},
        optional={"icmps": st.fixed_dictionaries({}, optional={"type": byte, "code": st.none() | byte}), **common},
    )
    | st.fixed_dictionaries({}, optional=common)
)
net_in = st.lists(
    st.fixed_dictionaries(
        {"host_port": st.integers(0, 65535)},
        optional={"container_port": st.integers(0, 65535), "protocol": st.sampled_from([1, "udp"])},
    ),
    unique_by=lambda entry: entry["host_port"],
)


@given(st.fixed_dictionaries({}, optional={"net_out": net_out, "net_in": net_in}))
def test_what_is_loaded_and_dumped_loads_to_the_same_again(document: Any) -> None:
    loaded = load(document)

    assert load(Policy().dump(loaded)) == loaded


@pytest.mark.parametrize(
    ("document", "path", "complaint"),
    [
        ({"subnet": "10.0.0.5/24"}, "subnet", "the network is 10.0.0.0/24"),
        ({"subnet": "10.0.0.0"}, "subnet", "is not a network"),
        ({"subnet": "fd00::/64"}, "subnet", "must be an IPv4 network"),
        ({"subnet": 10}, "subnet", "is not a network"),
        ({"gateway": "fd00::1"}, "gateway", "must be an IPv4 address"),
        ({"dns_servers": ["8.8.8.8", "dns.example"]}, "dns_servers[1]", "is not an IP address"),
        ({"deny_networks": ["10.0.0.0/33"]}, "deny_networks[0]", "is not a network"),
        ({"deny_networks": "10.0.0.0/8"}, "deny_networks", "must be a list"),
        ({"log_denied": "yes"}, "log_denied", "must be true or false"),
    ],
)
def test_addresses_networks_and_switches_are_strict(document: Any, path: str, complaint: str) -> None:
    assert complaint in complaints(document, Misc)[path]


def test_addresses_networks_and_switches_are_dumped_as_they_were_given() -> None:
    document = {
        "subnet": "10.0.0.0/24",
        "gateway": "10.0.0.1",
        "dns_servers": ["8.8.8.8", "fd00::53"],
        "deny_networks": ["10.0.0.0/8", "fd00::/8"],
        "log_denied": False,
    }

    assert Misc().dump(Misc().load(document)) == document
