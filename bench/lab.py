"""Where everything is measured: namespaces held by idle processes, hosts with an uplink, daemons on them."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench.client import Failed, ask, request

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_WARDEN = Path(__file__).with_name("warden.py")
_PATIENCE_S = 60.0
_libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12

OUTSIDE = "192.0.2.2"
"""The address of the machine at each host's uplink."""


def enter(fd: int) -> None:
    """Move the calling thread into a network namespace."""
    if _libc.setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


@contextlib.contextmanager
def inside(pid: int) -> Iterator[None]:
    """The calling thread, and what it starts, is in the process's network namespace for the block."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(there)
        try:
            yield
        finally:
            enter(home)
    finally:
        os.close(there)
        os.close(home)


def run(pid: int, *argv: str, stdin: str = "") -> str:
    """What the program prints when it is run in the process's network namespace. Raises Failed."""
    with inside(pid):
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=_PATIENCE_S)
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Lab:
    """Makes namespaces, hosts and daemons in a directory of its own, and ends all of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._daemons: list[Daemon] = []
        self._names = itertools.count(1)
        self._warden: subprocess.Popen[str] | None = None

    def __enter__(self) -> Lab:
        argv = [sys.executable, "-I", "-S", str(_WARDEN)]
        self._warden = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *exc: object) -> None:
        for daemon in self._daemons:
            daemon.stop()
        if self._warden is not None:
            self._warden.kill()
            self._warden.wait()
            for stream in (self._warden.stdin, self._warden.stdout):
                if stream is not None:
                    stream.close()
        settle()

    def namespaces(self, count: int) -> list[int]:
        """That many fresh network namespaces, each as the pid of the idle process that holds it."""
        warden = self._warden
        assert warden is not None
        assert warden.stdin is not None
        assert warden.stdout is not None
        if count == 0:
            return []
        warden.stdin.write(f"{count}\n")
        warden.stdin.flush()
        pids = [int(word) for word in warden.stdout.readline().split()]
        if len(pids) != count:
            raise Failed(f"{count} network namespaces were wanted, {len(pids)} could be made")
        return pids

    def host(self) -> Host:
        """A namespace that plays a host, with an uplink to a machine outside and a default route there."""
        host, outside = self.namespaces(2)
        commands = f"link set lo up\nlink add up0 type veth peer name eth0 netns {outside}\n"
        commands += f"address add 192.0.2.1/24 dev up0\nlink set up0 up\nroute add default via {OUTSIDE}\n"
        run(host, "ip", "-batch", "-", stdin=commands)
        run(
            outside, "ip", "-batch", "-", stdin=f"link set lo up\naddress add {OUTSIDE}/24 dev eth0\nlink set eth0 up\n"
        )
        return Host(host, outside)

    def daemon(self, host: Host | None = None, settings: str = "") -> Daemon:
        """A daemon that serves on a host, on a fresh one unless it is given; `settings` are lines of TOML."""
        directory = self.directory / f"daemon{next(self._names)}"
        directory.mkdir()
        daemon = Daemon(host or self.host(), directory, settings)
        self._daemons.append(daemon)
        daemon.start()
        return daemon


@dataclass(frozen=True, slots=True)
class Host:
    """The idle processes in a host's namespace and in that of the machine at its uplink."""

    pid: int
    outside: int


@dataclass(slots=True)
class Daemon:
    """A conetd on a host, with default settings but for `settings`, lines of TOML.

    Its state lies on a real file system, so commits are durable.
    """

    host: Host
    directory: Path
    settings: str = ""
    process: subprocess.Popen[bytes] | None = None
    keys: Iterator[int] = field(default_factory=itertools.count)
    """Numbers for containers, each given once."""

    @property
    def public(self) -> str:
        """Path of the public socket."""
        return str(self.directory / "conetd.sock")

    @property
    def private(self) -> str:
        """Path of the private socket."""
        return str(self.directory / "guardian.sock")

    def start(self) -> tuple[float, float]:
        """Start it; returns the seconds until it answered and until all was as wanted."""
        config = self.directory / "conetd.toml"
        config.write_text(
            f'state_dir = "{self.directory}/state"\npublic_socket = "{self.public}"\n'
            f'private_socket = "{self.private}"\nsocket_group = "root"\n'
            f"{self.settings}"
        )
        argv = [sys.executable, "-m", "conetd", "run", "--config", str(config)]
        started = time.monotonic()
        with (self.directory / "log").open("ab") as log, inside(self.host.pid):
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        answered = None
        while True:
            if self.process.poll() is not None:
                raise Failed(f"the daemon ended:\n{self.tail()}")
            with contextlib.suppress(OSError):
                status, body = ask(self.public, request("GET", "/status"))
                answered = answered or time.monotonic() - started
                if status == 200:
                    return answered, time.monotonic() - started
            if time.monotonic() - started > _PATIENCE_S:
                raise Failed(f"the daemon is not well after {_PATIENCE_S:g} s: {body!r}\n{self.tail()}")
            time.sleep(0.005)

    def stop(self) -> None:
        """Have it end in good order; containers keep their networking. Twice is once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(_PATIENCE_S)
            self.process = None

    def tail(self) -> str:
        """The end of its log."""
        return "\n".join((self.directory / "log").read_text().splitlines()[-20:])

    @property
    def memory_kib(self) -> int:
        """What it holds in memory now (VmRSS)."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    @property
    def processor_s(self) -> float:
        """Seconds of processor time it has used since it was started."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def call(self, method: str, path: str, document: Any = None, *, private: bool = False) -> Any:
        """One request that must succeed; returns what was answered. Raises Failed."""
        body = None if document is None else json.dumps(document).encode()
        status, answer = ask(self.private if private else self.public, request(method, path, body))
        if not 200 <= status < 300:
            raise Failed(f"{method} {path}: {status} {answer.decode(errors='replace')}\n{self.tail()}")
        return json.loads(answer) if answer else None

    def network(self, name: str, subnet: str) -> None:
        """Define a bridge network that lets containers out only where their policies say."""
        config = {"subnet": subnet, "deny_networks": ["0.0.0.0/0"]}
        self.call("POST", "/networks", {"name": name, "type": "bridge", "config": config})

    def reaped(self) -> None:
        """Return when nothing is left of the containers that were taken down."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.call("GET", "/status")["removals_pending"]:
            if time.monotonic() > deadline:
                raise Failed("links of containers that are down are not removed")
            time.sleep(0.02)
        time.sleep(0.1)  # the reaper's last group is no longer pending while it is worked on


def settle() -> None:
    """Return when the kernel has cleared away the namespaces that have ended, as far as it tells."""
    before = -1
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        now = _live_namespaces()
        if now == before:
            return
        before = now
        time.sleep(0.5)


def _live_namespaces() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/slabinfo").read_text().splitlines():
            if line.startswith("net_namespace "):
                return int(line.split()[1])
    return 0


def rounds(items: Sequence[T], number: int) -> list[T]:
    """The items in another order at each round, so that none is always the first."""
    shift = number % len(items)
    return [*items[shift:], *items[:shift]]
