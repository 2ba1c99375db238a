"""Two hosts that differ in one thing: on one the container has a thousand others beside it, each with a long policy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bench.client import Failed, request, requests_in_flight
from bench.lab import Daemon, Lab

SUBJECT = "subject"
RULES = 100  # of each of the others


@dataclass(frozen=True, slots=True)
class Side:
    """A daemon, and the namespace of the container that is measured there."""

    daemon: Daemon
    pid: int

    def replace(self, rules: int, variant: int) -> bytes:
        """The request that replaces the container's policy by one of so many rules."""
        return _put(SUBJECT, document(rules, variant))


@dataclass(frozen=True, slots=True)
class Pair:
    """The container alone on its host, and among `others`."""

    alone: Side
    among: Side
    others: int


def make(lab: Lab, others: int) -> Pair:
    """Make both hosts and bring all containers up."""
    return Pair(_side(lab, 0), _side(lab, others), others)


def document(rules: int, variant: int, salt: int = 0) -> dict[str, Any]:
    """A policy of that many rules, none like another; two variants have no rule in common.

    Its first rule lets all of TCP out to the machine at the uplink.
    """
    everything = {"protocol": 1, "networks": [{"start": "192.0.2.0", "end": "192.0.2.255"}]}
    return {"net_out": [everything, *(_rule(number, variant, salt) for number in range(1, rules))]}


def _rule(number: int, variant: int, salt: int) -> dict[str, Any]:
    # addresses of 198.18.0.0/15, which is for such measurements (RFC 2544)
    first = f"198.{18 + salt % 2}.{number % 256}.{salt % 200}"
    last = f"198.{18 + salt % 2}.{number % 256}.{salt % 200 + 40}"
    port = 1024 + (number * 7 + variant * 101) % 60000
    return {
        "protocol": 1 + number % 2,
        "networks": [{"start": first, "end": last}],
        "ports": [{"start": port, "end": port + 3}],
    }


def _side(lab: Lab, others: int) -> Side:
    daemon = lab.daemon()
    daemon.network("blue", "10.32.0.0/16")
    subject, *pids = lab.namespaces(others + 1)
    handles = [SUBJECT, *(f"other-{number}" for number in range(others))]
    policies = [_put(handle, document(RULES, 0, salt)) for salt, handle in enumerate(handles)]
    bodies = [{"Pid": pid, "Properties": {"network.attach_to": "blue"}} for pid in (subject, *pids)]
    ups = [
        request("POST", f"/containers/{handle}/up", json.dumps(body).encode())
        for handle, body in zip(handles, bodies, strict=True)
    ]
    for socket, requests in ((daemon.public, policies), (daemon.private, ups)):
        flight = requests_in_flight(socket, requests, 8)
        if flight.refused:
            raise Failed(f"the crowd could not be made: {flight.refused[0]}")
    return Side(daemon, subject)


def _put(handle: str, policy: dict[str, Any]) -> bytes:
    body = json.dumps({"networks": {"blue": policy}}).encode()
    return request("PUT", f"/containers/{handle}/policy", body)
