"""Who may talk to whom in an overlay, judged from the documents alone, and who does: all of them tried at once.

The judge is written from the reference page, and uses nothing of conetd's.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from pytest_netns import Netns
from traffic import FLOWS, PATIENCE_S, REFUSED, SILENT, Flow

_QUIET_S = 0.5  # after this long without an answer no more is expected
_AGAIN_S = 1.0  # a datagram may be lost before the underlay's neighbours are known
_HANG_UP = struct.pack("ii", 1, 0)

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Party:
    """A container; or a host, which has no labels, and in the overlay the addresses of its VTEP."""

    name: str
    host: str
    netns: Netns
    addresses: Mapping[int, str]


@dataclass(frozen=True)
class Attempt:
    """One client's one message."""

    sender: str
    receiver: str
    flow: Flow
    port: int

    def __str__(self) -> str:
        return f"{self.sender} to {self.receiver} {self.flow} {self.port}"


@dataclass
class Documents:
    """What clients have said: labels of every container, policies of those that have one of their own."""

    network: str
    labels: dict[str, dict[str, str]]
    policies: dict[str, Policy]
    default: Policy = field(default_factory=dict)

    def allow(self, sender: Party, receiver: Party, flow: Flow, port: int) -> bool:
        """Whether the sender may begin this with the receiver, which is a container."""
        if sender.name not in self.labels and sender.host == receiver.host:
            return True  # a container's own host reaches it always
        return self._may_send(sender, receiver, flow, port) and self._may_receive(sender, receiver, flow, port)

    def _of(self, name: str) -> Policy:
        return self.policies.get(name, self.default)

    def _may_send(self, sender: Party, receiver: Party, flow: Flow, port: int) -> bool:
        if sender.name not in self.labels:
            return True
        entries = [one for one in self._of(sender.name).get("policies", []) if one["direction"] == "egress"]
        return not entries or any(self._matches(one, receiver, flow, port) for one in entries)

    def _may_receive(self, sender: Party, receiver: Party, flow: Flow, port: int) -> bool:
        policy = self._of(receiver.name)
        if policy.get("default_ingress") == "allow":
            return True
        entries = [one for one in policy.get("policies", []) if one["direction"] == "ingress"]
        return any(self._matches(one, sender, flow, port) for one in entries)

    def _matches(self, entry: Mapping[str, Any], peer: Party, flow: Flow, port: int) -> bool:
        if entry.get("protocol", "all") not in ("all", flow.protocol):
            return False
        ranges = entry.get("ports", {"start": 0, "end": 65535})
        ranges = ranges if isinstance(ranges, list) else [ranges]
        return any(one["start"] <= port <= one["end"] for one in ranges) and self._means(entry["peer"], peer, flow)

    def _means(self, said: Mapping[str, Any], peer: Party, flow: Flow) -> bool:
        [(kind, value)] = said.items()
        if kind == "cidr":
            return ip_address(peer.addresses[flow.family]) in ip_network(value)
        if peer.name not in self.labels:
            return False
        if kind == "labels":
            return bool(value.items() <= self.labels[peer.name].items())
        return bool(value == (peer.name if kind == "handle" else self.network))


Table = dict[Attempt, str]


def every(parties: Collection[Party], targets: Collection[Party], ports: Collection[int]) -> list[Attempt]:
    """All attempts of all parties on all others that are targets, in every protocol and IP version."""
    pairs = ((one, other) for one in parties for other in targets if one.name != other.name)
    return [
        Attempt(one.name, other.name, flow, port)
        for (one, other), flow, port in itertools.product(pairs, FLOWS, ports)
        if flow.family in other.addresses
    ]


def expected(documents: Documents, parties: Mapping[str, Party], attempts: Iterable[Attempt]) -> Table:
    """What should come of the attempts: the receiver's name and the address it was spoken to from, or silence.

    A host may speak to its own containers from any of its addresses, so there it is the name alone.
    """

    def answer(one: Attempt) -> str:
        sender, receiver = parties[one.sender], parties[one.receiver]
        if not documents.allow(sender, receiver, one.flow, one.port):
            return SILENT
        return one.receiver if sender.name == receiver.host else f"{one.receiver} {sender.addresses[one.flow.family]}"

    return {one: answer(one) for one in attempts}


def differences(wanted: Table, found: Table) -> list[str]:
    """Each attempt that came out otherwise, in words."""
    return [
        f"{one}: should be {answer}, is {found[one]}"
        for one, answer in wanted.items()
        if found[one] != answer and not found[one].startswith(f"{answer} ")
    ]


def try_all(wanted: Table, parties: Mapping[str, Party]) -> Table:
    """What becomes of the attempts, all begun at the same time. `wanted` says only how long to wait for answers."""
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        clients = [stack.enter_context(one) for one in _begin(wanted, parties)]
        for client in clients:
            selector.register(client, client.events, client)
        missing = {one for one, answer in wanted.items() if answer != SILENT}
        now = again = time.monotonic()
        quiet, deadline = now + _QUIET_S, now + PATIENCE_S
        while now < (max(quiet, deadline) if missing else quiet):
            for key, _ in selector.select(0.05):
                client = key.data
                if client.goes_on():
                    selector.modify(client, client.events, client)
                else:
                    selector.unregister(client)
                    missing.discard(client.attempt)
                    quiet = time.monotonic() + _QUIET_S
            now = time.monotonic()
            if now > again + _AGAIN_S:
                again = now
                for client in clients:
                    client.repeat()
        return {client.attempt: client.answer for client in clients}


class _Client:
    """The socket of an attempt, in the namespace of the calling thread."""

    def __init__(self, attempt: Attempt, address: str) -> None:
        self.attempt = attempt
        self.answer = SILENT
        self._tcp = attempt.flow.protocol == "tcp"
        family = socket.AF_INET if attempt.flow.family == 4 else socket.AF_INET6
        self._socket = socket.socket(family, socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.events = selectors.EVENT_WRITE
        self._socket.connect_ex((address, attempt.port))

    def fileno(self) -> int:
        return self._socket.fileno()

    def goes_on(self) -> bool:
        """Speak, or hear; whether there is more to come."""
        try:
            if self.events == selectors.EVENT_WRITE:
                self._socket.send(b"?")
                self.events = selectors.EVENT_READ
                return True
            self.answer = self._socket.recv(2048).decode() or REFUSED
        except OSError:
            self.answer = REFUSED
        return False

    def repeat(self) -> None:
        """Send the datagram once more if there is no answer yet."""
        if not self._tcp and self.answer == SILENT:
            with contextlib.suppress(OSError):
                self._socket.send(b"?")

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._tcp:  # nothing of it is left to linger
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HANG_UP)
        self._socket.close()


def _begin(attempts: Iterable[Attempt], parties: Mapping[str, Party]) -> Iterator[_Client]:
    for name, group in itertools.groupby(attempts, lambda one: one.sender):
        listed = list(group)
        with parties[name].netns.inside():
            begun = [_Client(one, parties[one.receiver].addresses[one.flow.family]) for one in listed]
        yield from begun
