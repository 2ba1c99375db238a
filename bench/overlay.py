"""What an attach to a network across hosts takes, beside one to a bridge of the same daemon, taken in turns."""

from __future__ import annotations

import gc
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from bench.api import Container, bring_up, take_down
from bench.client import timed_ask
from bench.cluster import NETWORK, VXLAN, Etcd, make_network
from bench.lab import Daemon, Lab, rounds
from bench.scale import Scale
from bench.table import Report, Table, middle, p95

_BRIDGE = "blue"
_CONFIGURED, _NEW_LABELS = "vxlan, configured before", "vxlan, labels nobody has"
_GROUP = 10  # attaches of each kind before they are taken down again
_LIMIT = 1.5
_OUT = [
    {
        "protocol": 1,
        "networks": [{"start": "198.51.100.7", "end": "198.51.100.7"}],
        "ports": [{"start": 443, "end": 443}],
    },
    {"protocol": 2, "networks": [{"start": "203.0.113.7", "end": "203.0.113.7"}], "ports": [{"start": 53, "end": 53}]},
]
_IN = {"direction": "ingress", "peer": {"labels": {"app": "web"}}, "protocol": 1, "ports": {"start": 80, "end": 80}}
_numbers = itertools.count()


def measure(lab: Lab, report: Report, scale: Scale) -> None:
    """Measure with each number of containers attached to either network before, with and without IPv6 and etcd."""
    table = report.table(
        "Attaching across hosts", "etcd", "IP", "attached to each", "way", "attach p50 ms", "p95", "x bridge"
    )
    table.note(
        "Through the API, a new connection for each request. Each container has two net_out rules, on vxlan an ingress "
        "rule besides. The ratio to hold is that of `vxlan`: a container that nobody configured, whose policy the "
        "daemon asks etcd for. One that has been configured needs nothing of etcd, unless its labels are new to all "
        "hosts."
    )
    pool = lab.namespaces(2 * scale.spans[-1] + 4 * _GROUP)
    for ipv6 in (False, True):
        host = lab.host()
        _one(lab.daemon(host, VXLAN), pool, report, table, scale, "-", ipv6=ipv6)
    for ipv6 in (False, True):
        host = lab.host()
        with Etcd(lab, host) as etcd:
            _one(lab.daemon(host, etcd.settings), pool, report, table, scale, "1 member", ipv6=ipv6)


def _one(
    daemon: Daemon, pool: Sequence[int], report: Report, table: Table, scale: Scale, etcd: str, *, ipv6: bool
) -> None:
    bridge: dict[str, Any] = {"subnet": "10.32.0.0/16", "deny_networks": ["0.0.0.0/0"]}
    vxlan: dict[str, Any] = {"host_prefix": 20, "deny_networks": ["0.0.0.0/0"]}
    if ipv6:
        bridge |= {"subnet6": "fd00:32::/64"}
        vxlan |= {"subnet6": "fd00:128::/64"}
    daemon.call(
        *("POST", "/networks"),
        {"name": _BRIDGE, "type": "bridge", "config": bridge, "default_policy": {"net_out": _OUT}},
    )
    make_network(daemon, default_policy={"net_out": _OUT, "policies": [_IN]}, **vxlan)
    kinds = ["bridge", "vxlan", *([] if etcd == "-" else [_CONFIGURED, _NEW_LABELS])]
    spare, *_ = room = pool[-4 * _GROUP :]
    first = _container(spare, "vxlan")
    bring_up(daemon, [first])  # the identity of those without labels is decided on
    take_down(daemon, [first])
    standing: list[Container] = []
    for level in scale.spans:
        more = pool[len(standing) : 2 * level]
        added = [_container(pid, kind) for pid, kind in zip(more, itertools.cycle(("bridge", "vxlan")), strict=False)]
        bring_up(daemon, added)
        standing += added
        took: defaultdict[str, list[float]] = defaultdict(list)
        for number in range(scale.groups // 2):
            _group(daemon, iter(room), kinds, took, number)
        version = "4 and 6" if ipv6 else "4"
        for kind in kinds:
            ratio = middle(took[kind]) / middle(took["bridge"])
            table.row(etcd, version, str(level), kind, middle(took[kind]), p95(took[kind]), ratio)
            if kind == "vxlan":
                where = f"IPv{version}, {'with etcd' if etcd != '-' else 'no etcd'}, {level} attached to each"
                report.at_most(f"attach on vxlan / on bridge, {where}", ratio, _LIMIT)
    take_down(daemon, standing)
    daemon.stop()


def _group(
    daemon: Daemon, room: Iterator[int], kinds: Sequence[str], took: defaultdict[str, list[float]], number: int
) -> None:
    made = {kind: [_container(next(room), kind) for _ in range(_GROUP)] for kind in kinds}
    for kind in kinds:
        for one in made[kind]:
            _configure(daemon, one, kind)
    gc.collect()
    gc.disable()
    for place in range(_GROUP):
        for kind in rounds(kinds, number + place):
            took[kind].append(timed_ask(daemon.private, made[kind][place].up()))
    gc.enable()
    take_down(daemon, [one for some in made.values() for one in some])


def _configure(daemon: Daemon, container: Container, kind: str) -> None:
    if kind in (_CONFIGURED, _NEW_LABELS):
        labels = {"new": container.handle} if kind == _NEW_LABELS else {}
        daemon.call("PUT", f"/containers/{container.handle}/config", {"attach_to": [NETWORK], "labels": labels})


def _container(pid: int, kind: str) -> Container:
    return plain_container(pid, _BRIDGE if kind == "bridge" else NETWORK)


def plain_container(pid: int, network: str) -> Container:
    """One without published ports and rules of its own, which types without Garden's calls have not."""
    document = {"Pid": pid, "Properties": {"network.attach_to": network}}
    return Container(f"span-{next(_numbers)}", json.dumps(document).encode())
