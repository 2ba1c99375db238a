"""The daemon's process, in front of a service that does nothing: sockets, signals, systemd, exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Stands in for conetd.service: the daemon's own doing is looked at here, the service's in tests/e2e.
MAIN = textwrap.dedent(
    """
    import sys, threading, types
    from concurrent.futures import Future

    class Service:
        def __init__(self, settings, ports):
            self.ports = ports
            self.slow = []
            if settings.default_attach_to == ("broken",):
                from conetd.errors import Conflict
                raise Conflict("the store is not as it should be")
        def start(self):
            print("start", flush=True)
            threading.Thread(target=self.release, daemon=True).start()
            recovered = Future()
            recovered.set_result(None)
            return recovered
        def release(self):
            sys.stdin.readline()
            for one in self.slow:
                one.set_result({"late": True})
        def stop(self):
            print("stop", flush=True)
        def networks(self):
            return [self.ports]
        def up(self, handle, body):
            print("up", flush=True)
            self.slow.append(Future())
            return self.slow[-1]

    module = types.ModuleType("conetd.service")
    module.Service = Service
    sys.modules["conetd.service"] = module
    from conetd.cli import main
    sys.exit(main())
    """
)


@dataclass
class Daemon:
    """A running daemon; `manager` is the socket on which it talks to systemd."""

    process: subprocess.Popen[str]
    directory: Path
    manager: socket.socket

    def notified(self) -> str:
        return self.manager.recv(4096).decode()

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def release(self) -> None:
        """Let the service answer every up."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ask(self, door: str, request: str, body: str = "") -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        sock.connect(str(self.directory / door))
        sock.sendall(f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode())
        sock.sendall(f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        return sock

    def end(self) -> tuple[int, list[str]]:
        """Exit status and the lines of its log."""
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log.splitlines()


def answered(sock: socket.socket) -> Any:
    with sock:
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    return json.loads(received.partition(b"\r\n\r\n")[2])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Daemon] = []

    def start(extra: str = "", environment: dict[str, str] | None = None, before: Sequence[str] = ()) -> Daemon:
        (tmp_path / "conetd.toml").write_text(
            f'public_socket = "{tmp_path}/public"\nprivate_socket = "{tmp_path}/private"\nlog = "json"\n{extra}\n'
        )
        (tmp_path / "notify").unlink(missing_ok=True)
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.settimeout(30)
        manager.bind(str(tmp_path / "notify"))
        process = subprocess.Popen(
            [*before, sys.executable, "-c", MAIN, "run", "--config", tmp_path / "conetd.toml"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")} | (environment or {}),
        )
        started.append(Daemon(process, tmp_path, manager))
        return started[-1]

    yield start
    for daemon in started:
        daemon.process.kill()
        daemon.process.communicate()
        daemon.manager.close()


def ready(daemon: Daemon) -> None:
    assert daemon.notified() == "READY=1"
    assert daemon.said() == "start"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_status_0_and_no_socket_left(start: Any, tmp_path: Path, number: int) -> None:
    daemon = start()
    ready(daemon)
    daemon.process.send_signal(number)
    assert daemon.notified() == "STOPPING=1"
    assert daemon.said() == "stop"
    status, log = daemon.end()
    assert status == 0
    assert [json.loads(line)["event"] for line in log][-2:] == ["stopping", "stopped"]
    assert not (tmp_path / "public").exists()
    assert not (tmp_path / "private").exists()


def test_the_sockets_have_their_modes(start: Any, tmp_path: Path) -> None:
    ready(start())
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o660
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_a_request_under_way_is_answered_before_the_daemon_ends(start: Any) -> None:
    daemon = start()
    ready(daemon)
    slow = daemon.ask("private", "POST /containers/web/up", "{}")
    assert daemon.said() == "up"
    daemon.process.terminate()
    assert daemon.notified() == "STOPPING=1"
    daemon.release()
    assert answered(slow) == {"late": True}
    assert daemon.said() == "stop"
    assert daemon.end()[0] == 0


def test_after_a_kill_the_next_start_takes_the_sockets_over(start: Any) -> None:
    first = start()
    ready(first)
    first.process.kill()
    first.process.wait()
    second = start()
    ready(second)
    assert answered(second.ask("public", "GET /networks")) == [{}]


def test_a_second_daemon_is_refused_and_the_first_goes_on(start: Any, tmp_path: Path) -> None:
    first = start()
    ready(first)
    second = start()
    status, log = second.end()
    assert status == 1
    assert log[-1] == f"conetd: could not listen at {tmp_path}/public: another process answers there"
    assert answered(first.ask("public", "GET /networks")) == [{}]


def test_a_service_that_cannot_start_is_one_sentence_and_leaves_no_socket(start: Any, tmp_path: Path) -> None:
    status, log = start('default_attach_to = ["broken"]').end()
    assert (status, log[-1]) == (1, "conetd: the store is not as it should be")
    assert not (tmp_path / "public").exists()


def test_a_group_that_does_not_exist_stops_the_start(start: Any) -> None:
    status, log = start('socket_group = "no-such-group"').end()
    assert (status, log[-1]) == (1, "conetd: socket_group: there is no group 'no-such-group' on this system")


def test_wrong_settings_are_status_2(start: Any, tmp_path: Path) -> None:
    status, log = start("color = 1").end()
    assert status == 2
    [line] = log
    assert line.startswith(
        f"conetd: settings file {tmp_path}/conetd.toml: color: Unknown field. Known are cluster, default_"
    )
    assert line.endswith(" (got 1)")


def test_the_watchdog_hears_from_it_when_it_asks_to(start: Any) -> None:
    daemon = start(environment={"WATCHDOG_USEC": "200000"})
    ready(daemon)
    assert [daemon.notified() for _ in range(3)] == ["WATCHDOG=1"] * 3


def test_kept_descriptors_reach_the_service(start: Any) -> None:
    announce = ("sh", "-c", 'LISTEN_PID=$$ exec "$@" 3</dev/null', "sh")
    daemon = start(environment={"LISTEN_FDS": "1", "LISTEN_FDNAMES": "tcp-8080"}, before=announce)
    ready(daemon)
    assert answered(daemon.ask("public", "GET /networks")) == [{"tcp-8080": 3}]


def test_a_port_pool_among_the_ephemeral_ports_is_a_warning(start: Any) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    daemon = start(f"[port_pool]\nstart = {first}\nsize = 10")
    ready(daemon)
    daemon.process.terminate()
    _, log = daemon.end()
    warned = [json.loads(line) for line in log if json.loads(line)["level"] == "WARNING"]
    assert f"{first}-{first + 9}" in [one.get("port_pool") for one in warned]
