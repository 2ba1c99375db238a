"""Busy connections between hosts: carried beside the packet filter, and no further than the filter lets them go."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from overlay import ANYBODY, default_policy, open_lab
from traffic import PATIENCE_S, SILENCE_S, Flow, Services, ask
from world import eventually

from conetd.kernel.forwarded import forwarded
from lab.cluster import Lab
from lab.hosts import OVERLAY, Container, Host, done

HOMES = {"client": 0, "friend": 0, "server": 1, "other": 1}  # the containers, each labelled with its name, and its host
OPEN, SHUT = 8080, 9090
LASTS_S = 60  # what is on the fast path is judged again after so long, by whatever there is then
KEEPING_S = 3.0  # in which the daemon looks several times at what is busy
QUEUED_S = 0.1  # after which nothing is on its way any more
PACE = 16_000_000  # bytes a second of a stream: others need this machine, too
SEGMENTS = 2  # that the kernel handles as one packet: with more, a stream at this pace would be of few packets
SHORT = 100  # connections of each kind
_SO_MAX_PACING_RATE = 47
_SEGMENTS_IN = 140  # where they are in struct tcp_info
_ROUND_S = 0.1  # after which the threads of a stream look whether they are to end
_WATCH_S = 0.3  # between two looks at how the daemons are
_NOISE = memoryview(os.urandom(1 << 20))
_CHUNK = 1 << 16

Ends = tuple[str, int, str, int]  # source and destination of a segment, each address and port
Pair = tuple[str, str, int]  # containers that are client and server, and the IP version
BOTH: list[Pair] = [("client", "server", 4), ("client", "server", 6)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts, across the router. Everybody lets everybody in."""
    with open_lab(tmp_path_factory.mktemp("lab"), 2, **ANYBODY) as lab:
        yield lab


@pytest.fixture
def lab(built: Lab) -> Iterator[Lab]:
    """The module's lab at rest: every container is up, and none has a policy of its own.

    During a test no daemon may have anything to complain of.
    """
    default_policy(built, **ANYBODY)
    for name, home in HOMES.items():
        if name not in built.containers:
            made = built.hosts[home].container(name, {"app": name})
            made.netns.run("ip", "link", "set", "eth0", "gso_max_segs", str(SEGMENTS))
        done(built.hosts[home].daemon.policy(name))
    with contentment(built), built.restored():
        yield built


@contextlib.contextmanager
def contentment(lab: Lab) -> Iterator[None]:
    """Within the block no daemon says, when it is asked or in its log, that anything is not as wanted."""
    read = {host.name: len(host.daemon.log) for host in lab.hosts}
    found: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        unwell: dict[str, bool] = {}
        while not stop.wait(_WATCH_S):
            for host in lab.hosts:
                with contextlib.suppress(OSError, http.client.HTTPException):  # it has been stopped
                    answer = host.daemon.get("/status")
                    begins = answer.body.get("cluster", {}).get("state") != "connected"
                    was, unwell[host.name] = unwell.get(host.name), answer.status != 200 and not begins
                    if was and unwell[host.name]:  # once: a change was on its way into the kernel
                        found.append(f"{host.name}: {answer.body}")

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    for host in lab.hosts:
        lines = host.daemon.log[read[host.name] :].splitlines()
        found += [line for line in lines if any(word in line for word in (" WARNING ", " ERROR ", "drift"))]
    assert found == []


class Stream:
    """A TCP connection whose client sends without end, once it is begun; for the length of a block."""

    def __init__(self, client: Container, server: Container, family: int = 4, port: int = 0) -> None:
        flow = Flow("tcp", family)
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(flow.open(server.netns))
            listening.bind((server.addresses[family], port))
            listening.listen()
            self.client = stack.enter_context(flow.open(client.netns))
            self.client.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, PACE)
            self.client.settimeout(PATIENCE_S)
            self.client.connect(listening.getsockname()[:2])
            self.server = stack.enter_context(listening.accept()[0])
            self.there: Ends = (*self.client.getsockname()[:2], *self.server.getsockname()[:2])
            self._stack = stack.pop_all()
        self.back: Ends = self.there[2:] + self.there[:2]
        self.sent = self.received = 0
        self._sums = [0, 0]
        self._stop, self._away = threading.Event(), threading.Event()
        self._sender, self._receiver = threading.Thread(target=self._send), threading.Thread(target=self._receive)

    def says(self) -> bool:
        """Whether a word gets through in one that is not begun."""
        self.client.send(b"word")
        return bool(select.select([self.server], [], [], PATIENCE_S)[0]) and self.server.recv(64) == b"word"

    def begin(self) -> None:
        """Send from now on."""
        for end in (self.client, self.server):
            end.settimeout(_ROUND_S)
        self._sender.start()
        self._receiver.start()

    def goes_on(self) -> None:
        """Return when more has been received."""
        before = self.received
        eventually(lambda: self.received > before + _CHUNK, "the stream goes on")

    def stop(self) -> None:
        """Send no more; return when everything has been received."""
        self._stop.set()
        self._sender.join()
        eventually(lambda: self.received >= self.sent, "what was sent has been received")

    @property
    def whole(self) -> bool:
        """Whether all that was sent has been received as it was sent. Nothing is sent from then on."""
        self.stop()
        return self.received == self.sent > 0 and self._sums[0] == self._sums[1]

    @property
    def segments(self) -> list[int]:
        """How many have come to either end, whatever has become of them."""
        told = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256) for one in (self.client, self.server)]
        return [struct.unpack_from("=I", one, _SEGMENTS_IN)[0] for one in told]

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._away.set()
        for thread in (self._sender, self._receiver):
            if thread.ident is not None:
                thread.join()
        self._stack.close()

    def _send(self) -> None:
        while not self._stop.is_set():
            start = self.sent % len(_NOISE)
            try:
                count = self.client.send(_NOISE[start : start + _CHUNK])
            except TimeoutError:
                continue
            except OSError:  # it has been told that the other end is not to be reached
                return
            self._sums[0] = zlib.crc32(_NOISE[start : start + count], self._sums[0])
            self.sent += count

    def _receive(self) -> None:
        room = memoryview(bytearray(_CHUNK))
        while not self._away.is_set():
            try:
                count = self.server.recv_into(room)
            except TimeoutError:
                continue
            except OSError:
                return
            if not count:
                hang_up(self.server)
                return
            self._sums[1] = zlib.crc32(room[:count], self._sums[1])
            self.received += count


def hang_up(end: socket.socket) -> None:
    """Say that nothing more will come."""
    end.shutdown(socket.SHUT_WR)


def reset(end: socket.socket) -> None:
    """Go away."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


@contextlib.contextmanager
def streaming(lab: Lab, *pairs: Pair, port: int = 0) -> Iterator[list[Stream]]:
    """Streams, one for each pair, that both hosts have on the fast path."""
    with contextlib.ExitStack() as stack:
        streams = []
        for client, server, family in pairs:
            one = Stream(lab.containers[client], lab.containers[server], family, port)
            streams.append(stack.enter_context(one))
            one.begin()
        await_fast(lab.hosts, streams)
        yield streams


# What a host has in its kernel


def netdev(host: Host, kind: str) -> list[dict[str, Any]]:
    """All of a kind, `table` or `map`, that nftables has in the family netdev."""
    listed = json.loads(host.netns.run("nft", "-j", "list", "ruleset", "netdev").stdout)["nftables"]
    return [one[kind] for one in listed if kind in one]


def elements(host: Host) -> dict[Ends, int]:
    """What is on the fast path, and for how many seconds yet."""
    found = {}
    for one in netdev(host, "map"):
        for key, _ in one.get("elem", ()):
            *_, source, destination, ports = key["elem"]["val"]["concat"]
            source_port, destination_port = struct.unpack(">HH", struct.pack("=I", ports))
            found[source, source_port, destination, destination_port] = int(key["elem"]["expires"])
    return found


def carries(host: Host, streams: Sequence[Stream]) -> bool:
    """Whether what the clients of all of them send is on the fast path."""
    return {one.there for one in streams} <= elements(host).keys()


def carries_any(host: Host, streams: Sequence[Stream]) -> bool:
    """Whether anything of any of them is, in either direction."""
    return not elements(host).keys().isdisjoint(ends for one in streams for ends in (one.there, one.back))


def await_fast(hosts: Sequence[Host], streams: Sequence[Stream]) -> None:
    for host in hosts:
        eventually(partial(carries, host, streams), f"{host.name} has them on the fast path")


def tracked(host: Host, stream: Stream) -> list[tuple[int, str]]:
    """How the connection is remembered: for how many seconds yet, and in which state. Empty if it is not."""
    ports = {f"sport={stream.there[1]}", f"dport={stream.there[3]}"}
    lines = [line.split() for line in host.netns.run("conntrack", "-L", "-p", "tcp").stdout.splitlines()]
    return [(int(line[2]), line[3]) for line in lines if ports <= set(line)]


def ingress(protocol: str = "all", port: int = 0, **peer: Any) -> dict[str, Any]:
    ports = {"ports": {"start": port, "end": port}} if port else {}
    return {"direction": "ingress", "peer": peer, "protocol": protocol, **ports}


# On it


def test_what_is_busy_gets_on_it_and_what_is_not_does_not(lab: Lab) -> None:
    client, server = lab.containers["client"], lab.containers["server"]
    with contextlib.ExitStack() as stack:
        busy, quiet = (
            [stack.enter_context(Stream(client, server, family)) for family in (4, 6)] for _ in ("busy", "quiet")
        )
        assert all(one.says() for one in busy + quiet)
        assert not any(carries_any(host, busy) for host in lab.hosts)
        for one in busy:
            one.begin()

        def all_carry() -> bool:
            return all(one.says() for one in quiet) and all(carries(host, busy) for host in lab.hosts)

        eventually(all_carry, "both hosts have them on the fast path")
        assert not any(carries_any(host, quiet) for host in lab.hosts)


def test_what_is_on_it_passes_beside_the_filter(lab: Lab) -> None:
    with streaming(lab, *BOTH) as streams:
        before = [host.netns.call(forwarded) for host in lab.hosts]
        arrived = sum(one.segments[1] for one in streams)
        eventually(lambda: sum(one.segments[1] for one in streams) > arrived + 4000, "they go on")
        passed = [host.netns.call(forwarded) - was for host, was in zip(lab.hosts, before, strict=True)]
    assert max(passed) < 1000


def test_a_policy_that_still_allows_it_takes_it_off_for_a_moment_and_costs_nothing(lab: Lab) -> None:
    server, host = lab.containers["server"], lab.hosts[1]
    allowing: list[dict[str, Any]] = [
        {"policies": [ingress("tcp", labels={"app": "client"})]},
        {"policies": [ingress(network=OVERLAY)]},
        ANYBODY,
    ]
    with streaming(lab, *BOTH) as streams:
        for policy in allowing:
            [before] = netdev(host, "table")
            server.policy(**policy)
            await_fast(lab.hosts, streams)
            [after] = netdev(host, "table")
            assert before["handle"] != after["handle"], "it was never off"
            for one in streams:
                one.goes_on()
        assert all(one.whole for one in streams)


# Off it


def narrow_ingress(lab: Lab) -> Host:
    lab.containers["server"].policy(policies=[ingress(labels={"app": "friend"})])
    return lab.hosts[1]


def narrow_egress(lab: Lab) -> Host:
    lab.containers["client"].policy(policies=[{"direction": "egress", "peer": {"labels": {"app": "other"}}}])
    return lab.hosts[0]


def narrow_default(lab: Lab) -> Host:
    done(lab.hosts[1].daemon.put(f"/networks/{OVERLAY}/default_policy", {}))
    return lab.hosts[1]


def end_receiver(lab: Lab) -> Host:
    lab.containers["server"].down()
    return lab.hosts[1]


def end_sender(lab: Lab) -> Host:
    lab.containers["client"].down()
    return lab.hosts[0]


@pytest.mark.parametrize(
    ("forbid", "kept"),
    [
        (narrow_ingress, ("friend", "server", 4)),
        (narrow_egress, ("client", "other", 4)),
        (narrow_default, ("client", "other", 4)),
        (end_receiver, ("client", "other", 4)),
        (end_sender, ("friend", "server", 4)),
    ],
)
def test_what_is_forbidden_has_ended_with_the_answer_and_does_not_come_back(
    lab: Lab, forbid: Callable[[Lab], Host], kept: Pair
) -> None:
    lab.containers["other"].policy(**ANYBODY)
    with streaming(lab, *BOTH, kept) as (*ended, other):
        judge = forbid(lab)
        answered = time.monotonic()
        assert not carries_any(judge, ended)
        time.sleep(QUEUED_S)
        before = [one.segments for one in ended]
        await_fast([judge], [other])
        while time.monotonic() < answered + KEEPING_S:
            other.goes_on()
            assert not carries_any(judge, ended)
        assert [one.segments for one in ended] == before
        eventually(lambda: not any(tracked(judge, one) for one in ended), "nothing remembers them")
        assert other.whole


def stands_still(stream: Stream) -> bool:
    before = stream.segments
    time.sleep(SILENCE_S)
    return stream.segments == before


def test_what_somebody_else_drops_stops_until_he_does_not(lab: Lab) -> None:
    host = lab.hosts[1]
    with streaming(lab, *BOTH) as streams:
        rules = [f"add rule inet foreign forward tcp dport {one.there[3]} drop" for one in streams]
        chain = "add chain inet foreign forward { type filter hook forward priority 10; }"
        host.netns.run("nft", "-f", "-", input="\n".join(["add table inet foreign", chain, *rules]) + "\n")
        try:
            eventually(lambda: all(stands_still(one) for one in streams), "they have stopped")
            assert not carries_any(host, streams)
        finally:
            host.netns.run("nft", "delete", "table", "inet", "foreign")
        for one in streams:
            one.goes_on()
        await_fast([host], streams)
        assert all(one.whole for one in streams)


def test_a_host_that_leaves_the_network_leaves_nothing_on_it(lab: Lab) -> None:
    stays, leaves = lab.hosts
    with streaming(lab, *BOTH) as streams:
        for name in ("server", "other"):
            lab.containers[name].remove()
        assert carries(stays, streams), "nothing has changed there"
        done(leaves.daemon.delete(f"/networks/{OVERLAY}"))
        try:
            assert netdev(leaves, "table") == []
            eventually(lambda: netdev(stays, "table") == [], "the other host knows")
        finally:
            lab.network(default_policy=ANYBODY)
            lab.wait_until_joined()


# Daemons that come and go


def test_a_daemon_that_is_killed_lets_it_go_on_and_finds_nothing_stale_when_it_is_back(lab: Lab) -> None:
    host = lab.hosts[1]
    with streaming(lab, *BOTH) as streams, streaming(lab, ("friend", "server", 4)) as ended:
        ended[0].stop()
        lab.kill(host)
        host.netns.run("nft", "add", "table", "inet", "conetd_sample")  # as if it had just been looking
        assert carries(host, [*streams, *ended])
        for one in streams:
            one.goes_on()
        lab.start(host)
        assert "conetd_sample" not in host.netns.run("nft", "list", "tables").stdout
        await_fast([host], streams)
        assert not carries_any(host, ended)
        assert all(one.whole for one in streams)


def test_what_is_on_it_when_a_daemon_stops_lapses_and_one_that_is_told_to_have_none_has_none(lab: Lab) -> None:
    with streaming(lab, *BOTH) as streams, without_one(lab, lab.hosts[1]):
        started = time.monotonic()
        while time.monotonic() < started + KEEPING_S:
            for one in streams:
                one.goes_on()
            assert netdev(lab.hosts[1], "table") == []
        assert all(one.whole for one in streams)


@contextlib.contextmanager
def without_one(lab: Lab, host: Host) -> Iterator[None]:
    """A host whose daemon has another setting for the length of the block."""
    before = host.daemon.settings
    lab.stop(host)
    try:
        assert 0 < max(elements(host).values()) <= LASTS_S
        host.daemon.settings = f"fast_path = false\n{before}"
        lab.start(host)
        yield
    finally:
        host.daemon.settings = before
        lab.restart(host)


# Connections as such


def test_short_connections_beside_it_are_all_judged(lab: Lab) -> None:
    client, stranger, server = (lab.containers[name] for name in ("client", "friend", "server"))
    own = OPEN + 1
    server.policy(policies=[ingress("tcp", port, labels={"app": "client"}) for port in (OPEN, own)])
    with (
        contextlib.closing(Services()) as services,
        streaming(lab, *BOTH, port=own) as streams,
        contextlib.ExitStack() as stack,
    ):
        for port in (OPEN, SHUT):
            services.open(server.netns, server.name, "tcp", port)
        denied = []
        for number in range(SHORT):
            flow = Flow("tcp", 4 + number % 2 * 2)
            to = server.addresses[flow.family]
            for who, port in ((client, SHUT), (stranger, OPEN), (stranger, own)):
                one = stack.enter_context(flow.open(who.netns))
                one.setblocking(False)
                one.connect_ex((to, port))
                denied.append(one)
            assert ask(client.netns, flow, to, OPEN) == f"server {client.addresses[flow.family]}"
        assert select.select([], denied, [], SILENCE_S)[1] == []
        assert all(carries(host, streams) for host in lab.hosts)
        assert not any({OPEN, SHUT}.intersection(ends) for host in lab.hosts for ends in elements(host))
        assert all(one.whole for one in streams)


@pytest.mark.parametrize("end", [hang_up, reset])
def test_one_that_has_ended_is_not_taken_for_one_that_goes_on(lab: Lab, end: Callable[[socket.socket], None]) -> None:
    with streaming(lab, *BOTH) as streams:
        for one in streams:
            one.stop()
            end(one.client)

        def alive() -> list[str]:
            return [state for host in lab.hosts for one in streams for _, state in tracked(host, one)]

        # of some ends the kernel is not sure, and waits for ten seconds
        eventually(lambda: "ESTABLISHED" not in alive(), "both hosts know that they have ended", PATIENCE_S)


def test_one_that_falls_silent_is_remembered_for_as_long_as_any_other(lab: Lab) -> None:
    with streaming(lab, *BOTH) as streams:
        for one in streams:
            one.stop()
        for host in lab.hosts:
            any_other = int(host.netns.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established"))
            left = [seconds for one in streams for seconds, _ in tracked(host, one)]
            assert len(left) == len(streams)
            assert min(left) > any_other // 2


def test_one_that_is_half_closed_is_not_forgotten_while_it_is_on_it(lab: Lab) -> None:
    with Stream(lab.containers["client"], lab.containers["server"]) as stream:
        hang_up(stream.server)
        stream.begin()
        with streaming(lab, ("client", "server", 6)):  # so both hosts have looked at what is busy
            for host in lab.hosts:
                on_it = elements(host).get(stream.there, 0)
                [(remembered, _)] = tracked(host, stream)
                assert remembered > on_it + 1
