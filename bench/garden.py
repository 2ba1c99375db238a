"""What Garden's calls take: through Guardian's network plugin, a process each time, and through the API, in turns."""

from __future__ import annotations

import gc
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.client import request, timed_ask, timed_run
from bench.crowd import document
from bench.hooks import BARE, encode, plugin
from bench.lab import Daemon, Lab, rounds
from bench.scale import Scale
from bench.table import Report, middle, p95

_RULES = 100  # that come with an `up`, or with a bulk call
_MANY = 3000  # in one bulk call: Garden's integration tests ask for as many
_LIMIT = 1.5
_GROUP = 7  # containers of each kind that are up before all go down again
_NETWORK = "blue"
_PORT = 8080
_HOST, _CONTAINER = "192.0.2.1", "10.32.0.2"  # what the plugin is told, and knows better
_PROCESS, _API = "process", "API"

_BARE = "python3 -I -S -c pass"
_UP, _FULL_UP, _DOWN = "up", f"up, {_RULES} rules and a port", f"down, {_RULES} rules and a port"
_NET_IN, _NET_OUT, _BULK = "net-in", "net-out", f"bulk-net-out, {_RULES} rules"
_INFO, _METRICS = "info", "metrics"
_LONG_BULK, _ONE_MORE = f"bulk-net-out, {_MANY} rules", f"net-out, beside {_MANY} rules"
_ROWS = (_BARE, _UP, _FULL_UP, _NET_IN, _NET_OUT, _BULK, _DOWN, _INFO, _METRICS, _LONG_BULK, _ONE_MORE)

Samples = dict[tuple[str, str], list[float]]
"""What was done and in which way: milliseconds of each time."""
JSON = dict[str, Any]
Timed = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Subject:
    """One container, the way its calls are made, and each of them by its name in the table, ready to be timed."""

    way: str
    up: str
    calls: dict[str, Timed]


def measure(lab: Lab, report: Report, scale: Scale) -> None:
    """Measure one call at a time, on a host where no other containers are up."""
    table = report.table("Garden's calls", "what", "process p50 ms", "p95", "API p50 ms", "p95")
    table.note(
        "`process` is the hook, started as Guardian starts its network plugin; `API` is a new connection on the "
        "private socket. Every container and every call brings rules of its own. net-in, net-out and bulk-net-out are "
        "asked for in this order, each once for a container."
    )
    daemon = lab.daemon()
    daemon.network(_NETWORK, "10.32.0.0/16")
    pids = lab.namespaces(4 * _GROUP)
    variants = itertools.count(1)
    took: Samples = defaultdict(list)
    for number in range(scale.groups + 1):
        _group(daemon, pids, variants, number, took)
        if number == 0:
            took.clear()  # the first warms up
    for number in range(scale.bulks + 1):
        _long(daemon, pids[0], variants, took)
        if number == 0:
            del took[_LONG_BULK, _API], took[_ONE_MORE, _API]
    for what in _ROWS:
        columns = [took.get((what, way)) for way in (_PROCESS, _API)]
        table.row(what, *(figure for one in columns for figure in ((middle(one), p95(one)) if one else (None, None))))
    ratio = middle(took[_FULL_UP, _PROCESS]) / middle(took[_UP, _PROCESS])
    report.at_most(f"up through the plugin with {_RULES} rules and a port / without", ratio, _LIMIT)


def _group(daemon: Daemon, pids: Sequence[int], variants: Iterator[int], number: int, took: Samples) -> None:
    """Containers of each kind come up, are asked for everything, and go down; then the namespaces are free again."""
    free = iter(pids)
    kinds = [(way, up) for way in (_PROCESS, _API) for up in (_UP, _FULL_UP)]
    places = [[_subject(daemon, next(free), next(variants), *kind) for kind in kinds] for _ in range(_GROUP)]
    bare = partial(timed_run, BARE, daemon.directory / "hook-errors")
    gc.collect()
    gc.disable()
    for turn, subjects in enumerate(places, number):
        took[_BARE, _PROCESS].append(bare())
        for one in rounds(subjects, turn):
            took[one.up, one.way].append(one.calls[one.up]())
    for what in (_NET_IN, _NET_OUT, _BULK):
        for turn, subjects in enumerate(places, number):
            for one in rounds([one for one in subjects if one.up == _UP], turn):
                took[what, one.way].append(one.calls[what]())
    for what in (_INFO, _METRICS):
        for subjects in places:
            for one in subjects:
                if one.way == _API:
                    took[what, one.way].append(one.calls[what]())
    for turn, subjects in enumerate(places, number):
        for one in rounds(subjects, turn):
            took[_DOWN, one.way].append(one.calls[_DOWN]())
    gc.enable()
    daemon.reaped()


def _long(daemon: Daemon, pid: int, variants: Iterator[int], took: Samples) -> None:
    """A container gets a long list, then one rule more."""
    handle = f"garden-{next(daemon.keys)}"
    calls = _by_api(daemon, handle, _UP, _body(pid), _rules(next(variants), _MANY + 1))
    calls[_UP]()
    gc.collect()
    gc.disable()
    took[_LONG_BULK, _API].append(calls[_BULK]())
    took[_ONE_MORE, _API].append(calls[_NET_OUT]())
    gc.enable()
    calls[_DOWN]()
    daemon.reaped()


def _subject(daemon: Daemon, pid: int, variant: int, way: str, up: str) -> Subject:
    handle = f"garden-{next(daemon.keys)}"
    rules = _rules(variant, _RULES + 1)
    body = _body(pid)
    if up == _FULL_UP:
        body |= {"netout_rules": rules[1:], "netin": [{"host_port": 0, "container_port": _PORT}]}
    calls = _by_process if way == _PROCESS else _by_api
    return Subject(way, up, calls(daemon, handle, up, body, rules))


def _by_process(daemon: Daemon, handle: str, up: str, body: JSON, rules: list[JSON]) -> dict[str, Timed]:
    """What Guardian calls its plugin for. The rest of `rules` goes in bulk after the first alone."""
    inputs: dict[str, tuple[str, JSON | None]] = {
        up: ("up", body),
        _NET_IN: ("net-in", {"HostIP": _HOST, "HostPort": 0, "ContainerIP": _CONTAINER, "ContainerPort": _PORT}),
        _NET_OUT: ("net-out", {"container_ip": _CONTAINER, "netout_rule": rules[0]}),
        _BULK: ("bulk-net-out", {"container_ip": _CONTAINER, "netout_rules": rules[1:]}),
        _DOWN: ("down", None),
    }
    errors = daemon.directory / "hook-errors"
    return {
        name: partial(timed_run, plugin(daemon, handle, action, given), errors)
        for name, (action, given) in inputs.items()
    }


def _by_api(daemon: Daemon, handle: str, up: str, body: JSON, rules: list[JSON]) -> dict[str, Timed]:
    """The same on the private socket, and what Guardian answers from its own memory."""
    garden = f"/garden/containers/{handle}"
    requests = {
        up: ("POST", f"/containers/{handle}/up", body),
        _NET_IN: ("POST", f"{garden}/net/in", {"container_port": _PORT}),
        _NET_OUT: ("POST", f"{garden}/net/out", rules[0]),
        _BULK: ("POST", f"{garden}/net/out/bulk", rules[1:]),
        _DOWN: ("POST", f"/containers/{handle}/down", None),
        _INFO: ("GET", f"{garden}/info", None),
        _METRICS: ("GET", f"{garden}/metrics", None),
    }
    return {
        name: partial(timed_ask, daemon.private, request(method, path, b"" if given is None else encode(given)))
        for name, (method, path, given) in requests.items()
    }


def _body(pid: int) -> JSON:
    """What Guardian says at `up`: it forwards the property network.attach_to by this name."""
    return {"Pid": pid, "Properties": {"attach_to": _NETWORK}}


def _rules(variant: int, count: int) -> list[JSON]:
    """That many rules; no two variants have one in common."""
    rules: list[JSON] = document(count + 1, variant, variant)["net_out"]
    return rules[1:]  # the first is the same in all
