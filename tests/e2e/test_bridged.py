"""What a bridge carries besides plain conversations, the same with br_netfilter off, on, and switched under way."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import pytest
from frames import IPV4, Capture, ethernet, segment, send
from onehost import EVERYTHING, OUTSIDE, SERVICE, UP, Lab, Machine
from traffic import FLOWS, PATIENCE_S, SILENCE_S, Flow, Talk, echoes
from world import eventually

GROUP = {4: "224.0.0.251", 6: "ff02::fb"}
GATEWAY_MAC = "0a:c0:0a:0a:00:01"
BIG = 5000  # bytes of a datagram that travels in fragments
PORT = 9000


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue; i, j on gray, isolated; c on green."""
    lab = bare_lab
    lab.daemon.network("blue", subnet6="fd00:10::/64")
    lab.daemon.network("gray", subnet="10.30.0.0/24", subnet6="fd00:30::/64", isolated=True)
    lab.daemon.network("green", subnet="10.20.0.0/24", subnet6="fd00:20::/64")
    for name, network in {"a": "blue", "b": "blue", "i": "gray", "j": "gray", "c": "green"}.items():
        lab.container(name, network)
    for flow in FLOWS:
        for machine in (lab.host, lab.outside, *lab.containers.values()):
            lab.serve(machine, flow)
    return lab


def hears(listener: Machine, speaker: Machine, family: int, to: str, *, seconds: float) -> bool:
    """Whether a datagram to a broadcast or multicast address arrives at a socket."""
    flow = Flow("udp", family)
    with flow.open(listener.netns) as ear, flow.open(speaker.netns) as mouth:
        ear.settimeout(seconds)
        ear.bind(("", PORT))
        link = "eth0" if listener.name not in ("host",) else None
        if to == GROUP[family]:
            assert link is not None
            index = listener.netns.call(socket.if_nametoindex, link)
            request = socket.inet_pton(socket.AF_INET6 if family == 6 else socket.AF_INET, to)
            if family == 6:
                ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request + index.to_bytes(4, "little"))
            else:
                ear.setsockopt(
                    socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request + bytes(4) + index.to_bytes(4, "little")
                )
        if family == 4:
            mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        out = speaker.netns.call(socket.if_nametoindex, "eth0")
        mouth.sendto(b"to all", (to, PORT) if family == 4 else (to, PORT, 0, out))
        with contextlib.suppress(TimeoutError):
            return ear.recv(100) == b"to all"
    return False


@pytest.mark.parametrize(("family", "to"), [(4, "10.10.0.255"), (4, "255.255.255.255"), (4, GROUP[4]), (6, GROUP[6])])
def test_what_is_for_all_reaches_the_neighbours(
    lab: Lab, a: Machine, b: Machine, bridge_nf: int, family: int, to: str
) -> None:
    lab.policy(a, blue={"deny_networks": EVERYTHING})
    assert hears(b, a, family, to, seconds=PATIENCE_S)


@pytest.mark.parametrize(("family", "to"), [(4, "10.30.0.255"), (4, GROUP[4]), (6, GROUP[6])])
def test_what_is_for_all_does_not_reach_isolated_neighbours(lab: Lab, bridge_nf: int, family: int, to: str) -> None:
    if lab.backend == "iptables" and not bridge_nf:
        pytest.skip("iptables does not see frames inside a bridge with bridge-nf-call-iptables = 0")
    assert not hears(lab.containers["j"], lab.containers["i"], family, to, seconds=SILENCE_S)


@pytest.mark.parametrize("to", ["10.10.0.255", "255.255.255.255"])
def test_what_is_for_all_does_not_reach_a_host_that_is_closed(lab: Lab, a: Machine, bridge_nf: int, to: str) -> None:
    assert not hears(lab.host, a, 4, to, seconds=SILENCE_S)


def test_neighbours_speak_by_their_link_local_addresses(lab: Lab, a: Machine, b: Machine, bridge_nf: int) -> None:
    [there] = [
        one["local"]
        for one in b.netns.json("ip", "-j", "-6", "addr", "show", "dev", "eth0")[0]["addr_info"]
        if one["scope"] == "link"
    ]
    index = a.netns.call(socket.if_nametoindex, "eth0")
    for protocol in ("tcp", "udp"):
        with Flow(protocol, 6).open(a.netns) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect((there, SERVICE, 0, index))
            sock.send(b"hello")
            assert sock.recv(100).startswith(b"b fe80:")


def say_much(who: Machine, family: int, to: str, port: int) -> str:
    with Flow("udp", family).open(who.netns) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((to, port))
        sock.send(bytes(BIG))
        return sock.recv(2048).decode()


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_pass_everywhere(lab: Lab, a: Machine, b: Machine, bridge_nf: int, family: int) -> None:
    lab.policy(a, blue={"net_in": [{"host_port": 7000, "container_port": SERVICE, "protocol": "udp"}]})
    assert say_much(a, family, OUTSIDE[family], SERVICE) == f"outside {UP[family]}"
    assert say_much(b, family, a.addresses[family], SERVICE) == f"a {b.addresses[family]}"
    for vantage in (lab.outside, lab.host, a, b, lab.containers["c"]):
        assert say_much(vantage, family, UP[family], 7000).startswith("a ")


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_are_judged(lab: Lab, a: Machine, family: int) -> None:
    lab.policy(a, blue={"deny_networks": EVERYTHING})
    with pytest.raises(ConnectionRefusedError):
        say_much(a, family, OUTSIDE[family], SERVICE)


def test_flows_go_on_while_br_netfilter_is_switched(lab: Lab, a: Machine, b: Machine, flow: Flow) -> None:
    lab.policy(b, blue={"net_in": [{"host_port": 7000, "container_port": SERVICE, "protocol": flow.protocol}]})
    i, j = lab.containers["i"], lab.containers["j"]
    lab.policy(j, gray={"net_in": [{"host_port": 7001, "container_port": SERVICE, "protocol": flow.protocol}]})
    ways = [(a, b.addresses[flow.family], SERVICE), (i, UP[flow.family], 7001)]
    ways += [(who, UP[flow.family], 7000) for who in (a, b, lab.outside, lab.host, lab.containers["c"])]
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Talk(who.netns, flow, to, port)) for who, to, port in ways]
        stack.callback(lab.bridge_netfilter, 0)
        for value in (1, 0, 1):
            lab.bridge_netfilter(value)
            assert [talk.say() for talk in talks] == [talk.first for talk in talks]
            assert lab.reach(a, flow, b.addresses[flow.family]) == f"b {a.addresses[flow.family]}"


@pytest.mark.parametrize("flags", [0x04, 0x12, 0x3F], ids=["rst", "syn-ack", "all"])
def test_no_packet_leaves_with_an_address_that_should_be_masqueraded(lab: Lab, a: Machine, flags: int) -> None:
    """Connection tracking rewrites only what belongs to a flow; a stray packet would go out as it is."""
    with Capture(lab.outside.netns) as capture:
        stray = segment(a.addresses[4], OUTSIDE[4], 9, 9, flags=flags)
        send(a.netns, ethernet(GATEWAY_MAC, a.mac, IPV4, stray))
        assert lab.reach(a, Flow("udp", 4), OUTSIDE[4]) == f"outside {UP[4]}"
        seen = capture.until(lambda frame: b"hello" in frame, PATIENCE_S)
    assert seen
    assert [frame for frame in seen if socket.inet_aton(a.addresses[4]) in frame] == []


def test_an_address_may_move_to_another_mac_at_once(lab: Lab, b: Machine, guests: Callable[..., Machine]) -> None:
    b.netns.sysctl("net/ipv4/neigh/eth0/locktime", 0)  # else it believes nothing new for a second
    join = {"network": "blue", "ip": "10.10.0.99", "ip6": "fd00:10::99"}
    for number in (1, 2):
        container = guests(join | {"mac": f"02:00:00:00:00:0{number}"})
        for flow in FLOWS:
            lab.serve(container, flow)
            for vantage in (b, lab.host, lab.containers["c"]):
                assert lab.reach(vantage, flow, container.addresses[flow.family]).startswith(container.name), vantage
        lab.remove(container)


def test_nothing_of_a_container_s_flows_outlives_it(lab: Lab, b: Machine, guests: Callable[..., Machine]) -> None:
    container = guests("blue")
    lab.policy(container, blue={"net_in": [{"host_port": 7002, "container_port": SERVICE, "protocol": "udp"}]})
    lab.serve(container, Flow("udp", 4))
    lab.reach(container, Flow("udp", 4), OUTSIDE[4])
    lab.reach(lab.outside, Flow("udp", 4), UP[4], 7002)
    word = f"={container.addresses[4]} "
    assert len([one for one in lab.flows() if word in one]) == 2
    lab.remove(container)
    eventually(lambda: not [one for one in lab.flows() if word in one], "its flows are forgotten", seconds=2)


def test_a_udp_client_follows_a_container_that_is_replaced(lab: Lab, guests: Callable[..., Machine]) -> None:
    flow = Flow("udp", 4)
    policy = {"net_in": [{"host_port": 7003, "container_port": SERVICE, "protocol": "udp"}]}
    first = guests("blue")
    lab.serve(first, flow)
    lab.policy(first, blue=policy)
    with Talk(lab.outside.netns, flow, UP[4], 7003) as talk:
        assert talk.first.startswith(first.name)
        lab.remove(first)
        second = guests("blue")
        lab.serve(second, flow)
        lab.policy(second, blue=policy)
        assert talk.say().startswith(second.name)


@pytest.mark.parametrize("family", [4, 6])
def test_strict_reverse_path_filters_are_no_obstacle(lab: Lab, a: Machine, b: Machine, family: int) -> None:
    lab.policy(b, blue={"net_in": [{"host_port": 7000, "container_port": SERVICE, "protocol": "udp"}]})
    for link in ("all", "default", *(one["ifname"] for one in lab.host.netns.json("ip", "-j", "link"))):
        lab.host.netns.sysctl(f"net/ipv4/conf/{link}/rp_filter", 1)
    flow = Flow("udp", family)
    assert lab.reach(a, flow, OUTSIDE[family]) == f"outside {UP[family]}"
    for vantage in (lab.outside, lab.dmz, lab.host, a, b, lab.containers["c"]):
        assert lab.reach(vantage, flow, UP[family], 7000).startswith("b ")
    assert echoes(lab.host.netns, family, a.addresses[family])
