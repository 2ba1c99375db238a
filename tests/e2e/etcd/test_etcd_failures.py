"""Members of etcd that die, stand still or are cut off, and what a client of theirs notices."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from etcd import EtcdCluster, Seen, eventually, take
from pytest_netns import Netns, NetnsFactory

from conetd.cluster.errors import EtcdDown
from conetd.cluster.etcd import Etcd
from conetd.cluster.messages import absent, put
from conetd.errors import Unavailable

TIMEOUT_S = 1.0  # as the fixture client has it


def test_nobody_notices_when_one_of_three_members_dies(trio: EtcdCluster, client: Etcd) -> None:
    for victim in (trio.leader(), (trio.leader() + 1) % 3):
        client.commit([], [put("/a", "before")])
        trio.kill(victim)
        client.commit([], [put("/a", f"without {victim}")])
        found = client.get("/a")
        assert found is not None
        assert found.value == f"without {victim}"
        trio.start(victim)


def test_the_member_that_is_asked_may_die_under_the_client(trio: EtcdCluster, client: Etcd) -> None:
    client.commit([], [put("/a", "")])
    asked = trio.endpoints.index(client.status().endpoint)
    trio.kill(asked)
    assert client.get("/a") is not None
    assert client.status().endpoint != trio.endpoints[asked]


def test_a_member_that_stands_still_costs_one_timeout_and_then_none(
    home: Netns, trio: EtcdCluster, client: Etcd
) -> None:
    client.commit([], [put("/a", "")])
    frozen = client.status().endpoint
    trio.freeze(trio.endpoints.index(frozen))
    eventually(lambda: client.get("/a"), catch=EtcdDown)  # an election, if it was the leader

    def passed_over() -> None:
        before = _connections(home, frozen)
        for _ in range(5):
            client.get("/a")
        assert _connections(home, frozen) == before

    eventually(passed_over)  # a member that loses its leader meanwhile has the next one asked


def _connections(home: Netns, endpoint: str) -> int:
    """How many have been opened to a member that stands still: it closes none, and a fresh one is needed to ask it."""
    listed = home.run("ss", "-Htan", "state", "connected", f"sport = :{endpoint.rpartition(':')[2]}").stdout
    return len(listed.splitlines())


def test_when_all_members_are_dead_the_error_names_each_with_its_reason(trio: EtcdCluster, client: Etcd) -> None:
    trio.kill()
    with pytest.raises(EtcdDown) as caught:
        client.get("/a")
    assert caught.value.status == Unavailable.status
    assert str(caught.value).startswith("etcd does not answer: ")
    for endpoint in trio.endpoints:
        assert f"{endpoint}: Connection refused" in str(caught.value)


def test_that_all_members_are_dead_is_known_at_once(trio: EtcdCluster, client: Etcd) -> None:
    trio.kill()
    assert _seconds_until_down(lambda: client.get("/a")) < TIMEOUT_S


def test_a_member_without_the_others_is_down_in_bounded_time(trio: EtcdCluster, client: Etcd) -> None:
    trio.kill(0, 1)
    assert _seconds_until_down(lambda: client.commit([], [put("/a", "")])) < 3 * TIMEOUT_S + 1


def test_a_member_without_the_others_says_that_it_has_no_leader(trio: EtcdCluster, client: Etcd) -> None:
    trio.kill(0, 1)

    def said() -> None:
        with pytest.raises(EtcdDown, match=f"{trio.endpoints[2]}: etcdserver: no leader"):
            client.commit([], [put("/a", "")])

    eventually(said)  # it takes it a moment to know
    status = client.status()
    assert (status.endpoint, status.leader) == (trio.endpoints[2], False)


def test_members_that_all_stand_still_are_down_in_bounded_time(trio: EtcdCluster, client: Etcd) -> None:
    client.get("/a")
    trio.freeze()
    assert _seconds_until_down(lambda: client.get("/a")) < 3 * TIMEOUT_S + 1


def test_members_that_come_back_are_found_again_with_what_they_knew(trio: EtcdCluster, client: Etcd) -> None:
    client.commit([], [put("/a", "kept")])
    cluster_id = client.status().cluster_id
    trio.kill()
    with pytest.raises(EtcdDown):
        client.get("/a")
    trio.start()
    found = client.get("/a")
    assert found is not None
    assert found.value == "kept"
    assert client.status().cluster_id == cluster_id


def test_members_that_are_stopped_in_order_are_found_again(trio: EtcdCluster, client: Etcd) -> None:
    client.commit([], [put("/a", "kept")])
    for member in range(3):
        trio.stop(member)
        assert client.get("/a") is not None
        trio.start(member)


def test_a_lease_outlives_the_member_that_granted_it(trio: EtcdCluster, client: Etcd) -> None:
    lease = client.grant(60)
    trio.kill(trio.endpoints.index(client.status().endpoint))
    assert client.keep_alive(lease) > 0


def test_a_watch_ends_with_its_member_and_goes_on_at_another_without_loss(trio: EtcdCluster, client: Etcd) -> None:
    first = client.commit([], [put("/w/0", "")]).revision
    told: list[str] = []
    revision = first
    numbers = iter(range(1, 4))
    ends = 0
    while len(told) < 4:
        with client.watch("/w/", revision) as watch, contextlib.suppress(EtcdDown):
            while len(told) < 4:
                told += [event.key for event in take(watch)]
                revision = watch.next_revision
                if len(told) == 2:
                    trio.kill(trio.endpoints.index(client.status().endpoint))
                    ends += 1
                if (number := next(numbers, 0)) != 0:
                    client.commit([], [put(f"/w/{number}", "")])
    assert ends == 1
    assert told == ["/w/0", "/w/1", "/w/2", "/w/3"]


@pytest.mark.parametrize("fault", ["freeze", "lone"])
def test_a_watch_that_is_silent_because_its_member_is_ill_ends(
    home: Netns, trio: EtcdCluster, client: Etcd, fault: str
) -> None:
    client.get("/a")
    with client.watch("/w") as watch:
        seen = Seen(watch, home)
        member = trio.endpoints.index(client.status().endpoint)
        if fault == "freeze":
            trio.freeze(member)
        else:
            trio.kill(*({0, 1, 2} - {member}))
        assert seen.ended.wait(4 * TIMEOUT_S + 2)
        assert isinstance(seen.error, EtcdDown)
        assert trio.endpoints[member] in str(seen.error)


def test_a_cut_network_is_noticed_by_a_watch_and_by_calls(netns: NetnsFactory, tmp_path: Path) -> None:
    here, there = netns.make("here"), netns.make("there")
    here.connect(there, "192.0.2.1/24", "192.0.2.2/24")
    cluster = EtcdCluster([(there, "192.0.2.2")], tmp_path)
    cluster.start()
    with here.inside(), Etcd(cluster.endpoints, timeout_s=TIMEOUT_S) as client, client.watch("/w") as watch:
        seen = Seen(watch, here)
        cluster.cut()
        with pytest.raises(EtcdDown, match="no answer within 1 s"):
            client.get("/a")
        assert seen.ended.wait(4 * TIMEOUT_S + 2)
        cluster.mend()
        client.commit([], [put("/a", "")])
    assert isinstance(seen.error, EtcdDown)


def test_a_commit_after_a_restart_of_its_member_is_no_repetition(home: Netns, tmp_path: Path) -> None:
    cluster = EtcdCluster.on_loopback(home, tmp_path, 1)
    cluster.start()
    with home.inside(), Etcd(cluster.endpoints, timeout_s=TIMEOUT_S) as client:
        client.get("/a")
        cluster.stop()
        cluster.start()
        assert not client.commit([], [put("/a", "")]).repeated


def test_a_commit_whose_answer_was_lost_says_that_it_was_repeated(trio: EtcdCluster, client: Etcd) -> None:
    """A member that stands still gets the commit, and carries it out when it goes on."""
    client.get("/a")
    asked = trio.endpoints.index(client.status().endpoint)
    trio.freeze(asked)
    done = client.commit([absent("/a")], [put("/a", "")])
    trio.thaw(asked)
    assert done.repeated


def _seconds_until_down(call: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(EtcdDown):
        call()
    return time.monotonic() - began
