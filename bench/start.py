"""How soon the daemon serves when it starts with many attached, what it holds in memory, and a bridge that is full."""

from __future__ import annotations

import json

from bench.api import Container, bring_up, container, containers
from bench.client import ask
from bench.lab import Daemon, Lab
from bench.scale import Scale
from bench.table import Report, middle

_STARTS = 5
_PORTS = 1023  # of a bridge, all told
_WITHIN_MS = 1000.0


def measure(lab: Lab, report: Report, scale: Scale) -> None:
    """Fill a network, start again and again, and with 1000 attached fill the bridge to its last port."""
    table = report.table("Start and memory", "attached", "answers after ms", "all as wanted after ms", "memory MiB")
    table.note(f"Medians of {_STARTS} starts, from exec to the first answer of `GET /status`, and to its first 200.")
    daemon = lab.daemon()
    daemon.network("blue", "10.32.0.0/16")
    attached = 0
    for level in sorted({0, scale.levels[-1]}):
        bring_up(daemon, containers(daemon, lab.namespaces(level - attached), "blue"))
        attached = level
        memory = daemon.memory_kib / 1024
        starts = []
        for _ in range(_STARTS):
            daemon.stop()
            starts.append(daemon.start())
        answered, well = (middle([one[place] for one in starts]) * 1000 for place in (0, 1))
        table.row(str(level), answered, well, memory)
    report.at_most(f"start with {attached} attached: ms until it answers", answered, _WITHIN_MS, "ms")
    if attached >= 1000:
        _fill(lab, daemon, report, _PORTS - attached)
    else:
        table.note("The full bridge is tried with 1000 attached only.")


def _fill(lab: Lab, daemon: Daemon, report: Report, free: int) -> None:
    pids = lab.namespaces(free + 1)
    bring_up(daemon, containers(daemon, pids[:-1], "blue"))
    before = daemon.call("GET", "/containers")
    status, body = ask(daemon.private, _one_more(daemon, pids[-1]).up())
    message = json.loads(body).get("error", {}).get("message", "")
    passed = status == 507 and str(_PORTS) in message and daemon.call("GET", "/containers") == before
    report.holds("a full bridge is a clear error, and nothing is made", passed, f"{status}: {message}")


def _one_more(daemon: Daemon, pid: int) -> Container:
    return container(daemon, pid, "blue")
