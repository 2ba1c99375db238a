"""What a watch of etcd tells, and where it goes on."""

from __future__ import annotations

from typing import Any

import pytest
from etcd import EtcdCluster, Seen, eventually, take
from pytest_netns import Netns

from conetd.cluster.errors import Compacted
from conetd.cluster.etcd import Etcd
from conetd.cluster.messages import Event, delete, put


def test_a_watch_tells_changes_in_order_from_its_revision_on(etcd: Etcd) -> None:
    etcd.commit([], [put("/w/0", "before")])
    first = etcd.commit([], [put("/w/1", "a")]).revision
    etcd.commit([], [put("/w/1", "b"), delete("/w/0")])
    etcd.commit([], [put("/v/1", "elsewhere")])
    with etcd.watch("/w/", first) as watch:
        told = take(watch, 3)
    assert told[0] == Event("/w/1", "a", first)
    assert sorted(told[1:], key=lambda event: event.key) == [
        Event("/w/0", None, first + 1),
        Event("/w/1", "b", first + 1),
    ]


def test_a_watch_without_a_revision_tells_what_comes_after_it(etcd: Etcd) -> None:
    etcd.commit([], [put("/w", "before")])
    with etcd.watch("/w") as watch:
        done = etcd.commit([], [put("/w", "after")])
        assert take(watch) == [Event("/w", "after", done.revision)]


def test_a_watch_can_be_resumed_without_loss_and_repetition(etcd: Etcd) -> None:
    first = etcd.commit([], [put("/w/0", "")]).revision
    with etcd.watch("/w/", first) as watch:
        take(watch)
        resume = watch.next_revision
    etcd.commit([], [put("/w/1", "")])
    with etcd.watch("/w/", resume) as watch:
        assert [event.key for event in take(watch)] == ["/w/1"]


def test_a_watch_that_is_far_behind_resumes_after_what_it_told(etcd: Etcd) -> None:
    """etcd sends 1000 old revisions at a time, each under the revision it has now."""
    first = etcd.commit([], [put("/w/", "0")]).revision
    for number in range(1, 1200):
        etcd.commit([], [put("/w/", str(number))])
    with etcd.watch("/w/", first) as watch:
        told = take(watch)
        resume = watch.next_revision
    assert len(told) < 1200
    with etcd.watch("/w/", resume) as watch:
        told += take(watch, 1200 - len(told))
    assert [event.value for event in told] == [str(number) for number in range(1200)]


def test_a_watch_of_a_forgotten_revision_says_what_is_known(etcd: Etcd, single: EtcdCluster) -> None:
    before = etcd.commit([], [put("/w", "1")]).revision
    now = etcd.commit([], [put("/w", "2")]).revision
    single.compact(now)
    with etcd.watch("/w", before) as watch, pytest.raises(Compacted) as caught:
        take(watch)
    assert caught.value.revision == now


def test_a_watch_that_is_closed_ends_at_once_for_the_thread_that_waits(etcd: Etcd, place: Netns) -> None:
    seen = Seen(etcd.watch("/w"), place)
    etcd.commit([], [put("/w", "")])
    eventually(lambda: seen.has("/w"))
    seen.watch.close()
    assert seen.ended.wait(1)
    assert seen.error is None


def test_a_watch_with_nothing_to_tell_asks_its_member_whether_it_is_well_and_stays(
    single: EtcdCluster, place: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Etcd(single.endpoints, timeout_s=0.2) as etcd, etcd.watch("/quiet") as watch:
        asked = []
        ask = etcd._gateway.ask

        def note(endpoint: Any, path: str, *args: Any, **kwargs: Any) -> Any:
            asked.append(path)
            return ask(endpoint, path, *args, **kwargs)

        monkeypatch.setattr(etcd._gateway, "ask", note)
        seen = Seen(watch, place)
        eventually(lambda: _assert_twice("maintenance/status", asked))
        etcd.commit([], [put("/quiet", "")])
        eventually(lambda: seen.has("/quiet"))


def _assert_twice(path: str, asked: list[str]) -> None:
    assert asked.count(path) >= 2
