"""A real etcd of any number of members, in one namespace or many, with faults to set on it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_netns import Netns

_CLIENT, _PEER, _HEALTH = 2379, 2380, 2381
_HEARTBEAT_MS, _ELECTION_MS = 50, 500
_READY_S = 30.0


def missing() -> str | None:
    """What keeps this machine from running an etcd, or None."""
    lacking = [program for program in ("etcd", "etcdctl", "openssl") if shutil.which(program) is None]
    return f"needs {', '.join(lacking)} (Debian: etcd-server, etcd-client, openssl)" if lacking else None


@dataclass(frozen=True)
class Pem:
    """Files for TLS: the authority, a certificate for servers, and one for clients, each with its key."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


class EtcdCluster:
    """Members 0 to n-1, each in the namespace and at the address given for it. Nothing runs before `start`.

    Members that share a namespace share an address, and differ by their ports. What runs ends with its namespace.
    """

    def __init__(self, places: Sequence[tuple[Netns, str]], state: Path, *, pem: Pem | None = None) -> None:
        self._state = state
        self._pem = pem
        self._members = [_Member(index, *place) for index, place in enumerate(places)]
        for member in self._members:
            # each is apart from those before it in the same namespace
            member.shift = 10 * sum(other.netns is member.netns for other in self._members[: member.index])

    @classmethod
    def on_loopback(cls, netns: Netns, state: Path, members: int = 3, *, pem: Pem | None = None) -> EtcdCluster:
        """Members that all run on the loopback of one namespace."""
        return cls([(netns, "127.0.0.1")] * members, state, pem=pem)

    @property
    def home(self) -> Netns:
        """The namespace of the first member."""
        return self._members[0].netns

    @property
    def endpoints(self) -> list[str]:
        """What clients are told, a URL for each member."""
        return [self._url(member, _CLIENT) for member in self._members]

    def start(self, *members: int) -> None:
        """Start these members, or all, and wait until they are well; only where a majority can then be up."""
        chosen = self._chosen(members)
        for member in chosen:
            with member.log(self._state).open("ab") as log:
                member.process = member.netns.popen(self._command(member), stdout=log, stderr=log)
        self.wait_until_well(*(member.index for member in chosen))

    def kill(self, *members: int) -> None:
        """End these members, or all, without warning."""
        for member in self._chosen(members):
            if member.process is not None:
                member.process.kill()
        for member in self._chosen(members):
            if member.process is not None:
                member.process.wait()

    def stop(self, *members: int) -> None:
        """End these members, or all, as a service manager does."""
        for member in self._chosen(members):
            if member.process is not None:
                member.process.terminate()
                member.process.wait(_READY_S)

    def freeze(self, *members: int) -> None:
        """Let these members, or all, stand still: connections stay and nothing is answered. `thaw` ends it."""
        self._signal(members, signal.SIGSTOP)

    def thaw(self, *members: int) -> None:
        """Let them go on."""
        self._signal(members, signal.SIGCONT)

    def cut(self, *members: int) -> None:
        """Let all packets to and from these members be lost; not for those on loopback. `mend` ends it."""
        rules = "".join(
            f"add chain inet cut {hook} {{ type filter hook {hook} priority -400; policy drop; }}\n"
            f'add rule inet cut {hook} {meta} "lo" accept\n'
            for hook, meta in (("input", "iifname"), ("output", "oifname"))
        )
        for member in self._chosen(members):
            member.netns.run("nft", "-f", "-", input=f"add table inet cut\n{rules}")

    def mend(self, *members: int) -> None:
        """Let their packets pass again."""
        for member in self._chosen(members):
            member.netns.run("nft", "delete", "table", "inet", "cut")

    def restore(self) -> None:
        """Have all members run, be thawed, and their packets pass."""
        self.thaw()
        for member in self._members:
            member.netns.run("nft", "-f", "-", input="add table inet cut\ndelete table inet cut\n")
        dead = [member.index for member in self._members if not member.runs]
        if dead:
            self.start(*dead)

    def running(self, member: int) -> bool:
        """Whether that member runs, be it frozen."""
        return self._members[member].runs

    def compact(self, revision: int) -> None:
        """Forget what was before the revision."""
        self.ctl("compact", str(revision))

    def leader(self) -> int:
        """The member that leads."""
        for status in json.loads(self.ctl("endpoint", "status", "-w", "json")):
            if status["Status"]["leader"] == status["Status"]["header"]["member_id"]:
                return self.endpoints.index(status["Endpoint"])
        raise LookupError("no member leads")

    def ctl(self, *argv: str) -> str:
        """What etcdctl prints, asked of the members that run."""
        running = [member for member in self._members if member.runs]
        endpoints = ",".join(self._url(member, _CLIENT) for member in running)
        tls: list[str] = []
        if self._pem is not None:
            tls = [f"--cacert={self._pem.ca}", f"--cert={self._pem.client}", f"--key={self._pem.client_key}"]
        return running[0].netns.run("env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={endpoints}", *tls, *argv).stdout

    def wait_until_well(self, *members: int) -> None:
        """Return when each of these members, or all, says that it serves. TimeoutError, with its log, when not."""
        deadline = time.monotonic() + _READY_S
        for member in self._chosen(members):
            while not member.well():
                if time.monotonic() > deadline:
                    log = member.log(self._state).read_text()[-2000:]
                    raise TimeoutError(f"member {member.index} of etcd does not get well: {log}")
                time.sleep(0.02)

    def _chosen(self, members: Sequence[int]) -> list[_Member]:
        return [self._members[index] for index in members] if members else self._members

    def _signal(self, members: Sequence[int], number: int) -> None:
        for member in self._chosen(members):
            if member.process is not None:
                member.process.send_signal(number)

    def _url(self, member: _Member, port: int) -> str:
        scheme = "https" if self._pem is not None and port == _CLIENT else "http"
        return f"{scheme}://{member.authority(port)}"

    def _command(self, member: _Member) -> list[str]:
        peer, client = self._url(member, _PEER), self._url(member, _CLIENT)
        everybody = ",".join(f"m{one.index}={self._url(one, _PEER)}" for one in self._members)
        tls: list[str] = []
        if self._pem is not None:
            tls = [f"--cert-file={self._pem.server}", f"--key-file={self._pem.server_key}"]
            tls += ["--client-cert-auth", f"--trusted-ca-file={self._pem.ca}"]
        return [
            "etcd",
            *("--name", f"m{member.index}"),
            *("--data-dir", str(self._state / f"m{member.index}")),
            *("--initial-cluster", everybody),
            *("--initial-advertise-peer-urls", peer),
            *("--listen-peer-urls", peer),
            *("--listen-client-urls", client),
            *("--advertise-client-urls", client),
            *("--listen-metrics-urls", self._url(member, _HEALTH)),
            *("--heartbeat-interval", str(_HEARTBEAT_MS)),
            *("--election-timeout", str(_ELECTION_MS)),
            "--unsafe-no-fsync",
            *tls,
        ]


class _Member:
    def __init__(self, index: int, netns: Netns, address: str) -> None:
        self.index = index
        self.netns = netns
        self.address = address
        self.shift = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def authority(self, port: int) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{port + self.shift}"

    def log(self, state: Path) -> Path:
        return state / f"m{self.index}.log"

    def well(self) -> bool:
        def ask() -> bool:
            connection = http.client.HTTPConnection(self.address, _HEALTH + self.shift, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/health")
                return bool(json.loads(connection.getresponse().read())["health"] == "true")

        try:
            return self.netns.call(ask)
        except (OSError, http.client.HTTPException, ValueError):
            return False
