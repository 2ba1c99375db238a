"""Guardian played on the host of a world: its containers, and what the tests about it ask again and again."""

from __future__ import annotations

import contextlib
import errno
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guardian import Guardian
from pytest_netns import Netns, NetnsFactory
from traffic import FLOWS, PATIENCE_S, REFUSED, SILENT
from traffic import ask as reach
from world import HOOK, World, open_world

from conetd.kernel import iptables

TCP4, UDP4 = FLOWS[0], FLOWS[1]
OUTSIDE, UP = "192.0.2.2", "192.0.2.1"
BLUE = {"network.attach_to": "blue"}
# For what the dataplane has to do with. The fixture `world` hands its parameter to `open_host`.
BOTH = pytest.mark.parametrize("world", ["nftables", "iptables"], indirect=True)


@contextlib.contextmanager
def open_host(netns: NetnsFactory, folder: Path, backend: str = "nftables", settings: str = "") -> Iterator[World]:
    """A world whose daemon runs with this filter backend; where it cannot, the test is skipped."""
    if backend == "iptables" and not iptables.available():
        pytest.skip("this host cannot run the iptables backend")
    with open_world(netns, folder, f'filter = "{backend}"\n{settings}') as world:
        world.daemon.start()
        yield world


def guardian_on(world: World, folder: Path) -> Guardian:
    """A Guardian whose network plugin asks the world's daemon."""
    arguments = ["--socket", str(world.daemon.private_socket)]
    return Guardian(HOOK, folder / "depot", arguments, properties_path=folder / "properties.json")


def create(world: World, guardian: Guardian, handle: str, **more: Any) -> Netns:
    """A container that Guardian has created, on the network blue unless its properties say otherwise."""
    container = world.container(handle)
    guardian.create(handle, container.pid, **{"properties": BLUE} | more)
    return container


def conetds_info(world: World, handle: str) -> Any:
    return world.daemon.call("GET", f"/garden/containers/{handle}/info", private=True).body


def mapped(host_port: int, container_port: int) -> dict[str, int]:
    return {"HostPort": host_port, "ContainerPort": container_port}


def run_plugin(guardian: Guardian, action: str, handle: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    """The plugin without Guardian's own checks before it."""
    argv = [str(HOOK), *guardian.extra_args, "--action", action, "--handle", handle]
    return subprocess.run(argv, input=stdin, capture_output=True)


def rule(port: int, protocol: int = 1) -> dict[str, Any]:
    """Allow one port of the outside machine."""
    return {
        "protocol": protocol,
        "networks": [{"start": OUTSIDE, "end": OUTSIDE}],
        "ports": [{"start": port, "end": port}],
    }


def passes(container: Netns, port: int) -> bool:
    """Whether a connection to the outside machine's port is let through; it answers there."""
    return reach(container, TCP4, OUTSIDE, port, patience=PATIENCE_S) not in (REFUSED, SILENT)


def left(world: World) -> dict[str, Any]:
    """What is in kernel and store, with the published ports of the legacy tables and the answers kept for a while."""
    nat = world.host.run("sh", "-c", "iptables-legacy-save -t nat 2>/dev/null | sed '/^#/d; s/ \\[.*//'").stdout
    with contextlib.closing(sqlite3.connect(world.daemon.database)) as db:
        answers = db.execute("SELECT count(*) FROM garden_answers").fetchone()[0]
    return world.remains() | {"nat": nat.splitlines(), "answers": answers}


class Chatter:
    """Sends numbered datagrams to the outside machine's ports for the length of the block, a thousand a second."""

    def __init__(self, where: Netns, ports: tuple[int, ...]) -> None:
        self.refusals = dict.fromkeys(ports, 0)
        self.first_sent: dict[int, int] = {}
        self._sockets = {port: UDP4.open(where) for port in ports}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Chatter:
        for one in self._sockets.values():
            one.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR, linux/in.h: refusals come back though unconnected
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        for one in self._sockets.values():
            one.close()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            for port, sock in self._sockets.items():
                self._send(port, sock, number)
            time.sleep(0.001)

    def _send(self, port: int, sock: socket.socket, number: int) -> None:
        try:
            sock.sendto(b"%d" % number, (OUTSIDE, port))
        except OSError as err:
            if err.errno == errno.ENETUNREACH:  # it has no network yet
                return
            self.refusals[port] += 1
        self.first_sent.setdefault(port, number)


@contextlib.contextmanager
def listening(where: Netns, *ports: int) -> Iterator[dict[int, list[int]]]:
    """The numbers that arrive at these UDP ports during the block."""
    heard: dict[int, list[int]] = {port: [] for port in ports}
    sockets = {port: UDP4.open(where) for port in ports}
    stop = threading.Event()

    def listen(port: int, sock: socket.socket) -> None:
        while True:
            try:
                heard[port].append(int(sock.recv(100)))
            except TimeoutError:
                if stop.is_set():
                    return

    threads = [threading.Thread(target=listen, args=pair) for pair in sockets.items()]
    for port, sock in sockets.items():
        sock.bind(("", port))
        sock.settimeout(0.1)
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for sock in sockets.values():
            sock.close()
