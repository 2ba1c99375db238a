"""How requests are made and programs started at the least cost of one's own, and how long each takes."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


class Failed(Exception):
    """Something that is measured did not work; the message says what."""


def request(method: str, path: str, body: bytes | None = None, *, close: bool = True) -> bytes:
    """An HTTP request, ready to be sent."""
    head = f"{method} {path} HTTP/1.1\r\nHost: conetd\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: {'close' if close else 'keep-alive'}\r\n\r\n".encode() + (body or b"")


def ask(path: str, sent: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to one request on a new connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(path)
        connection.sendall(sent)
        return receive(connection)


def receive(connection: socket.socket) -> tuple[int, bytes]:
    """The next answer on a connection."""
    got = b""
    while (whole := parse(got)) is None:
        part = connection.recv(1 << 16)
        if not part:
            raise ConnectionError(f"the answer ended early: {got[:200]!r}")
        got += part
    return whole


def parse(got: bytes) -> tuple[int, bytes] | None:
    """Status and body of an answer; None while some of it is missing. conetd always tells the length."""
    head, end, body = got.partition(b"\r\n\r\n")
    if not end:
        return None
    length = 0
    for line in head.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            length = int(value)
    return (int(head[9:12]), body) if len(body) >= length else None


def timed_ask(path: str, sent: bytes) -> float:
    """Milliseconds that the request takes, connection included. Raises Failed unless it succeeds."""
    started = time.perf_counter()
    status, body = ask(path, sent)
    took = time.perf_counter() - started
    if status >= 300:
        raise Failed(f"{sent[:80]!r}: {status} {body[:300]!r}")
    return took * 1000


def timed_keep_alive(connection: socket.socket, sent: bytes) -> float:
    """The same on a connection that is open."""
    started = time.perf_counter()
    connection.sendall(sent)
    status, body = receive(connection)
    took = time.perf_counter() - started
    if status >= 300:
        raise Failed(f"{sent[:80]!r}: {status} {body[:300]!r}")
    return took * 1000


@dataclass(frozen=True, slots=True)
class Command:
    """A program to be started, with a file as its stdin."""

    argv: tuple[str, ...]
    stdin: Path = Path("/dev/null")
    env: dict[str, str] = field(default_factory=dict)


def spawn(command: Command, stderr: Path) -> int:
    """Start a program and return its pid."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, str(command.stdin), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, str(stderr), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
    ]
    return os.posix_spawn(command.argv[0], command.argv, command.env, file_actions=actions)


def timed_run(command: Command, stderr: Path) -> float:
    """Milliseconds from the start of a program to its end. Raises Failed unless it exits 0."""
    started = time.perf_counter()
    pid = spawn(command, stderr)
    _, status = os.waitpid(pid, 0)
    took = time.perf_counter() - started
    if status:
        raise Failed(f"{command.argv}: {_last(stderr)}")
    return took * 1000


@dataclass(frozen=True, slots=True)
class Flight:
    """What came of many at a time: milliseconds of each, seconds of all, and what was refused."""

    took_ms: list[float]
    seconds: float
    refused: list[str]

    @property
    def per_second(self) -> float:
        """How many succeeded a second."""
        return len(self.took_ms) / self.seconds


def requests_in_flight(path: str, requests: Sequence[bytes], width: int) -> Flight:
    """Make all requests, `width` at a time, each on a new connection. One thread: the daemon needs the processors."""
    waiting = list(reversed(requests))
    open_: dict[int, tuple[socket.socket, float, bytes]] = {}
    took: list[float] = []
    refused: list[str] = []
    poll = select.epoll()
    began = time.perf_counter()
    while waiting or open_:
        while waiting and len(open_) < width:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            started = time.perf_counter()
            connection.connect(path)
            connection.sendall(waiting.pop())
            poll.register(connection.fileno(), select.EPOLLIN)
            open_[connection.fileno()] = (connection, started, b"")
        for descriptor, _ in poll.poll():
            connection, started, got = open_[descriptor]
            part = connection.recv(1 << 16)
            got += part
            answer = parse(got)
            if answer is None and part:
                open_[descriptor] = (connection, started, got)
                continue
            if answer is not None and answer[0] < 300:
                took.append((time.perf_counter() - started) * 1000)
            else:
                refused.append(got.decode(errors="replace"))
            poll.unregister(descriptor)
            connection.close()
            del open_[descriptor]
    seconds = time.perf_counter() - began
    poll.close()
    return Flight(took, seconds, refused)


def commands_in_flight(commands: Sequence[Command], width: int, stderr: Path) -> Flight:
    """Run all programs, `width` at a time."""
    waiting = list(reversed(commands))
    running: dict[int, float] = {}
    took: list[float] = []
    refused: list[str] = []
    began = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < width:
            started = time.perf_counter()
            running[spawn(waiting.pop(), stderr)] = started
        pid, status = os.waitpid(-1, 0)
        if pid not in running:
            continue  # an orphan of somebody's: whoever measures may be the first process of a pid namespace
        milliseconds = (time.perf_counter() - running.pop(pid)) * 1000
        if status:
            refused.append(_last(stderr))
        else:
            took.append(milliseconds)
    return Flight(took, time.perf_counter() - began, refused)


def _last(stderr: Path) -> str:
    lines = stderr.read_text(errors="replace").splitlines() if stderr.exists() else []
    return lines[-1] if lines else "it said nothing"
