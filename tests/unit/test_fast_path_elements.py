"""How directions of connections are written as keys of sets, and read again from what the kernel has counted."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from conetd.kernel.netlink import attributes, nested, text
from conetd.kernel.nft import wire
from conetd.kernel.nft.fast_path import Direction, _direction, _key_and_packets, _set_key

MAC = bytes.fromhex("020000000302")
IPV4 = Direction(7, MAC, ip_address("10.1.3.2"), 8090, ip_address("10.1.4.2"), 40000)
IPV6 = Direction(70000, MAC, ip_address("fd01::302"), 1, ip_address("fd01::402"), 65535)
BOTH = pytest.mark.parametrize("direction", [IPV4, IPV6], ids=["IPv4", "IPv6"])


def test_a_key_is_link_mac_addresses_and_ports_in_whole_registers() -> None:
    link = struct.pack("=I", 7)  # as the kernel has it; everything else as in the packet
    assert IPV4.key == link + bytes.fromhex("0200000003020000" + "0a010302" + "0a010402" + "1f9a9c40")
    addresses = "fd010000000000000000000000000302" + "fd010000000000000000000000000402"
    assert IPV6.key == struct.pack("=I", 70000) + bytes.fromhex("0200000003020000" + addresses + "0001ffff")


@BOTH
def test_a_key_is_as_long_as_its_set_has_it(direction: Direction) -> None:
    assert len(direction.key) == _set_key(direction.version)[1]


@pytest.mark.parametrize(
    "other",
    [
        {"inward": 8},
        {"mac": bytes.fromhex("020000000303")},
        {"source": ip_address("10.1.3.3")},
        {"source_port": 8091},
        {"destination": ip_address("10.1.4.3")},
        {"destination_port": 40001},
        {"source_port": 40000, "destination_port": 8090},
    ],
    ids=lambda other: " and ".join(other),
)
def test_each_part_of_a_direction_is_in_its_key(other: dict[str, object]) -> None:
    assert replace(IPV4, **other).key != IPV4.key  # type: ignore[arg-type]


@BOTH
def test_a_direction_is_read_from_its_key(direction: Direction) -> None:
    assert _direction(direction.key, direction.version) == direction


def counter(packets: int) -> bytes:
    """A counter with more bytes than packets, as the kernel tells it."""
    counts = struct.pack(">Q", packets * 1400), struct.pack(">Q", packets)
    told = b"".join(struct.pack("=HH", 12, kind) + count for kind, count in enumerate(counts, 1))
    return text(1, "counter") + nested(2, told)


ELEMENTS = {
    "with one expression": nested(7, counter(61)),
    "with a list of expressions": nested(11, nested(wire.LIST_ELEM, counter(3)), nested(wire.LIST_ELEM, counter(61))),
    "with more packets than 32 bits hold": nested(7, counter(2**32 + 61)),
}


@pytest.mark.parametrize("how", ELEMENTS)
def test_key_and_packets_are_read_from_an_element(how: str) -> None:
    told = nested(1, wire.value(IPV4.key)) + ELEMENTS[how]
    packets = 2**32 + 61 if "more" in how else 61
    assert _key_and_packets(memoryview(told)) == (IPV4.key, packets)


def test_an_element_without_a_counter_has_seen_nothing() -> None:
    ((_, element),) = attributes(wire.element(IPV6.key))
    assert _key_and_packets(element) == (IPV6.key, 0)
