"""What conetd and its service manager tell each other: readiness, the end, and host ports kept over a restart."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_netns import NetnsFactory
from world import World, ask, eventually, open_world, serving

# Fetches the kept descriptors, puts them where systemd would, and becomes the daemon.
HAND_OVER = """
import fcntl, os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    names, received, _, _ = socket.recv_fds(sock, 65536, 250)
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 500) for fd in received]
for fd in received:
    os.close(fd)
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number, inheritable=True)
    os.close(fd)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": names.decode()}
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """As much of systemd as a service sees: a notification socket and a store of descriptors."""

    def __init__(self, folder: Path) -> None:
        self.path, self._hand_over = folder / "notify", folder / "hand-over"
        self.said: list[str] = []
        self.store: dict[str, int] = {}
        self._stop = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                text, fds, _, _ = socket.recv_fds(self._socket, 4096, 10)
                self._take(dict(line.split("=", 1) for line in text.decode().splitlines()), fds)

    def _take(self, told: dict[str, str], fds: list[int]) -> None:
        self.said += [f"{key}={value}" for key, value in told.items()]
        name = told.get("FDNAME", "")
        if told.get("FDSTORE") == "1":
            [fd] = fds
            if name in self.store:  # systemd keeps one of two that are the same file
                os.close(fd)
            else:
                self.store[name] = fd
        if told.get("FDSTOREREMOVE") == "1" and name in self.store:
            os.close(self.store.pop(name))

    def start(self, world: World) -> None:
        """Start the daemon with what is in the store, as systemd does after a stop or a crash."""
        self.said.clear()
        with socket.socket(socket.AF_UNIX) as door:
            self._hand_over.unlink(missing_ok=True)
            door.bind(str(self._hand_over))
            door.listen()
            door.settimeout(30)
            world.daemon.environment["NOTIFY_SOCKET"] = str(self.path)
            world.daemon.start(wait=False, before=[sys.executable, "-c", HAND_OVER, str(self._hand_over)])
            client, _ = door.accept()
            with client:
                names = ":".join(self.store) or "-"
                socket.send_fds(client, [names.encode()], list(self.store.values()))
        world.daemon.wait_ready()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        for fd in self.store.values():
            os.close(fd)


@pytest.fixture
def world(netns: NetnsFactory, tmp_path: Path) -> Iterator[World]:
    with open_world(netns, tmp_path) as world:
        yield world


@pytest.fixture
def manager(world: World, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    manager.start(world)
    yield manager
    with contextlib.suppress(ProcessLookupError):
        assert world.daemon.process is not None
        if world.daemon.process.poll() is None:
            world.daemon.stop()
    manager.close()


def can_bind(world: World, port: int, kind: socket.SocketKind = socket.SOCK_STREAM, address: str = "") -> bool:
    """Whether a process of the host could take the port now."""

    def bind() -> bool:
        with socket.socket(socket.AF_INET, kind) as sock:
            try:
                sock.bind((address, port))
            except OSError as err:
                if err.errno == errno.EADDRINUSE:
                    return False
                raise
            return True

    return world.host.call(bind)


def publish(world: World, *entries: dict[str, object], handle: str = "web") -> None:
    answer = world.daemon.policy(handle, blue={"net_in": list(entries)})
    assert answer.status == 200, answer


def bring_up_web(world: World) -> None:
    world.daemon.network()
    world.daemon.bring_up("web", world.container("web"), "blue")
    publish(world, {"host_port": 8080, "container_port": 80})


def test_readiness_is_told_once_the_sockets_answer_and_the_end_before_they_close(
    world: World, manager: Manager
) -> None:
    eventually(lambda: "READY=1" in manager.said, "it is ready")
    assert "STOPPING=1" not in manager.said
    assert world.daemon.get("/status").status == 200
    assert world.daemon.stop() == 0
    eventually(lambda: manager.said[-1] == "STOPPING=1", "it stops")


def test_a_published_port_is_given_to_the_manager_and_taken_back(world: World, manager: Manager) -> None:
    bring_up_web(world)
    eventually(lambda: list(manager.store) == ["hostport-tcp-8080"], "the manager has it")
    with socket.socket(fileno=os.dup(manager.store["hostport-tcp-8080"])) as sock:
        assert sock.getsockname()[:2] == ("::", 8080)
    publish(world, {"host_port": 5353, "protocol": "udp", "host_ip": "192.0.2.1"})
    eventually(lambda: list(manager.store) == ["hostport-udp-5353-192.0.2.1"], "the other is there, the first gone")
    world.daemon.down("web")
    eventually(lambda: not manager.store, "none is kept")
    assert can_bind(world, 8080)
    assert can_bind(world, 5353, socket.SOCK_DGRAM)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_nobody_can_take_a_published_port_between_two_lives(world: World, manager: Manager, end: str) -> None:
    bring_up_web(world)
    eventually(lambda: manager.store, "the manager has it")
    inode = os.fstat(manager.store["hostport-tcp-8080"]).st_ino
    assert not can_bind(world, 8080)
    getattr(world.daemon, end)()
    assert not can_bind(world, 8080)
    manager.start(world)
    assert not can_bind(world, 8080)
    assert world.daemon.process is not None
    held = {str(one.readlink()) for one in Path(f"/proc/{world.daemon.process.pid}/fd").iterdir()}
    assert f"socket:[{inode}]" in held
    [mapped] = world.daemon.get("/containers/web").body["attachments"][0]["mapped_ports"]
    assert mapped["host_port"] == 8080
    publish(world)
    eventually(lambda: can_bind(world, 8080), "the port is free")
    assert not manager.store


def test_a_published_port_answers_while_the_daemon_is_away_and_after(world: World, manager: Manager) -> None:
    world.daemon.network()
    web = world.container("web")
    world.daemon.bring_up("web", web, "blue")
    publish(world, {"host_port": 8080, "container_port": 80})
    with serving(web, 80):
        world.daemon.stop()
        assert ask(world.outside, "192.0.2.1", 8080).startswith("hello")
        manager.start(world)
        assert ask(world.outside, "192.0.2.1", 8080).startswith("hello")


def test_ports_of_a_container_that_ended_meanwhile_are_given_back(world: World, manager: Manager) -> None:
    world.daemon.network()
    web = world.container("web")
    world.daemon.bring_up("web", web, "blue")
    publish(world, {"host_port": 8080})
    eventually(lambda: manager.store, "the manager has it")
    world.daemon.stop()
    web.close()
    assert not can_bind(world, 8080)
    manager.start(world)
    eventually(lambda: not manager.store, "the manager has closed it")
    assert can_bind(world, 8080)


def test_what_the_manager_kept_of_somebody_else_is_closed(world: World, manager: Manager) -> None:
    world.daemon.stop()
    reader, writer = os.pipe()
    os.close(writer)
    manager.store["hostport-tcp-9"] = reader
    manager.start(world)
    eventually(lambda: "FDSTOREREMOVE=1" in manager.said, "it is given back")
    assert not manager.store
