"""What happens to flows when policies and mappings change under them, and what is logged."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from onehost import DENIED, EVERYTHING, OUTSIDE, SERVICE, UP, Lab, Machine
from stream import SINK, Stream
from traffic import CLOSED, REFUSED, SILENCE_S, SILENT, Flow, Talk
from world import eventually

GATEWAY = {4: "10.10.0.1", 6: "fd00:10::1"}
SWAPS = 50


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue; c on green."""
    lab = bare_lab
    lab.daemon.network("blue", subnet6="fd00:10::/64")
    lab.daemon.network("green", subnet="10.20.0.0/24", subnet6="fd00:20::/64", allow_host_access=True)
    for name, network in {"a": "blue", "b": "blue", "c": "green"}.items():
        lab.container(name, network)
    for machine in (lab.host, lab.outside, *lab.containers.values()):
        for protocol in ("tcp", "udp"):
            for port in (SERVICE, 9090):
                lab.services.open(machine.netns, machine.name, protocol, port)
    return lab


class Talks:
    """Conversations that are held open to the end of the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def begin(self, who: Machine, flow: Flow, to: str, port: int = SERVICE) -> Talk:
        """A conversation that has begun."""
        talk = self._stack.enter_context(Talk(who.netns, flow, to, port))
        assert talk.first not in (REFUSED, SILENT, CLOSED), (who, flow, to, port, talk.first)
        return talk


@pytest.fixture
def talks() -> Iterator[Talks]:
    with ExitStack() as stack:
        yield Talks(stack)


def goes_on(talk: Talk) -> bool:
    return talk.say() == talk.first


def has_ended(talk: Talk) -> bool:
    return talk.say(patience=SILENCE_S) in (REFUSED, SILENT, CLOSED)


def only(address: str) -> list[str]:
    return [f"{address}/{128 if ':' in address else 32}"]


def published(flow: Flow, *ports: tuple[int, int]) -> dict[str, Any]:
    """A policy that publishes these host ports at these container ports."""
    return {
        "net_in": [{"host_port": host, "container_port": inside, "protocol": flow.protocol} for host, inside in ports]
    }


# Narrowed policies


def test_a_narrowed_policy_ends_the_flows_it_forbids_and_no_others(
    lab: Lab, a: Machine, b: Machine, c: Machine, flow: Flow, talks: Talks
) -> None:
    denied, allowed = DENIED[flow.family], OUTSIDE[flow.family]
    lab.policy(a, blue=published(flow, (7000, SERVICE)))
    forbidden = talks.begin(a, flow, denied)
    others = [
        talks.begin(a, flow, allowed),
        talks.begin(a, flow.other, allowed),
        talks.begin(b, flow, denied),  # another container's
        talks.begin(a, flow, b.addresses[flow.family]),  # inside the network
        talks.begin(lab.outside, flow, UP[flow.family], 7000),  # towards the container
        talks.begin(lab.host, flow, a.addresses[flow.family]),
        talks.begin(c, flow, a.addresses[flow.family]),
    ]
    before = lab.flows()
    lab.policy(a, blue=published(flow, (7000, SERVICE)) | {"deny_networks": only(denied)})
    gone = set(before) - set(lab.flows())
    assert len(gone) == 1
    assert f"dst={_shown(denied)} sport={forbidden.port} " in gone.pop()
    assert has_ended(forbidden)
    assert all(goes_on(talk) for talk in others)


def _shown(address: str) -> str:
    """An address as `conntrack -L` prints it."""
    return address if "." in address else socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, address))


def test_a_policy_that_denies_everything_leaves_what_it_does_not_judge(
    lab: Lab, a: Machine, b: Machine, flow: Flow, talks: Talks
) -> None:
    lab.policy(a, blue=published(flow, (7000, SERVICE)))
    ended = [talks.begin(a, flow, OUTSIDE[flow.family]), talks.begin(a, flow.other, DENIED[flow.family])]
    kept = [
        talks.begin(a, flow, b.addresses[flow.family]),
        talks.begin(lab.outside, flow, UP[flow.family], 7000),
        talks.begin(b, flow, UP[flow.family], 7000),
        talks.begin(a, flow, UP[flow.family], 7000),  # to itself
    ]
    lab.policy(a, blue=published(flow, (7000, SERVICE)) | {"deny_networks": EVERYTHING})
    assert all(has_ended(talk) for talk in ended)
    assert all(goes_on(talk) for talk in kept)


def test_host_access_does_not_end_with_a_policy(lab: Lab, c: Machine, flow: Flow, talks: Talks) -> None:
    talk = talks.begin(c, flow, UP[flow.family])
    lab.policy(c, green={"deny_networks": EVERYTHING})
    assert goes_on(talk)


def test_a_rule_taken_back_ends_the_flows_it_had_opened(lab: Lab, a: Machine, flow: Flow, talks: Talks) -> None:
    def rule(port: int) -> dict[str, Any]:
        network = {"start": OUTSIDE[flow.family], "end": OUTSIDE[flow.family]}
        return {"protocol": flow.protocol, "networks": [network], "ports": [{"start": port, "end": port}]}

    lab.policy(a, blue={"deny_networks": EVERYTHING, "net_out": [rule(SERVICE), rule(9090)]})
    kept, ended = talks.begin(a, flow, OUTSIDE[flow.family]), talks.begin(a, flow, OUTSIDE[flow.family], 9090)
    lab.policy(a, blue={"deny_networks": EVERYTHING, "net_out": [rule(SERVICE)]})
    assert has_ended(ended)
    assert goes_on(kept)


def test_a_flow_to_a_published_port_is_ended_by_where_it_really_goes(
    lab: Lab, a: Machine, c: Machine, flow: Flow, talks: Talks
) -> None:
    lab.policy(a, blue=published(flow, (7000, SERVICE)))
    talk = talks.begin(c, flow, UP[flow.family], 7000)
    kept = talks.begin(c, flow, OUTSIDE[flow.family])
    lab.policy(c, green={"deny_networks": only(UP[flow.family])})
    assert goes_on(talk)
    lab.policy(c, green={"deny_networks": ["10.10.0.0/24", "fd00:10::/64"]})
    assert has_ended(talk)
    assert goes_on(kept)


def test_a_widened_policy_opens_at_once_and_ends_nothing(lab: Lab, a: Machine, flow: Flow, talks: Talks) -> None:
    network = {"start": OUTSIDE[flow.family], "end": OUTSIDE[flow.family]}
    lab.policy(a, blue={"deny_networks": EVERYTHING, "net_out": [{"networks": [network]}]})
    talk = talks.begin(a, flow, OUTSIDE[flow.family])
    before = lab.flows()
    lab.policy(a, blue={})
    assert set(before) <= set(lab.flows())
    assert lab.reach(a, flow, DENIED[flow.family]) == f"outside {UP[flow.family]}"
    assert goes_on(talk)


def test_a_default_policy_reaches_containers_without_one_of_their_own_only(
    lab: Lab, a: Machine, b: Machine, c: Machine, flow: Flow, talks: Talks
) -> None:
    lab.policy(b, blue={"log_denied": True})
    ended, kept = talks.begin(a, flow, OUTSIDE[flow.family]), talks.begin(b, flow, OUTSIDE[flow.family])
    elsewhere = talks.begin(c, flow, OUTSIDE[flow.family])
    try:
        answer = lab.daemon.put("/networks/blue/default_policy", {"deny_networks": EVERYTHING})
        assert answer.status == 200, answer
        assert lab.reach(a, flow, OUTSIDE[flow.family]) == REFUSED
        assert has_ended(ended)
        assert goes_on(kept)
        assert goes_on(elsewhere)
        assert lab.reach(b, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
        lab.policy(b)  # without its own, the default is its policy
        assert lab.reach(b, flow, OUTSIDE[flow.family]) == REFUSED
        lab.policy(a, blue={})
        assert lab.reach(a, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
    finally:
        assert lab.daemon.put("/networks/blue/default_policy", {}).status == 200


# Changed mappings


def test_a_changed_mapping_removes_exactly_the_entries_it_made_stale(
    lab: Lab, a: Machine, b: Machine, flow: Flow, talks: Talks
) -> None:
    up = UP[flow.family]
    lab.policy(a, blue=published(flow, (7000, SERVICE), (7001, SERVICE)))
    stale = [talks.begin(who, flow, up, 7000) for who in (lab.outside, lab.host, b, a)]
    kept = [talks.begin(who, flow, up, 7001) for who in (lab.outside, lab.host, b, a)]
    kept += [
        talks.begin(lab.host, flow, a.addresses[flow.family]),
        talks.begin(a, flow, OUTSIDE[flow.family]),
    ]
    before = lab.flows()
    lab.policy(a, blue=published(flow, (7000, 9090), (7001, SERVICE)))
    gone = set(before) - set(lab.flows())
    assert {_first_port(line) for line in gone} == {talk.port for talk in stale}
    assert all("dport=7000 " in line for line in gone)
    assert len(gone) == len(stale)
    assert all(goes_on(talk) for talk in kept)


def _first_port(line: str) -> int:
    return int(line.partition("sport=")[2].split()[0])


@pytest.mark.parametrize("vantage", ["outside", "host", "c"])
@pytest.mark.parametrize("family", [4, 6])
def test_udp_clients_follow_a_mapping_at_once(
    lab: Lab, a: Machine, b: Machine, family: int, vantage: str, talks: Talks, bridge_nf: int
) -> None:
    flow = Flow("udp", family)
    client = getattr(lab, vantage, None) or lab.containers[vantage]
    lab.policy(a, blue=published(flow, (7000, SERVICE)))
    talk = talks.begin(client, flow, UP[family], 7000)
    assert talk.first.startswith("a ")
    lab.policy(a)
    lab.policy(b, blue=published(flow, (7000, SERVICE)))
    assert talk.say().startswith("b ")
    lab.policy(b)
    talk.say(patience=SILENCE_S)  # a flow to the host itself, or none
    lab.policy(a, blue=published(flow, (7000, SERVICE)))
    assert talk.say().startswith("a ")


@pytest.mark.parametrize("family", [4, 6])
def test_a_udp_client_that_began_before_the_mapping_follows_it(lab: Lab, a: Machine, family: int, talks: Talks) -> None:
    flow = Flow("udp", family)
    with Talk(lab.outside.netns, flow, UP[family], 7000) as talk:
        assert talk.first == REFUSED
        lab.policy(a, blue=published(flow, (7000, SERVICE)))
        assert talk.say().startswith("a ")


def test_a_mapping_taken_back_ends_its_flows(lab: Lab, a: Machine, flow: Flow, talks: Talks) -> None:
    lab.policy(a, blue=published(flow, (7000, SERVICE), (7001, SERVICE)))
    ended, kept = (talks.begin(lab.outside, flow, UP[flow.family], port) for port in (7000, 7001))
    lab.policy(a, blue=published(flow, (7001, SERVICE)))
    assert has_ended(ended)
    assert goes_on(kept)


# Swaps under a stream


@pytest.mark.parametrize("many", [False, True], ids=["one-rule", "many-rules"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_swap_leaves_no_moment_with_neither_policy(lab: Lab, a: Machine, family: int, many: bool) -> None:
    opened, closed = OUTSIDE[family], DENIED[family]
    # many become sets in the kernel, which are another matter than single comparisons
    more = [{"start": f"2001:db8:77::{n:x}" if family == 6 else f"203.0.113.{n}"} for n in range(0, 100 * many, 2)]
    one = {"deny_networks": EVERYTHING, "net_out": [{"networks": [*more, {"start": opened}]}]}
    ports = {"protocol": "udp", "ports": [{"start": 9, "end": 9}, {"start": SINK, "end": SINK + 5}]}
    networks = [{"start": opened}, *more[: len(more) // 2]]
    denied = [*only(closed), *(text for n in more for text in only(n["start"]))]
    other = {"deny_networks": denied, "net_out": [{"networks": networks} | ports]}
    lab.policy(a, blue=one)
    with Stream(lab, a, opened) as passes, Stream(lab, a, closed) as stopped:
        for policy in itertools.islice(itertools.cycle((other, one)), SWAPS):
            lab.policy(a, blue=policy)
        assert passes.sent > SWAPS
        assert stopped.sent > SWAPS
        assert passes.arrived() == passes.sent
        assert stopped.arrived() == 0


@pytest.mark.parametrize("family", [4, 6])
def test_what_others_do_costs_nobody_a_packet(lab: Lab, a: Machine, b: Machine, family: int) -> None:
    closed = {"start": DENIED[family]}
    lab.policy(a, blue={"deny_networks": EVERYTHING, "net_out": [{"networks": [{"start": OUTSIDE[family]}]}]})
    with Stream(lab, a, OUTSIDE[family]) as passes, Stream(lab, a, DENIED[family]) as stopped:
        for number in range(3):
            lab.daemon.network("brief", subnet="10.90.0.0/24", subnet6="fd00:90::/64", isolated=bool(number % 2))
            guest = lab.container(f"guest{number}", "blue", "brief")
            lab.policy(guest, blue={"net_in": [{"host_port": 0}], "net_out": [{"networks": [closed]}]})
            lab.policy(b, blue={"deny_networks": only(OUTSIDE[family])} if number % 2 else {})
            lab.remove(guest)
            assert lab.daemon.delete("/networks/brief").status == 204
        assert passes.arrived() == passes.sent > 50
        assert stopped.arrived() == 0


# What is logged


def packets(lab: Lab, since: int, verdict: str, count: int) -> list[str]:
    """The lines about packets in the daemon's log from there on, once there are `count`."""

    def found() -> list[str]:
        return [line for line in lab.daemon.log[since:].splitlines() if f"packet {verdict}" in line]

    eventually(lambda: len(found()) >= count, f"{count} packets {verdict} are logged: {lab.daemon.log[since:]}")
    return found()


def test_a_rule_that_logs_writes_a_line_for_each_new_connection(
    lab: Lab, a: Machine, b: Machine, flow: Flow, talks: Talks
) -> None:
    network = {"start": OUTSIDE[flow.family], "end": OUTSIDE[flow.family]}
    lab.policy(a, blue={"net_out": [{"networks": [network], "log": True}]})
    since = len(lab.daemon.log)
    talks.begin(b, flow, OUTSIDE[flow.family])
    talks.begin(a, flow, DENIED[flow.family])
    first = talks.begin(a, flow, OUTSIDE[flow.family])
    assert goes_on(first)
    last = talks.begin(a, flow, OUTSIDE[flow.family])
    lines = packets(lab, since, "allowed", 2)
    ports = [next(word for word in line.split() if word.startswith("source_port=")) for line in lines]
    assert ports == [f"source_port={first.port}", f"source_port={last.port}"]
    for words in ("handle=a ", f"protocol={flow.protocol} ", f"destination={_shown(OUTSIDE[flow.family])}"):
        assert all(words in line for line in lines), (words, lines)


def test_datagrams_that_nobody_answers_are_one_connection(lab: Lab, a: Machine) -> None:
    lab.policy(a, blue={"net_out": [{"log": True}]})
    since = len(lab.daemon.log)
    with (
        a.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock,
        lab.outside.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sink,
    ):
        sink.bind(("", SINK))
        sink.settimeout(5)
        for _ in range(3):
            sock.sendto(b"x", (OUTSIDE[4], SINK))
            sink.recv(64)
        sock.sendto(b"x", (OUTSIDE[4], SERVICE))
    lines = packets(lab, since, "allowed", 2)
    assert [f"destination_port={port}" in line for port, line in zip((SINK, SERVICE), lines, strict=True)] == [True] * 2


def test_log_denied_writes_a_line_for_what_is_refused(lab: Lab, a: Machine, b: Machine, flow: Flow) -> None:
    lab.policy(a, blue={"deny_networks": only(DENIED[flow.family]), "log_denied": True})
    lab.policy(b, blue={"deny_networks": only(DENIED[flow.family])})
    since = len(lab.daemon.log)
    assert lab.reach(b, flow, DENIED[flow.family]) == REFUSED
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
    assert lab.reach(a, flow, DENIED[flow.family]) == REFUSED
    [line] = packets(lab, since, "denied", 1)
    assert "handle=a " in line
    assert f"destination={_shown(DENIED[flow.family])}" in line
    assert "packet allowed" not in lab.daemon.log[since:]
