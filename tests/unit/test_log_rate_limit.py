"""How many events of each container are told, and that what is left out is counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conetd.kernel.ratelimit import RateLimit


def admitted(limit: RateLimit, key: str, times: list[float]) -> int:
    return sum(limit.admit(key, now) for now in times)


def test_a_burst_is_told_and_the_rest_is_not() -> None:
    limit = RateLimit(burst=3, per_second=1)
    assert [limit.admit("web", 0.0) for _ in range(5)] == [True, True, True, False, False]


def test_one_more_is_told_when_there_is_room_again() -> None:
    limit = RateLimit(burst=1, per_second=2)
    assert [limit.admit("web", now) for now in (0.0, 0.4, 0.5, 0.6)] == [True, False, True, False]


def test_each_container_has_a_limit_of_its_own() -> None:
    limit = RateLimit(burst=1, per_second=1)
    assert [limit.admit(key, 0.0) for key in ("web", "web", "db")] == [True, False, True]


def test_a_quiet_time_earns_no_more_than_a_burst() -> None:
    limit = RateLimit(burst=2, per_second=10)
    limit.admit("web", 0.0)
    assert admitted(limit, "web", [1000.0] * 5) == 2


def test_what_was_left_out_is_told_once() -> None:
    limit = RateLimit(burst=1, per_second=1)
    admitted(limit, "web", [0.0] * 4)
    assert (limit.take_left_out("web"), limit.take_left_out("web"), limit.take_left_out("db")) == (3, 0, 0)


def test_what_was_left_out_is_due_after_a_second() -> None:
    limit = RateLimit(burst=1, per_second=0.1)
    admitted(limit, "web", [5.0, 5.0, 5.5])
    assert (limit.due(5.9), limit.due(6.0), limit.due(7.0)) == ([], [("web", 2)], [])


def test_containers_that_are_quiet_are_forgotten() -> None:
    limit = RateLimit(burst=2, per_second=1)
    limit.admit("web", 0.0)
    limit.due(0.5)
    assert not limit.idle()
    limit.due(1.0)
    assert limit.idle()


def test_a_container_with_an_unreported_count_is_not_forgotten() -> None:
    limit = RateLimit(burst=1, per_second=100)
    admitted(limit, "web", [0.0] * 2)
    assert limit.due(0.9) == []
    assert limit.due(1.0) == [("web", 1)]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3))))
def test_every_event_is_either_told_or_counted(steps: list[tuple[str, float]]) -> None:
    limit, now, told, counted = RateLimit(burst=2, per_second=1), 0.0, 0, 0
    for key, pause in steps:
        now += pause
        counted += sum(count for _, count in limit.due(now))
        told += limit.admit(key, now)
    counted += sum(count for _, count in limit.due(now + 2))
    assert told + counted == len(steps)
