"""Lanes: grouping, deadlines of foreign drivers, one job at a time for each handle."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from conetd.errors import ConetError, DriverTimeout, Unavailable
from conetd.reconcile.lanes import GROUP_MOST, ForeignLane, Lane, Turnstile


@pytest.fixture
def lane() -> Lane:
    lane = Lane("test")
    lane.start()
    return lane


def test_a_call_returns_what_the_function_returns(lane: Lane) -> None:
    assert lane.call(lambda a, b: a + b, 1, 2).result(5) == 3


def test_a_call_raises_what_the_function_raises_and_the_lane_goes_on(lane: Lane) -> None:
    with pytest.raises(ZeroDivisionError):
        lane.call(lambda: 1 // 0).result(5)
    assert lane.call(lambda: "on").result(5) == "on"


def test_jobs_of_one_function_that_wait_together_are_done_together(lane: Lane) -> None:
    groups: list[list[int]] = []

    def double(items: list[int]) -> Sequence[int]:
        groups.append(items)
        return [item * 2 for item in items]

    held, hold = threading.Event(), threading.Event()

    def occupy() -> None:
        held.set()
        hold.wait()

    lane.call(occupy)
    held.wait()
    futures = [lane.group(double, number) for number in range(GROUP_MOST)]
    hold.set()
    assert [future.result(5) for future in futures] == [number * 2 for number in range(GROUP_MOST)]
    assert groups == [list(range(GROUP_MOST))]


def test_each_job_of_a_group_fails_alone(lane: Lane) -> None:
    def divide(items: list[int]) -> Sequence[int | BaseException]:
        return [ZeroDivisionError() if item == 0 else 1 // item for item in items]

    good, bad = lane.group(divide, 1), lane.group(divide, 0)
    assert good.result(5) == 1
    with pytest.raises(ZeroDivisionError):
        bad.result(5)


def test_a_stopped_lane_has_done_what_was_submitted_and_refuses_more() -> None:
    lane = Lane("test")
    lane.start()
    done: list[int] = []
    for number in range(50):
        lane.call(done.append, number)
    lane.stop()
    assert done == list(range(50))
    with pytest.raises(Unavailable, match="stopping"):
        lane.call(done.append, 1)


def test_a_foreign_call_that_hangs_is_given_up_and_the_next_gets_a_fresh_thread() -> None:
    lane = ForeignLane("slow", 0.05)
    release = threading.Event()
    with pytest.raises(DriverTimeout, match=r"driver slow: attach did not end within 0\.05 s"):
        lane.call("attach", release.wait)
    assert lane.call("check", lambda: "alive") == "alive"
    release.set()


def test_the_thread_of_a_call_that_was_given_up_ends_with_the_call() -> None:
    lane = ForeignLane("acme", 0.05)
    release, late = threading.Event(), []

    def hang() -> None:
        late.append(threading.current_thread())
        release.wait()

    with pytest.raises(DriverTimeout):
        lane.call("attach", hang)
    release.set()
    late[0].join(5)
    assert not late[0].is_alive()
    lane.stop()


def test_a_timeout_that_the_driver_raises_itself_is_not_the_deadline() -> None:
    lane = ForeignLane("odd", 5)

    def fail() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        lane.call("attach", fail)


def test_jobs_of_one_key_run_one_after_the_other_in_their_order() -> None:
    turns: Turnstile[str] = Turnstile()
    inner: list[Future[str]] = []

    def start() -> Future[str]:
        inner.append(Future())
        return inner[-1]

    first, second = turns.enter("web", start), turns.enter("web", start)
    assert len(inner) == 1
    inner[0].set_result("first")
    assert first.result(1) == "first"
    assert len(inner) == 2
    inner[1].set_result("second")
    assert second.result(1) == "second"


def test_jobs_of_other_keys_do_not_wait() -> None:
    turns: Turnstile[str] = Turnstile()
    started: list[str] = []

    def start(name: str) -> Future[str]:
        started.append(name)
        return Future()

    turns.enter("web", lambda: start("web"))
    turns.enter("db", lambda: start("db"))
    assert started == ["web", "db"]


def test_a_job_that_cannot_start_lets_the_next_one_through() -> None:
    turns: Turnstile[str] = Turnstile()
    held: Future[str] = Future()

    def refuse() -> Future[str]:
        raise ConetError("no")

    first = turns.enter("web", lambda: held)
    second = turns.enter("web", refuse)
    third = turns.enter("web", lambda: held)
    held.set_result("done")
    assert first.result(1) == "done"
    with pytest.raises(ConetError, match="no"):
        second.result(1)
    assert third.result(1) == "done"
