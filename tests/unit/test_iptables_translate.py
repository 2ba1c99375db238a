"""Which lines of a legacy chain one rule becomes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from conetd.kernel.filter import NFLOG_ALLOWED, NFLOG_DENIED
from conetd.kernel.iptables import entries
from conetd.kernel.iptables.entries import Line, exactly, within
from conetd.kernel.iptables.translate import TOWARDS, lines, merge
from conetd.model import ICMP, ICMPV6, TCP, UDP, AddressRange, Icmp, MarkRange, PortRange, Rule, Verdict


def span(first: str, last: str | None = None) -> AddressRange:
    return AddressRange(ip_address(first), ip_address(last or first))


def translated(rule: Rule, family: int = 4) -> list[Line]:
    return lines(rule, family, TOWARDS, "h")


def test_an_accepted_packet_goes_on_to_whom_it_is_for() -> None:
    assert translated(Rule(Verdict.ACCEPT)) == [Line(TOWARDS, goto=True, comment="h")]


def test_a_drop_ends_the_packet() -> None:
    assert translated(Rule(Verdict.DROP)) == [Line("DROP", comment="h")]


@pytest.mark.parametrize("family", [4, 6])
def test_a_reject_answers_port_unreachable(family: int) -> None:
    assert translated(Rule(Verdict.REJECT), family) == [Line(entries.reject(family), comment="h")]


def test_the_place_in_the_document_stands_in_the_comment() -> None:
    (line,) = translated(Rule(Verdict.DROP, origin="net_out[3]"))
    assert line.comment == "h net_out[3]"


def test_a_range_that_is_a_network_is_matched_without_a_module() -> None:
    (line,) = translated(Rule(Verdict.DROP, destinations=(AddressRange.of(ip_network("10.1.0.0/16")),)))
    assert (line.destination, line.matches) == (within(ip_network("10.1.0.0/16")), ())


def test_the_range_of_every_address_matches_everything() -> None:
    (line,) = translated(Rule(Verdict.DROP, destinations=(span("0.0.0.0", "255.255.255.255"),)))
    assert (line.destination, line.matches) == (entries.Masked(0, 0), ())


def test_other_ranges_of_both_ends_share_one_match() -> None:
    source, destination = span("10.0.0.1", "10.0.0.3"), span("10.0.0.5", "10.0.0.7")
    (line,) = translated(Rule(Verdict.DROP, sources=(source,), destinations=(destination,)))
    assert line.matches == (entries.address_ranges(source, destination),)


def test_ranges_that_touch_become_one() -> None:
    rule = Rule(Verdict.DROP, destinations=(span("10.0.0.2", "10.0.0.3"), span("10.0.0.0", "10.0.0.1")))
    assert [line.destination for line in translated(rule)] == [within(ip_network("10.0.0.0/30"))]


def test_each_pair_of_source_and_destination_is_a_line() -> None:
    pairs = (span("10.0.0.1"), span("10.0.0.9"))
    found = translated(Rule(Verdict.DROP, sources=pairs, destinations=pairs))
    ends = [exactly(one.first) for one in pairs]
    assert [(line.source, line.destination) for line in found] == [(one, other) for one in ends for other in ends]


@pytest.mark.parametrize(
    ("rule", "family"),
    [
        (Rule(Verdict.ACCEPT, destinations=(span("fd00::1"),)), 4),
        (Rule(Verdict.ACCEPT, sources=(span("10.0.0.1"),)), 6),
        (Rule(Verdict.ACCEPT, ICMP), 6),
        (Rule(Verdict.ACCEPT, ICMPV6), 4),
        (Rule(Verdict.ACCEPT, destinations=(span("10.0.0.9", "10.0.0.1"),)), 4),
        (Rule(Verdict.ACCEPT, TCP, ports=(PortRange(90, 80),)), 4),
        # the kernel would take type 255 for "any"
        (Rule(Verdict.ACCEPT, ICMP, icmp=Icmp(255)), 4),
    ],
)
def test_what_no_packet_of_the_family_can_match_has_no_line(rule: Rule, family: int) -> None:
    assert translated(rule, family) == []


def test_one_range_of_ports_is_matched_by_the_protocol() -> None:
    (line,) = translated(Rule(Verdict.DROP, UDP, ports=(PortRange(53, 60),)))
    assert (line.protocol, line.matches) == (UDP, (entries.destination_ports(UDP, (PortRange(53, 60),)),))


def test_fifteen_ports_fit_one_line_and_the_sixteenth_takes_another() -> None:
    ports = tuple(PortRange(number, number) for number in range(1, 33, 2))
    found = translated(Rule(Verdict.DROP, TCP, ports=ports))
    batches = (ports[:15], ports[15:])
    assert [line.matches for line in found] == [(entries.destination_ports(TCP, batch),) for batch in batches]


def test_a_range_of_ports_takes_two_places() -> None:
    ports = tuple(PortRange(number, number + 1) for number in range(1, 33, 4))
    assert len(translated(Rule(Verdict.DROP, TCP, ports=ports))) == 2


def test_icmp_without_a_code_is_every_code() -> None:
    (line,) = translated(Rule(Verdict.DROP, ICMP, icmp=Icmp(8)))
    assert line.matches[0].data == bytes((8, 0, 255, 0))


def test_a_logged_accept_announces_and_then_accepts() -> None:
    found = translated(Rule(Verdict.ACCEPT, log=True))
    assert [line.target for line in found] == [entries.log_to(NFLOG_ALLOWED, "h "), TOWARDS]


def test_what_is_denied_is_logged_where_the_policy_asks_for_it() -> None:
    found = lines(Rule(Verdict.REJECT), 4, TOWARDS, "h", log_denied=True)
    assert [line.target for line in found] == [entries.log_to(NFLOG_DENIED, "h "), entries.reject(4)]


def test_logging_what_is_denied_does_not_log_what_is_accepted() -> None:
    assert len(lines(Rule(Verdict.ACCEPT), 4, TOWARDS, "h", log_denied=True)) == 1


def test_spans_merge_whatever_their_order() -> None:
    assert merge([(7, 9), (1, 3), (4, 5), (8, 12), (20, 19)]) == [(1, 5), (7, 12)]


@pytest.mark.parametrize(
    ("marks", "blocks"),
    [
        (((5, 5),), [(5, 0xFFFF)]),
        (((8, 15),), [(8, 0xFFF8)]),
        (((1, 65535),), [(1 << bit, 0xFFFF & -1 << bit) for bit in range(16)]),
        (((0, 65535),), [(0, 0)]),
        (((3, 6), (7, 7)), [(3, 0xFFFF), (4, 0xFFFC)]),
        (((7, 6),), []),
    ],
)
def test_marks_are_matched_in_blocks_that_agree_in_their_first_bits(
    marks: tuple[tuple[int, int], ...], blocks: list[tuple[int, int]]
) -> None:
    rule = Rule(Verdict.DROP, marks=tuple(MarkRange(*one) for one in marks))
    assert [line.matches for line in translated(rule)] == [(entries.marked(*block),) for block in blocks]
