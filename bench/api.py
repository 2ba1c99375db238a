"""What is asked of the daemon: the requests that bring containers up and down, and filling a network with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.client import Failed, request, requests_in_flight
from bench.lab import Daemon

_FIRST_PORT = 10000  # of the host, one for each container


@dataclass(frozen=True, slots=True)
class Container:
    """A container that will be brought up: its handle, and what the engine says of it."""

    handle: str
    body: bytes

    def up(self, *, close: bool = True) -> bytes:
        """The request that brings it up."""
        return request("POST", f"/containers/{self.handle}/up", self.body, close=close)

    def down(self, *, close: bool = True) -> bytes:
        """The request that takes it down."""
        return request("POST", f"/containers/{self.handle}/down", b"", close=close)


def container(daemon: Daemon, pid: int, network: str) -> Container:
    """One with a published port and two rules, which come with the `up` as Guardian sends them."""
    key = next(daemon.keys)
    last = key % 250 + 1
    rules = [_rule(1, f"198.51.100.{last}", 443), _rule(2, f"203.0.113.{last}", 53)]
    document = {
        "Pid": pid,
        "Properties": {"network.attach_to": network},
        "netin": [{"host_port": _FIRST_PORT + key, "container_port": 8080}],
        "netout_rules": rules,
    }
    return Container(f"container-{key}", json.dumps(document).encode())


def _rule(protocol: int, address: str, port: int) -> dict[str, Any]:
    networks = [{"start": address, "end": address}]
    return {"protocol": protocol, "networks": networks, "ports": [{"start": port, "end": port}]}


def containers(daemon: Daemon, pids: Iterable[int], network: str) -> list[Container]:
    """One for each namespace."""
    return [container(daemon, pid, network) for pid in pids]


def bring_up(daemon: Daemon, some: Sequence[Container]) -> None:
    """Bring containers up without measuring it. Raises Failed."""
    flight = requests_in_flight(daemon.private, [one.up() for one in some], 16)
    if flight.refused:
        raise Failed(f"{len(flight.refused)} of {len(some)} containers did not come up: {flight.refused[0]}")


def take_down(daemon: Daemon, some: Sequence[Container]) -> None:
    """Take containers down and wait until nothing is left of them. Raises Failed."""
    flight = requests_in_flight(daemon.private, [one.down() for one in some], 16)
    if flight.refused:
        raise Failed(f"{len(flight.refused)} of {len(some)} containers did not go down: {flight.refused[0]}")
    daemon.reaped()
