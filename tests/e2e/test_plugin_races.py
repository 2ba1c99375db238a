"""Many calls of Guardian's network plugin at once, and calls while the daemon is restarted or crashes."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from contention import Hold, Seen, Watch
from guardian import Guardian, GuardianError
from played import (
    BLUE,
    BOTH,
    OUTSIDE,
    TCP4,
    UP,
    conetds_info,
    create,
    guardian_on,
    left,
    mapped,
    open_host,
    rule,
    run_plugin,
)
from pytest_netns import Netns, NetnsFactory
from relay import LossyRelay
from traffic import CLOSED, PATIENCE_S, REFUSED, SILENT, Services
from traffic import ask as reach
from world import World, eventually

WORKERS, ROUNDS, PORT = 25, 10, 7000
ACTIONS = ("up", "down", "net-in", "net-out", "bulk-net-out")


@pytest.fixture
def world(netns: NetnsFactory, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with open_host(netns, tmp_path, getattr(request, "param", "nftables")) as world:
        world.daemon.network()
        yield world


# One port that everybody wants


@BOTH
def test_a_port_that_twenty_five_want_is_never_that_of_two(world: World, services: Services, tmp_path: Path) -> None:
    before = left(world)
    containers = {f"w{number}": world.container(f"w{number}") for number in range(WORKERS)}
    for name, container in containers.items():
        services.open(container, name, "tcp", 8080)
    holds: list[Hold] = []
    refusals: list[Seen] = []

    def work(name: str, container: Netns) -> None:
        guardian = guardian_on(world, tmp_path / name)
        for _ in range(ROUNDS):
            begun = time.monotonic()
            try:
                wanted = [{"host_port": PORT, "container_port": 8080}]
                guardian.create(name, container.pid, properties=BLUE, netin=wanted)
            except GuardianError:
                said = guardian.calls[-2].stderr.decode()
                told = re.search(rf'host port {PORT}/tcp is held by container "(w\d+)"\n$', said)
                assert told is not None, said
                refusals.append(Seen(begun, time.monotonic(), told[1]))
                continue
            up = time.monotonic()
            watch.knock(PATIENCE_S)
            ending = time.monotonic()
            guardian.destroy(name)
            holds.append(Hold(name, begun, up, ending, time.monotonic()))

    with Watch(world, PORT) as watch, ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, containers, containers.values()))
    assert len(holds) + len(refusals) == WORKERS * ROUNDS
    assert len({hold.name for hold in holds}) > 1
    in_order = sorted(holds, key=lambda hold: hold.up)
    assert all(one.ending < other.up for one, other in itertools.pairwise(in_order))
    assert watch.most == {"listed": 1, "in the kernel": 1}
    for hold in holds:
        within = {one.name for one in watch.seen if hold.up <= one.start and one.end <= hold.ending}
        assert within - {SILENT} == {hold.name}  # what is slow to answer on a busy machine is no evidence
    for one in [one for one in watch.seen if one.name not in (REFUSED, SILENT, CLOSED)] + refusals:
        assert any(hold.name == one.name and hold.may_overlap(one.start, one.end) for hold in holds), one
    eventually(lambda: left(world) == before, "nothing is left")


@BOTH
def test_net_ins_at_once_get_a_port_each(world: World, guardian: Guardian, services: Services) -> None:
    web = create(world, guardian, "web")
    services.open(web, "web", "tcp", 8080)
    with ThreadPoolExecutor(WORKERS) as pool:
        pairs = list(pool.map(lambda _: guardian.net_in("web", 0, 8080), range(WORKERS)))
    assert sorted(pairs) == [(61001 + number, 8080) for number in range(WORKERS)]
    assert {reach(world.outside, TCP4, UP, port).split()[0] for port, _ in pairs} == {"web"}


# The daemon is away

MOMENTS_MS = (-150, -20, 0, 5, 10, 15, 25, 45)  # after the calls have begun, which take some 40 ms together


@BOTH
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_what_is_asked_during_a_restart_comes_late_and_is_done_once(
    world: World, guardian: Guardian, how: signal.Signals
) -> None:
    before = left(world)
    for handle in ("in", "out", "bulk"):
        create(world, guardian, handle)
    coming, going = world.container("coming"), world.container("going")
    late = 0
    for number, moment_ms in enumerate(MOMENTS_MS):
        guardian.create("going", going.pid, properties=BLUE, netin=[{}])
        added = [rule(8000 + number), rule(9000 + number)]
        acts: list[Callable[[], object]] = [
            lambda: guardian.create("coming", coming.pid, properties=BLUE, netin=[{}], netout_rules=[rule(80)]),
            lambda: guardian.destroy("going"),
            lambda: guardian.net_in("in", 0, 8080),
            lambda rules=added: guardian.net_out("out", rules[0]),  # type: ignore[misc]
            lambda rules=added: guardian.bulk_net_out("bulk", rules),  # type: ignore[misc]
        ]
        started = time.monotonic()
        late += end_amid(world, how, moment_ms, acts)
        assert time.monotonic() - started < 15
        world.daemon.wait_ready()
        for handle, count in (("in", number + 1), ("coming", 1)):
            ports = guardian.info(handle)["MappedPorts"]
            assert len(ports) == count
            assert conetds_info(world, handle)["MappedPorts"] == ports
        assert [ports_of(one) for one in net_out(world, "out")] == list(range(8000 + number, 7999, -1))
        assert len(net_out(world, "bulk")) == 2 * (number + 1)
        assert [ports_of(one) for one in net_out(world, "coming")] == [80]
        assert world.daemon.get("/containers/going").status == 404
        guardian.destroy("coming")
    assert late, "none of the calls met the restart"
    for handle in ("in", "out", "bulk"):
        guardian.destroy(handle)
    eventually(lambda: left(world) == before, "nothing is left")


def end_amid(world: World, how: signal.Signals, moment_ms: int, acts: list[Callable[[], object]]) -> int:
    """Make the calls at once, end the daemon so at that moment, and start it again; returns how many were late."""
    process = world.daemon.process
    assert process is not None
    calls: list[Future[object]] = []
    with ThreadPoolExecutor(len(acts)) as pool:
        steps = [lambda: calls.extend(pool.submit(act) for act in acts), lambda: process.send_signal(how)]
        first, second = steps if moment_ms >= 0 else steps[::-1]
        first()
        time.sleep(abs(moment_ms) / 1000)
        second()
        process.wait(30)
        late = sum(not call.done() for call in calls)
        world.daemon.start(wait=False)
        for call in calls:
            call.result()
    return late


def net_out(world: World, handle: str) -> list[Any]:
    told: list[Any] = world.daemon.get(f"/containers/{handle}/policy").body["networks"]["blue"]["policy"]["net_out"]
    return told


def ports_of(entry: Any) -> int:
    number: int = entry["ports"][0]["start"]
    return number


def act_of(guardian: Guardian, action: str, container: Netns) -> Callable[[], object]:
    """The call that makes Guardian run this action for the container `web`."""
    return {
        "up": lambda: guardian.create("web", container.pid, properties=BLUE, netin=[{}], netout_rules=[rule(80)]),
        "down": lambda: guardian.destroy("web"),
        "net-in": lambda: guardian.net_in("web", 0, 8080),
        "net-out": lambda: guardian.net_out("web", rule(80)),
        "bulk-net-out": lambda: guardian.bulk_net_out("web", [rule(80), rule(81)]),
    }[action]


@pytest.mark.parametrize("action", ACTIONS)
def test_an_answer_that_a_crash_swallowed_is_given_again_and_nothing_done_twice(
    world: World, guardian: Guardian, tmp_path: Path, action: str
) -> None:
    web = world.container("web")
    if action != "up":
        guardian.create("web", web.pid, properties=BLUE)
    done: list[Any] = []

    def crash() -> None:
        done.append(world.daemon.get("/containers").body)
        world.daemon.kill()
        world.daemon.start(wait=False)

    with LossyRelay(tmp_path / "relay.sock", world.daemon.private_socket, crash) as relay:
        guardian.extra_args = ["--socket", str(tmp_path / "relay.sock")]
        act_of(guardian, action, web)()
    world.daemon.wait_ready()
    lost, given = relay.answers
    assert json.loads(given) == json.loads(lost)
    assert [world.daemon.get("/containers").body] == done


@pytest.mark.parametrize(
    ("world", "action"),
    [
        *(("nftables", action) for action in ("up", "net-in", "net-out", "bulk-net-out")),
        *(("iptables", action) for action in ("up", "net-in")),
    ],
    indirect=["world"],
)
def test_what_a_crash_cut_off_between_store_and_kernel_is_completed_once(
    world: World, guardian: Guardian, services: Services, action: str
) -> None:
    before = left(world)
    web = world.container("web")
    services.open(web, "web", "tcp", 8080)
    cut = attempts = 0
    while cut < 2:
        attempts += 1
        assert attempts <= 15, "the crash comes too late each time"
        if action != "up":
            guardian.create("web", web.pid, properties=BLUE)
        with contextlib.closing(sqlite3.connect(world.daemon.database)) as db, ThreadPoolExecutor(1) as pool:
            call = pool.submit(act_of(guardian, action, web))
            while not unfinished(db) and not call.done():
                pass
            world.daemon.kill()
            cut += unfinished(db)
            world.daemon.start(wait=False)
            call.result()
        world.daemon.wait_ready()
        ports = guardian.info("web")["MappedPorts"]
        assert len(ports) == (action in ("up", "net-in"))
        assert conetds_info(world, "web")["MappedPorts"] == ports
        if action == "net-in":
            assert reach(world.outside, TCP4, UP, ports[0]["HostPort"]) == f"web {OUTSIDE}"
        else:
            wanted = [81, 80] if action == "bulk-net-out" else [80]
            assert [ports_of(one) for one in net_out(world, "web")] == wanted
        guardian.destroy("web")
    eventually(lambda: left(world) == before, "nothing is left")


def unfinished(db: sqlite3.Connection) -> int:
    """How many attachments are wanted otherwise than the kernel is known to have them."""
    count: int = db.execute("SELECT count(*) FROM attachments WHERE rev != applied_rev AND leaving = 0").fetchone()[0]
    return count


# Up and down at once

LAGS_MS = (-12, -8, -4, -2, 0, 2, 4, 8, 12)  # how much later the down starts; either takes some 10 ms


@BOTH
def test_after_up_and_down_at_once_a_container_is_wholly_the_one_or_the_other(
    world: World, guardian: Guardian, services: Services
) -> None:
    before = left(world)
    handles = {f"c{number}": world.container(f"c{number}") for number in range(4)}
    for handle, container in handles.items():
        services.open(container, handle, "tcp", 8080)
    ended: list[str] = []

    def race(handle: str) -> None:
        body = {"Pid": handles[handle].pid, "Properties": {"attach_to": "blue"}, "netin": [{"container_port": 8080}]}
        for lag_ms in LAGS_MS * 2:
            with ThreadPoolExecutor(2) as pool:
                up = pool.submit(later, -lag_ms, guardian, "up", handle, json.dumps(body).encode())
                down = pool.submit(later, lag_ms, guardian, "down", handle, b"null")
                (up_began, up_ended, told), (down_began, down_ended, _) = up.result(), down.result()
            state = state_of(world, handle, told, handles[handle])
            ended.append(state)
            if up_ended < down_began:
                assert state == "down"
            if down_ended < up_began:
                assert state == "up"
            if state == "up":
                assert run_plugin(guardian, "down", handle, b"null").returncode == 0

    with ThreadPoolExecutor(len(handles)) as pool:
        list(pool.map(race, handles))
    assert set(ended) == {"up", "down"}
    eventually(lambda: left(world) == before, "nothing is left")


def test_a_down_that_is_repeated_while_its_links_go_takes_nothing_from_the_next_life(world: World) -> None:
    daemon = world.daemon
    web, other = world.container("web"), world.container("other")

    def up(handle: str, container: Netns) -> str:
        answer = daemon.call(
            "POST", f"/containers/{handle}/up", {"Pid": container.pid, "Properties": BLUE}, private=True
        )
        assert answer.status == 200, answer
        told: str = answer.body["properties"]["garden.network.container-ip"]
        return told

    with contextlib.closing(sqlite3.connect(daemon.database)) as db:
        for _ in range(5):
            up("web", web)
            assert daemon.down("web").status == 200
            while "eth0" in [name for _, name in web.call(socket.if_nameindex)]:
                pass
            assert daemon.down("web").status == 200  # what is left of it is just being removed
            while db.execute("SELECT count(*) FROM attachments").fetchone()[0]:
                pass
            address = up("web", web)
            eventually(lambda: daemon.get("/status").body["removals_pending"] == 0, "all has been removed")
            assert up("other", other) != address
            assert daemon.down("other").status == daemon.down("web").status == 200
            eventually(lambda: daemon.get("/status").body["removals_pending"] == 0, "all has been removed")


def later(lag_ms: int, guardian: Guardian, action: str, handle: str, stdin: bytes) -> tuple[float, float, Any]:
    """Run the plugin after that long; returns when it began and ended, and what it answered."""
    time.sleep(max(lag_ms, 0) / 1000)
    began = time.monotonic()
    result = run_plugin(guardian, action, handle, stdin)
    assert result.returncode == 0, result.stderr
    return began, time.monotonic(), json.loads(result.stdout)


def state_of(world: World, handle: str, told: Any, container: Netns) -> str:
    """`up` or `down`; the container must be all of it."""
    [port] = [one["host_port"] for one in told["mapped_ports"]]
    answer = world.daemon.get(f"/containers/{handle}")
    if answer.status == 404:
        assert reach(world.outside, TCP4, UP, port, patience=0.5) != f"{handle} {OUTSIDE}"
        return "down"
    assert answer.body["state"] == "up"
    assert [one["as_wanted"] for one in answer.body["attachments"]] == [True]
    assert conetds_info(world, handle)["MappedPorts"] == [mapped(port, 8080)]
    assert reach(world.outside, TCP4, UP, port) == f"{handle} {OUTSIDE}"
    return "up"
