"""What it costs that hosts come and go, with a thousand known and with two, in turns."""

from __future__ import annotations

import contextlib
import gc
import re
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

from bench.api import Container, bring_up, take_down
from bench.client import Failed, timed_ask
from bench.cluster import NETWORK, Etcd, make_network, part_of, wait_for_revision
from bench.lab import Daemon, Lab, inside, run
from bench.overlay import plain_container
from bench.scale import Scale
from bench.table import Report, middle, p95
from conetd.kernel.netlink import NETLINK_ROUTE, attributes

_FEW = 2
_LIMIT = 1.5
_PATIENCE_S = 60.0
_FIRST_NEWCOMER = 3000  # hosts behind this number join and leave
_RTMGRP_IPV4_ROUTE, _NEWROUTE, _DELROUTE, _RTA_DST = 0x40, 24, 25, 1  # linux/rtnetlink.h
_SO_RCVBUFFORCE = 33


@dataclass(slots=True)
class Side:
    """A daemon with its etcd, what it has on the kernel's routes, and what was measured."""

    etcd: Etcd
    daemon: Daemon
    routes: Routes
    known: int
    took: defaultdict[str, list[float]]


def measure(lab: Lab, report: Report, scale: Scale) -> None:
    """Have one daemon find two hosts and another a thousand, then let hosts join and leave at both."""
    with contextlib.ExitStack() as stack:
        few, many = (_side(lab, stack, known) for known in (_FEW, scale.hosts))
        _arrive(report, few, many)
        _idle(report, few, many, scale)
        _come_and_go(report, few, many, scale)
        _attach(lab, report, few, many, scale)
        _start(report, few, many)


def _side(lab: Lab, stack: contextlib.ExitStack, known: int) -> Side:
    host = lab.host()
    etcd = stack.enter_context(Etcd(lab, host))
    with inside(host.pid):
        routes = stack.enter_context(Routes())
    return Side(etcd, lab.daemon(host, etcd.settings), routes, known, defaultdict(list))


def _arrive(report: Report, few: Side, many: Side) -> None:
    table = report.table(
        "Hosts that are there already", "hosts known", "in force after ms", "ms each", "memory MiB", "was"
    )
    table.note(
        "From `POST /networks` on a host that is new until each of the others has its route, neighbour, forwarding "
        "entry and place in the filter."
    )
    for side in (few, many):
        before = side.daemon.memory_kib / 1024
        side.etcd.join(range(1, side.known + 1))
        started = time.perf_counter()
        make_network(side.daemon)
        took = side.routes.wait(come=map(part_of, range(1, side.known + 1))) - started
        _check(side, side.known)
        table.row(str(side.known), took * 1000, took * 1000 / side.known, side.daemon.memory_kib / 1024, before)


def _idle(report: Report, few: Side, many: Side, scale: Scale) -> None:
    table = report.table("Hosts, and nothing to do", "hosts known", "processor ms a second")
    before = [side.daemon.processor_s for side in (few, many)]
    time.sleep(scale.idle_s)
    for side, used in zip((few, many), before, strict=True):
        table.row(str(side.known), (side.daemon.processor_s - used) / scale.idle_s * 1000)


def _come_and_go(report: Report, few: Side, many: Side, scale: Scale) -> None:
    table = report.table(
        "One more host", "what", f"{few.known} known, p50 ms", "p95", f"{many.known} known, p50 ms", "p95", "ratio"
    )
    table.note(
        "From the commit in etcd, which is part of it, until the route is there, the last of what a host comes to, or "
        "until it is gone."
    )
    for number in range(_FIRST_NEWCOMER, _FIRST_NEWCOMER + scale.joins + 1):
        for side in (few, many) if number % 2 else (many, few):
            for what, tell in (("joins", side.etcd.join), ("leaves", side.etcd.leave)):
                started = time.perf_counter()
                revision = tell([number])
                part = [part_of(number)]
                seen = side.routes.wait(come=part) if what == "joins" else side.routes.wait(gone=part)
                if number > _FIRST_NEWCOMER:  # the first warms up
                    side.took[what].append((seen - started) * 1000)
                wait_for_revision(side.daemon, revision)
    for what in ("joins", "leaves"):
        ratio = middle(many.took[what]) / middle(few.took[what])
        table.row(
            what, *(one for side in (few, many) for one in (middle(side.took[what]), p95(side.took[what]))), ratio
        )
        report.at_most(f"a host {what} with {many.known} known / with {few.known}", ratio, _LIMIT)
    for side in (few, many):
        _check(side, side.known)


def _attach(lab: Lab, report: Report, few: Side, many: Side, scale: Scale) -> None:
    table = report.table("Attaching with hosts known", "hosts known", "attach p50 ms", "p95")
    pids = lab.namespaces(2 * scale.joins + 2)
    made: dict[int, list[Container]] = {}
    for place, side in enumerate((few, many)):
        first, *others = [plain_container(pid, NETWORK) for pid in pids[place::2]]
        bring_up(side.daemon, [first])
        made[side.known] = others
    gc.collect()
    gc.disable()
    for number in range(scale.joins):
        for side in (few, many) if number % 2 else (many, few):
            side.took["attach"].append(timed_ask(side.daemon.private, made[side.known][number].up()))
    gc.enable()
    for side in (few, many):
        take_down(side.daemon, made[side.known])
        table.row(str(side.known), middle(side.took["attach"]), p95(side.took["attach"]))
    ratio = middle(many.took["attach"]) / middle(few.took["attach"])
    report.at_most(f"attach with {many.known} hosts known / with {few.known}", ratio, _LIMIT)


def _start(report: Report, few: Side, many: Side) -> None:
    table = report.table("Start with hosts known", "hosts known", "answers after ms", "all as wanted after ms")
    for side in (few, many):
        starts = []
        for _ in range(3):
            side.daemon.stop()
            starts.append(side.daemon.start())
        table.row(str(side.known), *(middle([one[place] for one in starts]) * 1000 for place in (0, 1)))
        _check(side, side.known)


def _check(side: Side, hosts: int) -> None:
    """Raise Failed unless exactly so many hosts have all they need in the kernel."""
    host = side.daemon.host.pid
    link = next(name for name in re.findall(r"[^ :@]+", run(host, "ip", "-o", "link")) if name.startswith("cx"))
    found = {
        "routes": run(host, "ip", "route", "show", "dev", link).count(" via "),
        "neighbours": run(host, "ip", "neighbour", "show", "dev", link, "nud", "permanent").count("lladdr"),
        "forwarding entries": run(host, "bridge", "fdb", "show", "dev", link).count(" dst "),
        "senders in the filter": run(host, "nft", "list", "set", "inet", "conetd", "underlay4").count(". ee:ee:"),
    }
    if set(found.values()) != {hosts}:
        raise Failed(f"{hosts} hosts were wanted, the kernel has {found}\n{side.daemon.tail()}")


class Routes:
    """The IPv4 routes that come and go in the namespace it is opened in, from then on. To be closed."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._socket.settimeout(_PATIENCE_S)
        self._socket.bind((0, _RTMGRP_IPV4_ROUTE))
        self._seen: dict[bytes, tuple[int, float]] = {}

    def __enter__(self) -> Routes:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def wait(self, *, come: Iterable[IPv4Network] = (), gone: Iterable[IPv4Network] = ()) -> float:
        """When the last of these had come, or gone, on the clock of time.perf_counter. Raises Failed."""
        wanted = {one.network_address.packed: _NEWROUTE for one in come}
        wanted |= {one.network_address.packed: _DELROUTE for one in gone}
        last = 0.0
        for destination in [one for one in wanted if self._seen.get(one, (0, 0.0))[0] == wanted[one]]:
            last = max(last, self._seen[destination][1])
            del wanted[destination]
        while wanted:
            for destination, kind, now in self._next():
                if wanted.get(destination) == kind:
                    del wanted[destination]
                    last = now
        return last

    def _next(self) -> Iterator[tuple[bytes, int, float]]:
        try:
            received = self._socket.recv(1 << 16)
        except TimeoutError:
            raise Failed(f"routes did not come or go within {_PATIENCE_S:g} s") from None
        now = time.perf_counter()
        offset = 0
        while offset < len(received):
            size, kind = struct.unpack_from("=IH", received, offset)
            for attribute, value in attributes(received[offset + 16 : offset + size], 12):
                if attribute == _RTA_DST:
                    self._seen[bytes(value)] = kind, now
                    yield bytes(value), kind, now
            offset += (size + 3) & ~3
