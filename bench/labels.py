"""How soon a policy with a label that a thousand identities have is in force, and what each one more of them costs."""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

from bench.api import bring_up
from bench.client import Failed, request, timed_ask
from bench.cluster import NETWORK, Etcd, labels_of, make_network, wait_for_revision
from bench.lab import Daemon, Lab, inside
from bench.overlay import plain_container
from bench.scale import Scale
from bench.table import Report, middle, p95
from bench.traffic import PORT
from conetd.kernel.netlink import attributes

_TIMES = 15
_TIMES_OF_MANY = 5
_PATIENCE_S = 60.0
_LIMIT = 1.5  # of what the same number of addresses takes
_SENDER, _RECEIVER = "sender", "receiver"
_STEP = 2  # between numbers, so that they are no ranges: those of one application seldom follow each other
_NETLINK_NETFILTER, _GETGEN, _GEN_ID = 12, 10 << 8 | 16, 1  # linux/netfilter/nf_tables.h


@dataclass(frozen=True, slots=True)
class Place:
    """A daemon with its etcd, and a container that may reach another if a policy lets its label in."""

    etcd: Etcd
    daemon: Daemon
    sender: int
    address: str


def measure(lab: Lab, report: Report, scale: Scale) -> None:
    """Replace a policy with more and more identities that it means, then have these come one by one."""
    host = lab.host()
    with Etcd(lab, host) as etcd:
        daemon = lab.daemon(host, etcd.settings)
        make_network(daemon, host_prefix=20)
        place = _pair(lab, etcd, daemon)
        _policies(report, place, scale)
        daemon.stop()
    host = lab.host()
    with Etcd(lab, host) as etcd:
        daemon = lab.daemon(host, etcd.settings)
        make_network(daemon, host_prefix=20)
        with _Filter(daemon) as watched:
            _one_by_one(lab, report, etcd, daemon, watched, scale)


def _pair(lab: Lab, etcd: Etcd, daemon: Daemon) -> Place:
    """A sender with the first of the identities, and a receiver."""
    wait_for_revision(daemon, etcd.identify([_number(0)]))
    sender, receiver = lab.namespaces(2)
    config = {"attach_to": [NETWORK], "labels": dict(labels_of(_number(0)))}
    daemon.call("PUT", f"/containers/{_SENDER}/config", config)
    _up(daemon, _SENDER, sender)
    address = _up(daemon, _RECEIVER, receiver)
    return Place(etcd, daemon, sender, address)


def _policies(report: Report, place: Place, scale: Scale) -> None:
    table = report.table(
        "A policy with a label",
        "identities that have it",
        "in force after p50 ms",
        "p95",
        "as many addresses p50 ms",
        "ratio",
    )
    table.note(
        "From `PUT` to its answer, which is when the kernel holds the policy and etcd has it, too. Beside it a policy "
        "that lets in as many single addresses. Between them each is replaced by one that lets in nobody."
    )
    known = 1
    for wanted in sorted({1, scale.identities // 10, scale.identities}):
        wait_for_revision(place.daemon, place.etcd.identify(map(_number, range(known, wanted))))
        known = wanted
        took: dict[str, list[float]] = {"label": [], "addresses": []}
        for number in range(_TIMES + 1):
            for what, policy in (("label", _web(number)), ("addresses", _addresses(wanted, number))):
                milliseconds = timed_ask(place.daemon.public, _put(policy))
                if number:
                    took[what].append(milliseconds)
                timed_ask(place.daemon.public, _put({}))
        label, addresses = middle(took["label"]), middle(took["addresses"])
        table.row(str(wanted), label, p95(took["label"]), addresses, label / addresses)
    report.at_most(f"a policy with a label of {known} identities / with as many addresses", label / addresses, _LIMIT)
    before = _reaches(place)
    timed_ask(place.daemon.public, _put(_web(0)))
    after = _reaches(place)
    found = f"{'let in' if before else 'kept out'} before, {'let in' if after else 'kept out'} after"
    report.holds(
        "one of those with the label is let in once the answer is there, and not before", after and not before, found
    )


def _one_by_one(lab: Lab, report: Report, etcd: Etcd, daemon: Daemon, watched: _Filter, scale: Scale) -> None:
    table = report.table(
        "One identity more",
        *("containers with the policy", "identities before", "in force after p50 ms", "p95"),
        *("then as many at once", "all in force after ms", "processor ms each"),
    )
    table.note(
        "From the commit in etcd, which is part of it, until all policies that mean it let it in. `at once` is one "
        "commit after the other, without waiting."
    )
    policed = 0
    next_ = 0
    daemon.call("PUT", f"/networks/{NETWORK}/default_policy", _web(0))
    for containers in (1, scale.judged):
        pids = lab.namespaces(containers - policed)
        bring_up(daemon, [plain_container(pid, NETWORK) for pid in pids])
        policed = containers
        for _ in range(2):
            before, took = next_, []
            for _ in range(_TIMES if containers == 1 else _TIMES_OF_MANY):
                before_it = watched.generation
                started = time.perf_counter()
                revision = etcd.identify([_number(next_)])
                watched.wait(before_it)
                took.append((time.perf_counter() - started) * 1000)
                wait_for_revision(daemon, revision)
                next_ += 1
            more = scale.identities // 4
            started, used = time.perf_counter(), daemon.processor_s
            for _ in range(more):
                revision = etcd.identify([_number(next_)])
                next_ += 1
            wait_for_revision(daemon, revision)
            seconds, used = time.perf_counter() - started, daemon.processor_s - used
            table.row(
                *(str(containers), str(before), middle(took), p95(took), str(more), seconds * 1000, used / more * 1000)
            )


class _Filter:
    """How often the filter of a daemon's host has changed. To be closed, which takes milliseconds."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        with inside(daemon.host.pid):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)

    def __enter__(self) -> _Filter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    @property
    def generation(self) -> bytes:
        """Stands for the last change."""
        self._socket.send(struct.pack("=IHHIIBBH", 20, _GETGEN, 1, 0, 0, 0, 0, 0))
        received = self._socket.recv(1 << 12)
        return next(bytes(value) for kind, value in attributes(received[16:], 4) if kind == _GEN_ID)

    def wait(self, before: bytes) -> None:
        """Return when there has been a change since, and all that goes with it is in force. Raises Failed."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.generation == before:
            if time.monotonic() > deadline:
                raise Failed(f"the filter has not changed within {_PATIENCE_S:g} s\n{self._daemon.tail()}")
            time.sleep(0.0005)
        # The kernel is changed by one thread: whatever it is asked now is answered when it is through with this.
        timed_ask(self._daemon.private, request("POST", "/containers/nobody/down", b""))


def _number(place: int) -> int:
    return 10 + place * _STEP


def _web(variant: int) -> dict[str, Any]:
    """Lets everything with the label in; two variants differ in a port of no interest."""
    ports = [{"start": PORT, "end": PORT}, {"start": 20000 + variant, "end": 20000 + variant}]
    entry = {"direction": "ingress", "peer": {"labels": {"app": "web"}}, "protocol": 1, "ports": ports}
    return {"policies": [entry]}


def _addresses(count: int, variant: int) -> dict[str, Any]:
    ports = [{"start": PORT, "end": PORT}, {"start": 20000 + variant, "end": 20000 + variant}]
    return {
        "policies": [
            {"direction": "ingress", "peer": {"cidr": f"198.18.{number >> 7}.{number % 128 * 2}/32"}}
            | {"protocol": 1, "ports": ports}
            for number in range(count)
        ]
    }


def _put(policy: dict[str, Any]) -> bytes:
    body = json.dumps({"networks": {NETWORK: policy}}).encode()
    return request("PUT", f"/containers/{_RECEIVER}/policy", body)


def _up(daemon: Daemon, handle: str, pid: int) -> str:
    """Bring a container up; its IPv4 address."""
    document = {"Pid": pid, "Properties": {"network.attach_to": NETWORK}}
    [one] = daemon.call("POST", f"/containers/{handle}/up", document, private=True)["attachments"]
    return str(one["addresses"][0]).partition("/")[0]


def _reaches(place: Place) -> bool:
    """Whether the sender's connection gets to the receiver: nobody listens there, so it is refused."""
    with inside(place.sender), socket.socket() as connection:
        connection.settimeout(0.5)
        try:
            connection.connect((place.address, PORT))
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return True
