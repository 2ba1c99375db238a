"""A host with an etcd of one member at its uplink, and what other hosts would have told that etcd."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType
from typing import Any

from bench.client import Failed, ask, request
from bench.lab import OUTSIDE, Daemon, Host, Lab, inside
from conetd.cluster import etcd
from conetd.cluster.errors import EtcdDown
from conetd.cluster.keys import Keys
from conetd.cluster.messages import Operation, delete, put
from conetd.model import Labels, Lease
from conetd.reconcile.cluster import lease_value
from conetd.reconcile.etcd.decisions import identity_digest, identity_value
from conetd.store import encode

NETWORK = "over"
VXLAN = 'drivers = ["bridge", "vxlan"]\n'
"""The settings of a daemon that has both types."""
_URL = f"http://{OUTSIDE}:2379"
_SUBNET = IPv4Network("10.128.0.0/12")  # room for 4096 hosts
_UNDERLAY = int(IPv4Address("198.18.0.0"))  # for such measurements, RFC 2544
_AT_ONCE = 120  # etcd takes 128 operations in a transaction
_PATIENCE_S = 60.0


class Etcd:
    """An etcd at the uplink of a host, with Debian's settings: what it is told is on the disk when it answers."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self.host = host
        self.keys = Keys("/bench")
        self._directory = lab.directory / f"etcd-{host.pid}"
        self._client = etcd.Etcd([_URL], timeout_s=10)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Etcd:
        if shutil.which("etcd") is None:
            raise Failed("etcd is not installed")
        argv = ["etcd", "--data-dir", str(self._directory), "--name", "bench", "--log-level", "error"]
        argv += ["--listen-client-urls", _URL, "--advertise-client-urls", _URL]
        with inside(self.host.outside):
            self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.tell([])
            except EtcdDown as err:
                if time.monotonic() > deadline:
                    raise Failed(f"etcd does not get well: {err.message}") from err
                time.sleep(0.05)
            else:
                return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def settings(self) -> str:
        """Settings of a daemon on the host that has both types and this etcd."""
        return f'{VXLAN}[cluster]\netcd = ["{_URL}"]\nhost = "here"\nprefix = "{self.keys.prefix}"\n'

    def tell(self, operations: Sequence[Operation]) -> int:
        """Have it carry these out, as many at a time as it takes; returns its revision then."""
        revision = 0
        with inside(self.host.outside):
            for start in range(0, max(len(operations), 1), _AT_ONCE):
                revision = self._client.commit([], operations[start : start + _AT_ONCE]).revision
        return revision

    def join(self, numbers: Iterable[int]) -> int:
        """Have these hosts live and be on the network; returns the revision."""
        return self.tell([one for number in numbers for one in self._host(number)])

    def leave(self, numbers: Iterable[int]) -> int:
        """Have these hosts be dead; returns the revision."""
        return self.tell([delete(self.keys.host(name_of(number))) for number in numbers])

    def identify(self, numbers: Iterable[int]) -> int:
        """Have these identities be decided on; returns the revision."""
        return self.tell([one for number in numbers for one in self._identity(number)])

    def _host(self, number: int) -> list[Operation]:
        name, subnet = name_of(number), str(part_of(number))
        data = {"subnet": subnet, "underlay": str(IPv4Address(_UNDERLAY + number)), "mtu": 1500}
        claim = f"subnet:{subnet}"
        return [
            put(self.keys.host(name), encode({"instance": name})),
            put(self.keys.lease(NETWORK, name), lease_value(Lease(data, frozenset({claim})))),
            put(self.keys.claim(NETWORK, claim), encode({"host": name})),
        ]

    def _identity(self, number: int) -> list[Operation]:
        labels = labels_of(number)
        return [
            put(self.keys.identity(NETWORK, number), identity_value(labels, None)),
            put(self.keys.identity_of(NETWORK, identity_digest(labels, None)), str(number)),
        ]


def name_of(number: int) -> str:
    """The name of a simulated host."""
    return f"host-{number}"


def part_of(number: int) -> IPv4Network:
    """The part of the network that a simulated host has."""
    return IPv4Network((int(_SUBNET.network_address) + number * 256, 24))


def labels_of(number: int) -> Labels:
    """The label set of a simulated identity."""
    return (("app", "web"), ("i", str(number)))


def make_network(daemon: Daemon, *, default_policy: Any = None, vni: int = 7, **config: Any) -> None:
    """Have the daemon be on the network."""
    whole = {"vni": vni, "subnet": str(_SUBNET), "host_prefix": 24} | config
    document = {"name": NETWORK, "type": "vxlan", "config": whole, "default_policy": default_policy or {}}
    daemon.call("POST", "/networks", document)


def wait_for_revision(daemon: Daemon, revision: int) -> None:
    """Return when everything that etcd had at the revision is in force at the daemon. Raises Failed."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        _, body = ask(daemon.public, request("GET", "/status"))
        told = json.loads(body)
        if told["cluster"]["revision"] >= revision:
            if told["status"] != "ok":
                raise Failed(f"the daemon is not well: {body.decode()}\n{daemon.tail()}")
            return
        if time.monotonic() > deadline:
            raise Failed(f"the daemon does not come to revision {revision}: {body.decode()}\n{daemon.tail()}")
        time.sleep(0.002)
