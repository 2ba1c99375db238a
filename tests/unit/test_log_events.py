"""What a logged packet says of itself, and the line it makes."""

from __future__ import annotations

import logging
import struct
from ipaddress import ip_address

import pytest

from conetd.kernel.logevents import LeftOut, LogEvent, log_event, parse
from conetd.kernel.netlink import attribute, text

A, B, A6, B6 = (ip_address(one) for one in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"))
PORTS = struct.pack(">HH", 4000, 53)


def ipv4(protocol: int, transport: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH4s4s", 0x40 | words, 0, 0, 0, fragment, 64, protocol, 0, A.packed, B.packed)
    return head + options + transport


def ipv6(kind: int, rest: bytes) -> bytes:
    return struct.pack(">IHBB16s16s", 6 << 28, len(rest), kind, 64, A6.packed, B6.packed) + rest


def message(packet: bytes, *, sequence: int = 7) -> memoryview:
    return memoryview(
        bytes(4)
        + text(10, "web ")
        + attribute(4, struct.pack(">I", 3))
        + attribute(5, struct.pack(">I", 4))
        + attribute(12, struct.pack(">I", sequence))
        + attribute(9, packet)
    )


def event(packet: bytes) -> LogEvent:
    found, _ = parse(message(packet), "denied")
    assert found is not None
    return found


def test_an_event_has_verdict_prefix_ends_and_interfaces() -> None:
    assert event(ipv4(17, PORTS)) == LogEvent("denied", "web ", 17, A, 4000, B, 53, None, None, 3, 4)


def test_the_number_of_the_message_is_told_beside_the_event() -> None:
    assert parse(message(ipv4(17, PORTS), sequence=99), "allowed")[1] == 99


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(ipv4(6, PORTS), id="IPv4"),
        pytest.param(ipv4(6, PORTS, options=bytes(8)), id="IPv4 with options"),
        pytest.param(ipv6(6, PORTS), id="IPv6"),
        pytest.param(
            ipv6(0, bytes([60, 0]) + bytes(6) + bytes([6, 1]) + bytes(14) + PORTS), id="two extension headers"
        ),
        pytest.param(ipv6(44, bytes([6, 0, 0, 1]) + bytes(4) + PORTS), id="a first fragment"),
        pytest.param(ipv6(51, bytes([6, 4]) + bytes(22) + PORTS), id="an authentication header"),
    ],
)
def test_ports_are_found_behind_what_precedes_them(packet: bytes) -> None:
    found = event(packet)
    assert (found.protocol, found.source_port, found.destination_port) == (6, 4000, 53)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(ipv4(6, PORTS, fragment=10), id="a later fragment, IPv4"),
        pytest.param(ipv6(44, bytes([6, 0, 0, 8]) + bytes(4) + PORTS), id="a later fragment, IPv6"),
        pytest.param(ipv4(6, b"\x0f"), id="cut off"),
        pytest.param(ipv4(47, PORTS), id="a protocol without ports"),
    ],
)
def test_there_are_no_ports_where_none_can_be_read(packet: bytes) -> None:
    found = event(packet)
    assert (found.source_port, found.destination_port) == (0, 0)


@pytest.mark.parametrize("packet", [ipv4(1, b"\x08\x00\0\0"), ipv6(58, b"\x08\x00\0\0")])
def test_icmp_has_type_and_code_in_place_of_ports(packet: bytes) -> None:
    found = event(packet)
    assert (found.icmp_type, found.icmp_code, found.source_port) == (8, 0, 0)


@pytest.mark.parametrize("packet", [b"", b"\x45", bytes(28), ipv6(6, b"")[:39]])
def test_what_is_no_whole_ip_header_is_no_event(packet: bytes) -> None:
    assert parse(message(packet), "denied")[0] is None


def test_an_extension_header_that_never_ends_is_no_trap() -> None:
    assert event(ipv6(0, bytes(8))).protocol == 0


def line(caplog: pytest.LogCaptureFixture, told: LogEvent | LeftOut) -> dict[str, object]:
    caplog.set_level(logging.INFO, "conetd.packets")
    log_event(told)
    (record,) = caplog.records
    plain = logging.makeLogRecord({}).__dict__
    extra = {key: value for key, value in record.__dict__.items() if key not in plain and key != "message"}
    return {"level": record.levelname, "event": record.getMessage()} | extra


def test_an_event_is_one_line_with_its_keys(caplog: pytest.LogCaptureFixture) -> None:
    assert line(caplog, LogEvent("denied", "web ", 17, A, 4000, B, 53, in_index=1)) == {
        "level": "INFO",
        "event": "packet denied",
        "handle": "web",
        "protocol": "udp",
        "source": "192.0.2.1",
        "source_port": 4000,
        "destination": "192.0.2.2",
        "destination_port": 53,
        "in": "lo",
    }


def test_a_ping_is_logged_with_type_and_code(caplog: pytest.LogCaptureFixture) -> None:
    told = line(caplog, LogEvent("allowed", "web ", 1, A, 0, B, 0, 8, 0))
    assert (told["icmp_type"], told["icmp_code"], "source_port" in told) == (8, 0, False)


def test_what_was_left_out_is_a_warning_with_its_count(caplog: pytest.LogCaptureFixture) -> None:
    assert line(caplog, LeftOut("web ", 12)) == {
        "level": "WARNING",
        "event": "packets not logged",
        "handle": "web",
        "count": 12,
    }


def test_what_was_lost_is_a_warning_with_its_count(caplog: pytest.LogCaptureFixture) -> None:
    told = line(caplog, LeftOut(None, 5))
    assert (told["event"], told["count"]) == ("packets lost before they could be logged", 5)
