"""What a client of etcd reads, commits and leases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from etcd import EtcdCluster, eventually
from pytest_netns import Netns

from conetd.cluster.errors import Compacted, EtcdRefused, LeaseGone
from conetd.cluster.etcd import Etcd
from conetd.cluster.messages import (
    Committed,
    KeyValue,
    absent,
    delete,
    delete_below,
    exists,
    none_below,
    put,
    read,
    transaction,
    value_is,
)


def test_what_was_put_is_read_back_with_its_revision(etcd: Etcd) -> None:
    done = etcd.commit([], [put("a", "grün\n\0")])
    assert etcd.get("a") == KeyValue("a", "grün\n\0", done.revision)


def test_an_empty_value_is_no_missing_key(etcd: Etcd) -> None:
    etcd.commit([], [put("a", "")])
    found = etcd.get("a")
    assert found is not None
    assert found.value == ""


def test_a_key_that_was_never_put_is_none(etcd: Etcd) -> None:
    assert etcd.get("a") is None


def test_what_others_wrote_outside_utf8_is_listed_and_can_be_deleted(etcd: Etcd, single: EtcdCluster) -> None:
    single.ctl("put", b"x\xff".decode(errors="surrogateescape"), "1")
    _, (found,) = etcd.list("x")
    etcd.commit([], [delete(found.key)])
    assert etcd.list("x")[1] == ()


def test_a_list_has_what_is_below_the_prefix_sorted_and_nothing_else(etcd: Etcd) -> None:
    etcd.commit([], [put(key, "") for key in ("/a/2", "/a/1", "/a", "/a0", "/b/1")])
    assert [one.key for one in etcd.list("/a/")[1]] == ["/a/1", "/a/2"]


def test_a_list_of_2500_keys_is_whole(etcd: Etcd) -> None:
    keys = [f"/many/{number:04}" for number in range(2500)]
    for start in range(0, len(keys), 100):
        etcd.commit([], [put(key, "v" * 100) for key in keys[start : start + 100]])
    assert [one.key for one in etcd.list("/many/")[1]] == keys


def test_a_list_over_many_pages_is_whole_and_of_one_revision(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    etcd.commit([], [put(key, "old") for key in ("/p/1", "/p/1!", "/p/3")])
    monkeypatch.setattr("conetd.cluster.etcd._PAGE", 1)
    call = etcd._gateway.call
    changes = iter(["/p/1!", "/p/3"])

    def change_after(path: str, body: Any) -> Any:
        answer = call(path, body)
        if (key := next(changes, None)) is not None:
            call("kv/txn", transaction([], [put(key, "new")], []))
        return answer

    monkeypatch.setattr(etcd._gateway, "call", change_after)

    assert [one.value for one in etcd.list("/p/")[1]] == ["old", "old", "old"]


def test_a_list_at_a_revision_shows_what_was_then(etcd: Etcd) -> None:
    before = etcd.commit([], [put("/a", "1")]).revision
    etcd.commit([], [put("/a", "2")])
    assert etcd.list("/a", before) == (before, (KeyValue("/a", "1", before),))


def test_a_list_at_a_forgotten_revision_is_compacted(etcd: Etcd, single: EtcdCluster) -> None:
    before = etcd.commit([], [put("/a", "1")]).revision
    single.compact(etcd.commit([], [put("/a", "2")]).revision)
    with pytest.raises(Compacted):
        etcd.list("/a", before)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (absent("/c/a"), False),
        (absent("/c/x"), True),
        (exists("/c/a"), True),
        (exists("/c/x"), False),
        (value_is("/c/a", "1"), True),
        (value_is("/c/a", "2"), False),
        (value_is("/c/x", ""), False),
        (none_below("/c/"), False),
        (none_below("/c/a/"), True),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else value.message["target"],
)
def test_a_condition_decides_which_branch_is_taken(etcd: Etcd, condition: Any, holds: bool) -> None:
    etcd.commit([], [put("/c/a", "1")])
    done = etcd.commit([condition], [put("/then", "")], [put("/otherwise", "")])
    assert (done.succeeded, etcd.get("/then") is not None, etcd.get("/otherwise") is None) == (holds, holds, holds)


def test_a_commit_answers_what_each_operation_read(etcd: Etcd) -> None:
    first = etcd.commit([], [put("/r/1", "a"), put("/r/2", "b")]).revision
    done = etcd.commit([], [read("/r/1"), put("/new", ""), read("/r/2"), read("/none"), delete("/r/1")])
    one, two = KeyValue("/r/1", "a", first), KeyValue("/r/2", "b", first)
    assert done == Committed(True, first + 1, ((one,), (), (two,), (), ()))


def test_what_is_deleted_below_a_prefix_is_that_alone(etcd: Etcd) -> None:
    etcd.commit([], [put(key, "") for key in ("/a/1", "/a/2", "/a0")])
    etcd.commit([], [delete_below("/a/")])
    assert [one.key for one in etcd.list("")[1]] == ["/a0"]


def test_of_twenty_who_want_a_key_at_once_one_gets_it(etcd: Etcd, place: Netns) -> None:
    start = threading.Barrier(20)

    def claim(number: int) -> bool:
        with place.inside():
            start.wait()
            return etcd.commit([absent("/one")], [put("/one", str(number))]).succeeded

    with ThreadPoolExecutor(20) as threads:
        won = list(threads.map(claim, range(20)))

    found = etcd.get("/one")
    assert won.count(True) == 1
    assert found is not None
    assert won[int(found.value)]


def test_too_many_operations_are_refused_and_none_is_carried_out(etcd: Etcd) -> None:
    with pytest.raises(EtcdRefused, match="too many operations"):
        etcd.commit([], [put(f"/{number}", "") for number in range(129)])
    assert etcd.list("")[1] == ()


def test_a_value_that_is_too_large_is_refused(etcd: Etcd) -> None:
    with pytest.raises(EtcdRefused, match="request is too large"):
        etcd.commit([], [put("/large", "x" * 2_000_000)])


def test_a_lease_that_is_not_kept_alive_takes_its_key_with_it(etcd: Etcd) -> None:
    lease = etcd.grant(1)
    etcd.commit([], [put("/mine", "", lease)])
    found = etcd.get("/mine")
    assert found is not None
    assert found.lease == lease
    eventually(lambda: _assert_absent(etcd, "/mine"))


def test_a_lease_that_is_kept_alive_stays(etcd: Etcd) -> None:
    lease, other = etcd.grant(1), etcd.grant(1)
    etcd.commit([], [put("/mine", "", lease), put("/other", "", other)])

    def outlived() -> None:
        assert etcd.keep_alive(lease) > 0
        _assert_absent(etcd, "/other")

    eventually(outlived)
    assert etcd.get("/mine") is not None


def test_a_lease_that_is_gone_says_so_when_it_is_kept_alive(etcd: Etcd) -> None:
    lease = etcd.grant(60)
    etcd.revoke(lease)
    assert etcd.keep_alive(lease) == 0


def test_a_revoked_lease_takes_its_key_with_it_and_can_be_revoked_again(etcd: Etcd) -> None:
    lease = etcd.grant(60)
    etcd.commit([], [put("/mine", "", lease)])
    etcd.revoke(lease)
    etcd.revoke(lease)
    assert etcd.get("/mine") is None


def test_a_key_cannot_be_put_on_a_lease_that_is_gone(etcd: Etcd) -> None:
    lease = etcd.grant(60)
    etcd.revoke(lease)
    with pytest.raises(LeaseGone):
        etcd.commit([], [put("/mine", "", lease)])


def _assert_absent(etcd: Etcd, key: str) -> None:
    assert etcd.get(key) is None
