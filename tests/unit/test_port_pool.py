"""Which host ports exclude each other, and the order in which the pool gives its ports."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conetd.errors import Invalid
from conetd.model import TCP, UDP, HostPort
from conetd.ports import PortPool, candidates, meets_ephemeral, overlaps

POOL = PortPool(100, 4)


def port(host_ip: str | None = None, number: int = 8080, protocol: int = TCP) -> HostPort:
    return HostPort(protocol, number, 80, ip_address(host_ip) if host_ip else None)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (port(), port(), True),
        (port(), port(number=8081), False),
        (port(), port(protocol=UDP), False),
        (port(), port("192.0.2.1"), True),
        (port(), port("2001:db8::1"), True),
        (port("192.0.2.1"), port("192.0.2.1"), True),
        (port("192.0.2.1"), port("192.0.2.2"), False),
        (port("192.0.2.1"), port("2001:db8::1"), False),
        (port("0.0.0.0"), port("192.0.2.1"), True),
        (port("0.0.0.0"), port("2001:db8::1"), False),
        (port("::"), port("2001:db8::1"), True),
        (port("::"), port("192.0.2.1"), False),
    ],
)
def test_two_host_ports_exclude_each_other_where_a_packet_could_mean_both(
    a: HostPort, b: HostPort, expected: bool
) -> None:
    assert (overlaps(a, b), overlaps(b, a)) == (expected, expected)


@pytest.mark.parametrize(
    ("taken", "cursor", "expected"),
    [
        ((), None, [100, 101, 102, 103]),
        ((), 101, [102, 103, 100, 101]),
        ((), 103, [100, 101, 102, 103]),
        ((), 99, [100, 101, 102, 103]),
        ((), 104, [100, 101, 102, 103]),
        ((100, 103), 101, [102, 101]),
        ((100, 101, 102, 103), 100, []),
    ],
)
def test_the_pool_goes_round_and_leaves_out_what_is_taken(
    taken: tuple[int, ...], cursor: int | None, expected: list[int]
) -> None:
    assert list(candidates(POOL, taken, cursor)) == expected


def test_a_port_given_back_comes_last() -> None:
    cursor, given_out = None, []
    for _ in range(5):  # each is given back at once
        cursor = next(candidates(POOL, (), cursor))
        given_out.append(cursor)
    assert given_out == [100, 101, 102, 103, 100]


def test_an_empty_pool_has_no_port() -> None:
    assert list(candidates(PortPool(100, 0), (), None)) == []


def test_ports_are_found_without_making_the_whole_list() -> None:
    assert list(islice(candidates(PortPool(1, 65534), (), None), 2)) == [1, 2]


@given(st.sets(st.integers(100, 103)), st.none() | st.integers(90, 110))
def test_every_free_port_is_offered_once(taken: set[int], cursor: int | None) -> None:
    assert sorted(candidates(POOL, taken, cursor)) == sorted({100, 101, 102, 103} - taken)


@pytest.mark.parametrize(("start", "size"), [(61001, 4535), (65535, 1), (0, 10), (-5, 3), (100, -1)])
def test_a_pool_outside_the_ports_is_refused(start: int, size: int) -> None:
    with pytest.raises(Invalid, match=f"invalid pool range: start {start}, size {size}"):
        PortPool(start, size)


def test_gardens_default_pool_is_allowed() -> None:
    assert 65534 in PortPool(61001, 4534)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(32768, 60999, False), (32768, 61001, True), (65534, 65535, True), (65535, 65535, False), (1, 65535, True)],
)
def test_the_pool_meets_the_ephemeral_ports_when_they_share_one(low: int, high: int, expected: bool) -> None:
    assert meets_ephemeral(PortPool(61001, 4534), low, high) is expected
