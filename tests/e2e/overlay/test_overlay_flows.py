"""Which connections live on, and which end, when policies and labels change and daemons come and go."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from overlay import connected, default_policy, open_lab
from traffic import FLOWS, PATIENCE_S, SILENCE_S, Flow, echoes
from world import eventually

from lab.cluster import Lab
from lab.hosts import OVERLAY, Container, done

SERVICE = 7000
LABELS = {"server": {"app": "server"}, "near": {"app": "client"}, "far": {"app": "client"}, "other": {"app": "client"}}


def ingress(protocol: str = "all", **peer: Any) -> dict[str, Any]:
    return {"direction": "ingress", "peer": peer, "protocol": protocol}


def egress(**peer: Any) -> dict[str, Any]:
    return {"direction": "egress", "peer": peer}


FROM_CLIENTS = [ingress(labels={"app": "client"})]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """server and near on h1; far and other on h2, across the router."""
    with open_lab(tmp_path_factory.mktemp("lab"), 2) as lab:
        for name, labels in LABELS.items():
            lab.hosts[name in ("far", "other")].container(name, labels)
        yield lab


@pytest.fixture
def lab(built: Lab) -> Iterator[Lab]:
    """The module's lab at rest: clients may begin whatever they like with server."""
    for name, labels in LABELS.items():
        label(built.containers[name], labels)
        done(built.containers[name].host.daemon.policy(name))
    server = built.containers["server"]
    server.policy(policies=FROM_CLIENTS)
    for name in ("near", "far", "other"):
        for to in server.addresses.items():
            eventually(partial(echoes, built.containers[name].netns, *to), f"{name} is let in")
    with built.restored():
        yield built
    eventually(lambda: all(connected(host) for host in built.hosts), "every daemon has found etcd again")


@pytest.fixture
def server(lab: Lab) -> Container:
    return lab.containers["server"]


def label(container: Container, labels: dict[str, str]) -> None:
    config = {"attach_to": [OVERLAY], "labels": labels}
    done(container.host.daemon.put(f"/containers/{container.name}/config", config))


class Connection:
    """Both ends of a connection, or two UDP sockets that speak to each other."""

    def __init__(self, client: Container, server: Container, flow: Flow, port: int) -> None:
        self.name = f"{client.name}-{flow}"
        self.flow = flow
        with contextlib.ExitStack() as stack:
            to = server.addresses[flow.family], port
            listening = stack.enter_context(flow.open(server.netns))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(to)
            self.client = stack.enter_context(flow.open(client.netns))
            for one in (listening, self.client):
                one.settimeout(PATIENCE_S)
            if flow.protocol == "tcp":
                listening.listen()
                self.client.connect(to)
                self.server = stack.enter_context(listening.accept()[0])
            else:
                self.server = listening
                self.client.connect(to)
                self.client.send(b"first")
                self.server.connect(self.server.recvfrom(64)[1])
            for end in (self.client, self.server):
                end.setblocking(False)
            self._stack = stack.pop_all()

    def goes_on(self) -> bool:
        """Whether each end hears what the other says from now on."""
        for sender, receiver in ((self.client, self.server), (self.server, self.client)):
            _heard(receiver)
            sender.send(b"word")
            if not select.select([receiver], [], [], PATIENCE_S)[0] or not _heard(receiver):
                return False
        return True

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


class Connections:
    """Connections of clients with a server in every protocol and IP version, in which each has heard the other."""

    def __init__(self, server: Container, *clients: Container) -> None:
        self._stack = contextlib.ExitStack()
        self._all = [
            self._stack.enter_context(Connection(client, server, flow, SERVICE + number))
            for number, (client, flow) in enumerate(itertools.product(clients, FLOWS))
        ]
        assert self.ended == set()

    @property
    def ended(self) -> set[str]:
        """Those in which an end does not hear any more what the other says."""
        return {one.name for one in self._all if not one.goes_on()}

    @property
    def heard(self) -> set[str]:
        """Those in which an end still hears something from now on, while clients and TCP servers go on to send.

        A UDP server that does begins something of its own, see below.
        """
        return self.still_heard(lambda one: [one.client, one.server] if one.flow.protocol == "tcp" else [one.client])

    def still_heard(self, senders: Callable[[Connection], Sequence[socket.socket]]) -> set[str]:
        """As `heard`, while these go on to send."""
        for one in self._all:
            _heard(one.client)
            _heard(one.server)
        found = set()
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            for one in self._all:
                for end in senders(one):
                    with contextlib.suppress(OSError):  # it may have been told that the other is not to be reached
                        end.send(b"word")
            ends = {end: one.name for one in self._all for end in (one.client, one.server)}
            readable, _, _ = select.select(list(ends), [], [], 0.005)
            found |= {ends[end] for end in readable if _heard(end)}
        return found

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def _heard(end: socket.socket) -> int:
    """Bytes that have come to an end of a connection."""
    count = 0
    with contextlib.suppress(OSError):
        while words := end.recv(65536):
            count += len(words)
    return count


def opened(lab: Lab) -> Connections:
    """Connections with server from its own host and from another."""
    return Connections(*(lab.containers[name] for name in ("server", "near", "far")))


# What lives on


def test_policies_that_still_allow_them_let_them_live(lab: Lab, server: Container) -> None:
    with opened(lab) as connections:
        for policies in (
            [ingress("tcp", labels={"app": "client"}), ingress("udp", network=OVERLAY), ingress(handle="other")],
            [ingress(cidr="10.1.0.0/16"), ingress(cidr="fd00:10:1::/64")],
            FROM_CLIENTS,
        ):
            server.policy(policies=policies)
            assert connections.ended == set(), policies
        server.policy(default_ingress="allow")
        assert connections.ended == set()
        for client in (lab.containers["near"], lab.containers["far"]):
            client.policy(policies=[egress(network=OVERLAY)])
            assert connections.ended == set()


def test_an_egress_by_labels_that_still_allows_them_lets_them_live(lab: Lab, server: Container) -> None:
    for name in ("near", "far"):
        lab.containers[name].policy(policies=[egress(labels={"app": "server"})])
        reaches = partial(echoes, lab.containers[name].netns, 4, server.addresses[4])
        eventually(reaches, "the addresses of the servers are known")
    with opened(lab) as connections:
        for name in ("near", "far"):
            lab.containers[name].policy(policies=[egress(labels={"app": "server"}), egress(handle="other")])
        assert connections.ended == set()


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_daemons_that_come_and_go_let_them_live(lab: Lab, how: str) -> None:
    with opened(lab) as connections:
        for host in lab.hosts:
            lab.kill(host) if how == "kill" else lab.stop(host)
            assert connections.ended == set(), f"without the daemon of {host.name}"
            lab.start(host)
            assert connections.ended == set(), f"with the daemon of {host.name} again"


def test_the_death_of_etcd_lets_them_live_while_policies_still_end_them(lab: Lab, server: Container) -> None:
    with opened(lab) as connections:
        lab.etcd.kill()
        eventually(lambda: not any(connected(host) for host in lab.hosts), "every daemon misses etcd")
        assert connections.ended == set()
        server.policy(policies=[ingress("tcp", labels={"app": "client"})])
        assert connections.heard == {"near-tcp4", "near-tcp6", "far-tcp4", "far-tcp6"}
        lab.etcd.start()
        eventually(lambda: all(connected(host) for host in lab.hosts), "every daemon has found etcd again")
        assert connections.heard == {"near-tcp4", "near-tcp6", "far-tcp4", "far-tcp6"}


# What ends


@pytest.mark.parametrize(
    "policies",
    [[], [ingress(labels={"app": "nobody"})], [ingress("icmp", network=OVERLAY)], [ingress(cidr="192.0.2.0/24")]],
    ids=["none", "labels", "protocol", "cidr"],
)
def test_an_ingress_that_forbids_them_now_ends_them_before_the_answer(
    lab: Lab, server: Container, policies: list[dict[str, Any]]
) -> None:
    with opened(lab) as connections:
        server.policy(policies=policies)
        assert connections.heard == set()


def test_those_of_another_that_are_still_allowed_live_on(lab: Lab, server: Container) -> None:
    far, other = lab.containers["far"], lab.containers["other"]
    label(other, {"app": "friend"})
    server.policy(policies=[ingress(labels={"app": "friend"}), *FROM_CLIENTS])
    eventually(partial(echoes, other.netns, 4, server.addresses[4]), "its new labels are known")
    with Connections(server, far, other) as connections:
        server.policy(policies=[ingress(labels={"app": "friend"})])
        assert connections.heard == {f"other-{flow}" for flow in FLOWS}


@pytest.mark.parametrize(
    "peer",
    [{"labels": {"app": "nobody"}}, {"cidr": "192.0.2.0/24"}, {"handle": "other"}],
    ids=["labels", "cidr", "handle"],
)
def test_an_egress_that_forbids_them_now_ends_them_before_the_answer(lab: Lab, peer: dict[str, Any]) -> None:
    with opened(lab) as connections:
        for name in ("near", "far"):
            lab.containers[name].policy(policies=[egress(**peer)])
        assert connections.still_heard(lambda one: [one.client, one.server]) == set()


def test_a_policy_put_on_another_host_ends_them_where_the_container_is(lab: Lab) -> None:
    with opened(lab) as connections:
        done(lab.hosts[1].daemon.policy("server", **{OVERLAY: {}}))
        eventually(lambda: connections.heard == set(), "they have ended", PATIENCE_S)


def test_a_default_policy_that_forbids_them_ends_them(lab: Lab, server: Container) -> None:
    default_policy(lab, policies=FROM_CLIENTS)
    try:
        done(server.host.daemon.policy("server"))
        with opened(lab) as connections:
            default_policy(lab)
            eventually(lambda: connections.heard == set(), "they have ended", PATIENCE_S)
    finally:
        default_policy(lab)


def test_what_has_ended_does_not_come_back_but_can_be_begun_anew(lab: Lab, server: Container) -> None:
    with opened(lab) as connections:
        server.policy()
        assert connections.heard == set()
    server.policy(policies=FROM_CLIENTS)
    with opened(lab):
        pass
