"""Which standing connections of an overlay a changed policy ends, with real connections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from pytest_netns import Netns

from conetd.kernel.conntrack import Conntrack
from conetd.kernel.flows import Flow as Tracked
from conetd.model import IPAddress, Rule, Verdict
from conetd.plan import EndpointPolicy
from conetd.reconcile.flows import Flows
from tests.kernel.traffic import PATIENCE_S, SILENCE_S, SILENT, TCP, UDP, Flow, ask, connect
from tests.kernel.tunnel_lab import ANYBODY, MARKS, NETWORK, UNDERLAY, Container, TunnelLab, address, of

FAMILIES = pytest.mark.parametrize("family", [4, 6])


class Talker:
    """A TCP server that sends to whoever connects, for as long as it stands, and never listens."""

    def __init__(self, netns: Netns, family: int, port: int = 9100) -> None:
        version = socket.AF_INET if family == 4 else socket.AF_INET6
        self._socket = netns.call(socket.create_server, ("", port), family=version)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def _talk(self) -> None:
        connection, _ = self._socket.accept()
        with connection, contextlib.suppress(OSError):
            while not self._stop.wait(0.005):
                connection.send(b"word ")

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


def comes_to_rest(sock: socket.socket) -> bool:
    """Whether nothing more arrives after a while."""
    sock.settimeout(SILENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            sock.recv(65536)
        except TimeoutError:
            return True
    return False


def changed(tunnel: TunnelLab, one: Container, *, ingress: Sequence[Rule] = (ANYBODY,), **more: object) -> None:
    """Give a container of host one another policy, as the daemon does it: apply, then settle."""
    before = tunnel.one.backend.held("EndpointPolicy", one.name)
    after = tunnel.policy(one, ingress=ingress, **more)  # type: ignore[arg-type]
    assert isinstance(before, EndpointPolicy)
    local = {*UNDERLAY["one"].values(), *address(3).values()}
    flows = tunnel.one.netns.call(lambda: Flows(Conntrack(), lambda: local, lambda: NETWORK.subnets))
    try:
        flows.settle(before, after, tuple(one.addresses.values()), NETWORK)
    finally:
        flows.close()


def tracked(tunnel: TunnelLab, source: IPAddress) -> list[Tracked]:
    """The connections that this address has opened, as host one knows them."""
    with tunnel.one.netns.call(Conntrack) as table:
        return table.flows_from(source)


@pytest.fixture(params=["across hosts", "on one host"])
def caller(request: pytest.FixtureRequest, tunnel: TunnelLab) -> Container:
    """Whoever connects to a."""
    return tunnel.c if request.param == "across hosts" else tunnel.b


@contextlib.contextmanager
def connected(tunnel: TunnelLab, caller: Container, flow: Flow, to: Container) -> Iterator[socket.socket]:
    """A connection that has carried a word each way."""
    tunnel.serve(to.netns, flow)
    sock, said = connect(caller.netns, flow, to.addresses[flow.family], 8080, PATIENCE_S)
    with sock:
        assert said == str(caller.addresses[flow.family])
        yield sock


def test_a_changed_ingress_ends_what_it_does_not_accept(tunnel: TunnelLab, flow: Flow, caller: Container) -> None:
    changed(tunnel, tunnel.a, ingress=[of(caller.name)])
    with connected(tunnel, caller, flow, tunnel.a) as sock:
        changed(tunnel, tunnel.a, ingress=[of("d")])
        assert ask(sock, SILENCE_S) == SILENT


@FAMILIES
def test_a_server_that_keeps_sending_is_not_heard_any_more(tunnel: TunnelLab, family: int, caller: Container) -> None:
    version = socket.AF_INET if family == 4 else socket.AF_INET6
    with Talker(tunnel.a.netns, family), caller.netns.call(socket.socket, version, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((str(tunnel.a.addresses[family]), 9100))
        assert sock.recv(5) == b"word "
        changed(tunnel, tunnel.a, ingress=[of("d")])
        assert comes_to_rest(sock)


def test_a_changed_ingress_leaves_what_it_still_accepts(tunnel: TunnelLab, flow: Flow, caller: Container) -> None:
    changed(tunnel, tunnel.a, ingress=[of(caller.name)])
    with connected(tunnel, caller, flow, tunnel.a) as sock:
        before = {one.id for one in tracked(tunnel, caller.addresses[flow.family])}
        changed(tunnel, tunnel.a, ingress=[of("d"), of(caller.name)])
        changed(tunnel, tunnel.a, ingress=[of(caller.name)])
        assert ask(sock, PATIENCE_S) == str(caller.addresses[flow.family])
        assert {one.id for one in tracked(tunnel, caller.addresses[flow.family])} == before


def test_a_changed_ingress_leaves_what_the_host_has_opened(tunnel: TunnelLab, flow: Flow) -> None:
    tunnel.serve(tunnel.a.netns, flow)
    sock, said = connect(tunnel.one.netns, flow, tunnel.a.addresses[flow.family], 8080, PATIENCE_S)
    with sock:
        own = type(tunnel.a.addresses[flow.family])(said)
        before = [one.id for one in tracked(tunnel, own)]
        assert before
        changed(tunnel, tunnel.a, ingress=[])
        assert [one.id for one in tracked(tunnel, own)] == before
        assert ask(sock, PATIENCE_S) == said


def test_a_changed_inside_ends_what_it_does_not_accept(tunnel: TunnelLab, flow: Flow) -> None:
    other = Rule(Verdict.ACCEPT, UDP if flow.protocol == TCP else TCP)
    for server in (tunnel.b, tunnel.c):
        with connected(tunnel, tunnel.a, flow, server) as sock:
            changed(tunnel, tunnel.a, inside=[Rule(Verdict.ACCEPT, flow.protocol)])
            assert ask(sock, PATIENCE_S) == str(tunnel.a.addresses[flow.family])
            changed(tunnel, tunnel.a, inside=[other])
            assert ask(sock, SILENCE_S) == SILENT
        changed(tunnel, tunnel.a)


def test_a_connection_keeps_the_identity_of_who_opened_it(tunnel: TunnelLab, flow: Flow, caller: Container) -> None:
    with connected(tunnel, caller, flow, tunnel.a):
        (found,) = tracked(tunnel, caller.addresses[flow.family])
        assert found.mark == MARKS[caller.name]


def test_a_connection_from_elsewhere_keeps_no_identity(tunnel: TunnelLab, flow: Flow) -> None:
    tunnel.serve(tunnel.a.netns, flow)
    sock, said = connect(tunnel.stranger, flow, tunnel.a.addresses[flow.family], 8080, PATIENCE_S)
    with sock:
        (found,) = tracked(tunnel, type(tunnel.a.addresses[flow.family])(said))
        assert found.mark == 0


@FAMILIES
def test_somebody_elses_mark_of_a_connection_stays(tunnel: TunnelLab, family: int) -> None:
    rules = "chain c { type filter hook prerouting priority -140; ct state new ct mark 0 ct mark set 0x50000; }"
    tunnel.one.netns.run("nft", "-f", "-", input=f"table inet theirs {{\n{rules}\n}}\n")
    try:
        with connected(tunnel, tunnel.c, Flow(UDP, family), tunnel.a):
            (found,) = tracked(tunnel, tunnel.c.addresses[family])
            assert found.mark == 0x50000
    finally:
        tunnel.one.netns.run("nft", "delete", "table", "inet", "theirs")
