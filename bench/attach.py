"""What one attach and one detach take: the floor, through the API, through the hook, taken in turns."""

from __future__ import annotations

import gc
import socket
import time
from collections import defaultdict

from bench.api import bring_up, containers
from bench.client import timed_ask, timed_keep_alive, timed_run
from bench.floor import Floor
from bench.hooks import BARE, hook
from bench.lab import Daemon, Lab, inside, rounds
from bench.scale import Scale
from bench.table import Report, Table, middle, p95

_KINDS = ("floor", "API", "API, keep-alive", "hook")
_GROUP = 7  # attaches of each kind before they are taken down again; three kinds of 7 fit a bridge that has 1000
Samples = dict[str, list[float]]


def measure(lab: Lab, report: Report, scale: Scale) -> None:
    """Measure with each number of containers attached before, the floor with as many of its own."""
    table = report.table(
        "One at a time",
        *("attached", "way", "attach p50 ms", "p95", "floor", "x floor", "detach p50 ms", "p95"),
    )
    table.note(
        "`x floor` is the ratio of medians. The ratio to hold is that of `API`: a new connection for each request, as "
        "the hook makes one. `floor` stands for the same work by hand with as many attached; detaches are not done at "
        "the floor. Each container has one published port and two net_out rules, which come with the request."
    )
    daemon = lab.daemon()
    daemon.network("blue", "10.32.0.0/16")
    floor_host = lab.host()
    floor = Floor(floor_host, lab.directory / "floor")
    attached = 0
    for level in scale.levels:
        bring_up(daemon, containers(daemon, lab.namespaces(level - attached), "blue"))
        with inside(floor_host.pid):
            for pid in lab.namespaces(level - attached):
                floor.attach(pid)
        attached = level
        took: Samples = defaultdict(list)
        for number in range(scale.groups):
            _group(lab, daemon, floor, floor_host.pid, took, number)
        _tell(report, table, level, took)
    floor.close()


def _group(lab: Lab, daemon: Daemon, floor: Floor, floor_host: int, took: Samples, number: int) -> None:
    pids = {kind: lab.namespaces(_GROUP) for kind in _KINDS}
    up = {kind: containers(daemon, pids[kind], "blue") for kind in _KINDS if kind != "floor"}
    hooks = {one.handle: (hook(daemon, one, "up"), hook(daemon, one, "down")) for one in up["hook"]}
    errors = daemon.directory / "hook-errors"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as kept:
        kept.connect(daemon.private)
        gc.collect()
        gc.disable()
        for place in range(_GROUP):
            for kind in rounds(("bare interpreter", *_KINDS), number + place):
                if kind == "floor":
                    with inside(floor_host):
                        started = time.perf_counter()
                        floor.attach(pids[kind][place])
                        took[kind].append((time.perf_counter() - started) * 1000)
                elif kind == "API":
                    took[kind].append(timed_ask(daemon.private, up[kind][place].up()))
                elif kind == "hook":
                    took[kind].append(timed_run(hooks[up[kind][place].handle][0], errors))
                elif kind == "bare interpreter":
                    took[kind].append(timed_run(BARE, errors))
                else:
                    took[kind].append(timed_keep_alive(kept, up[kind][place].up(close=False)))
        for place in range(_GROUP):
            for kind in rounds(_KINDS[1:], number + place):
                one = up[kind][place]
                if kind == "API":
                    milliseconds = timed_ask(daemon.private, one.down())
                elif kind == "hook":
                    milliseconds = timed_run(hooks[one.handle][1], errors)
                else:
                    milliseconds = timed_keep_alive(kept, one.down(close=False))
                took[f"{kind} down"].append(milliseconds)
        gc.enable()
    with inside(floor_host):
        floor.detach_latest(_GROUP)
    daemon.reaped()


def _tell(report: Report, table: Table, level: int, took: Samples) -> None:
    floor = middle(took["floor"])
    for kind in _KINDS:
        attach, detach = took[kind], took.get(f"{kind} down")
        table.row(
            str(level),
            kind,
            *(middle(attach), p95(attach), floor, middle(attach) / floor),
            *((middle(detach), p95(detach)) if detach else (None, None)),
        )
    bare = took["bare interpreter"]
    table.row(str(level), "python3 -I -S -c pass", middle(bare), p95(bare), None, None, None, None)
    api, by_hook = middle(took["API"]), middle(took["hook"])
    report.at_most(f"attach through the API / floor, {level} attached", api / floor, 3)
    report.at_most(
        f"attach through the hook / (through the API + bare interpreter), {level} attached",
        by_hook / (api + middle(bare)),
        1.5,
    )
    report.at_most(f"down / up through the API, {level} attached", middle(took["API down"]) / api, 1)
