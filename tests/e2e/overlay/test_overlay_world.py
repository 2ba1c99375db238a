"""What containers of an overlay reach beyond it: the world as far as policy allows, no host, and nothing by mistake."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest
from frames import IPV4, IPV6, Capture
from overlay import ANYBODY, SUBNETS, open_lab, vtep
from traffic import FLOWS, REFUSED, SILENCE_S, SILENT, Flow, Services, ask
from world import eventually

from lab.cluster import Lab
from lab.hosts import OVERLAY, Container, done
from lab.underlay import WORLD

SERVICE, DNS = 8080, 53
BRIDGE: dict[str, Any] = {"subnet": "10.10.0.0/24", "subnet6": "fd00:10::/64"}
RESOLVER = {4: "192.0.2.1", 6: "2001:db8:1::1"}  # is h1
SHUT: dict[str, Any] = {"vni": 101, "subnet": "10.2.0.0/16", "subnet6": "fd00:10:2::/64"}
EVERYTHING = ["0.0.0.0/0", "::/0"]
WORLD_NETWORK = {4: "203.0.113.0/24", 6: "2001:db8:3::/64"}
TTL_S = 3


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """one, near, on a network that is denied the world: shut, and on a bridge: bridged, on h1; far on h2."""
    with open_lab(tmp_path_factory.mktemp("lab"), 2, ttl=TTL_S) as lab, contextlib.closing(Services()) as services:
        lab.network("blue", type="bridge", **BRIDGE)
        denied: dict[str, Any] = {"deny_networks": list(WORLD_NETWORK.values()), "dns_servers": list(RESOLVER.values())}
        lab.network("shut", **(SHUT | denied))
        first, second = lab.hosts
        for name in ("one", "near"):
            first.container(name, {"app": name})
        first.container("shut", networks=["shut"])
        first.container("bridged", networks=["blue"])
        second.container("far", {"app": "far"})
        machines = {name: one.netns for name, one in lab.containers.items()}
        machines |= {host.name: host.netns for host in lab.hosts} | {"outside": lab.outside}
        for name, netns in machines.items():
            for protocol in ("tcp", "udp"):
                services.open(netns, name, protocol, SERVICE)
                services.open(netns, name, protocol, DNS)
        yield lab


@pytest.fixture
def lab(built: Lab) -> Lab:
    """The module's lab at rest: no container has a policy of its own."""
    for one in built.containers.values():
        done(one.host.daemon.policy(one.name))
    return built


@pytest.fixture
def one(lab: Lab) -> Container:
    return lab.containers["one"]


def reach(client: Container, flow: Flow, to: str, port: int = SERVICE) -> str:
    return ask(client.netns, flow, to, port)


def miss(client: Container, flow: Flow, to: str, port: int = SERVICE) -> str:
    return ask(client.netns, flow, to, port, patience=SILENCE_S)


# The world


def test_the_world_is_reached_with_the_address_of_the_host(lab: Lab, one: Container, flow: Flow) -> None:
    assert reach(one, flow, WORLD[flow.family]) == f"outside {one.host.addresses[flow.family]}"


def test_what_a_policy_denies_of_the_world_is_refused_and_what_it_opens_is_not(
    lab: Lab, one: Container, flow: Flow
) -> None:
    there = WORLD[flow.family]
    opened: list[dict[str, Any]] = [
        {
            "net_out": [
                {"protocol": flow.protocol, "networks": [{"start": there}], "ports": [{"start": 8080, "end": 8080}]}
            ]
        },
        {
            "policies": [
                {"direction": "egress", "peer": {"cidr": WORLD_NETWORK[flow.family]}, "protocol": flow.protocol}
            ]
        },
    ]
    one.policy(deny_networks=EVERYTHING)
    assert miss(one, flow, there) == REFUSED
    assert reach(lab.containers["near"], flow, there).startswith("outside ")
    for more in opened:
        one.policy(deny_networks=EVERYTHING, **more)
        assert reach(one, flow, there).startswith("outside ")
        assert miss(one, flow.other, there) == REFUSED
    one.policy()
    assert reach(one, flow.other, there).startswith("outside ")


def test_what_the_network_denies_is_refused_until_a_policy_opens_it(lab: Lab, flow: Flow) -> None:
    shut, there = lab.containers["shut"], WORLD[flow.family]
    assert miss(shut, flow, there) == REFUSED
    shut.policy(network="shut", net_out=[{"protocol": "all", "networks": [{"start": there}]}])
    assert reach(shut, flow, there).startswith("outside ")


# Hosts


def test_no_host_is_reached(lab: Lab, one: Container, flow: Flow) -> None:
    first, second = lab.hosts
    own = [first.addresses[flow.family], vtep(first)[flow.family]]
    for port in (SERVICE, DNS):
        assert [miss(one, flow, to, port) for to in own] == [REFUSED, REFUSED]
        assert miss(one, flow, vtep(second)[flow.family], port) in (REFUSED, SILENT)


def test_a_resolver_that_is_the_host_is_reached_at_its_port_only(lab: Lab, flow: Flow) -> None:
    shut, there = lab.containers["shut"], RESOLVER[flow.family]
    assert reach(shut, flow, there, DNS).startswith("h1 ")
    assert miss(shut, flow, there, SERVICE) == REFUSED


# Containers that are not there


def outside_of_the_tunnel(frame: bytes) -> bool:
    """Whether an address of the overlay is on the wire as it is."""
    kind = int.from_bytes(frame[12:14])
    if kind == IPV4:
        found = [frame[26:30], frame[30:34]]
    elif kind == IPV6:
        found = [frame[22:38], frame[38:54]]
    else:
        return False
    addresses = [ip_address(one) for one in found]
    return any(one in SUBNETS[one.version] for one in addresses)


@contextlib.contextmanager
def nothing_leaks(lab: Lab) -> Iterator[None]:
    """Nothing of the overlay is seen unencapsulated on the first host's wire within the block, nor in the world."""
    with Capture(lab.hosts[0].netns) as wire, Capture(lab.outside) as world:
        yield
        frames = [frame for one in (wire, world) for frame in one.until(lambda frame: False, 0.05)]
    assert frames, "there is always something on the wire"
    assert [frame.hex() for frame in frames if outside_of_the_tunnel(frame)] == []


def is_unreachable(client: Container, flow: Flow, to: str) -> bool:
    """Whether it is said at once that there is no way to this address, in ICMP or ICMPv6.

    In IPv4 the kernel says so five times, then once a second.
    """
    protocol, kind = {4: (23, 34), 6: (20, 54)}[flow.family]  # where they are in a frame
    said, about = {4: b"\1\3", 6: b"\x3a\1"}[flow.family], ip_address(to).packed
    with Capture(client.netns) as capture, flow.open(client.netns) as sock:
        sock.setblocking(False)
        sock.connect_ex((to, SERVICE))
        if flow.protocol == "udp":
            sock.send(b"?")

        def answers(frame: bytes) -> bool:
            return frame[protocol : protocol + 1] + frame[kind : kind + 1] == said and about in frame[kind:]

        frames = capture.until(answers, SILENCE_S)
        return bool(frames) and answers(frames[-1])


def test_who_is_not_there_is_unreachable_at_once_and_nothing_leaves_the_tunnel(
    lab: Lab, one: Container, flow: Flow
) -> None:
    near, there = (int(ip_address(vtep(host)[flow.family])) for host in lab.hosts)
    version = type(ip_address(vtep(lab.hosts[0])[flow.family]))
    nobody = {
        "address of the own host": near + 77,
        "address of another host": there + 77,
        "part that no host has": near + 200 * 256 + 1,
    }
    assert reach(one, flow, WORLD[flow.family]).startswith("outside ")
    with nothing_leaks(lab):
        for what, number in nobody.items():
            eventually(partial(is_unreachable, one, flow, str(version(number))), f"{what} is unreachable")
        reach(one, flow, WORLD[flow.family])


def test_traffic_to_a_host_that_dies_never_leaves_the_tunnel(lab: Lab, one: Container) -> None:
    far, (first, second) = lab.containers["far"], lab.hosts
    far.policy(**ANYBODY)
    assert all(reach(one, flow, far.addresses[flow.family]).startswith("far ") for flow in FLOWS)
    stop = threading.Event()

    def send() -> None:
        sockets = [flow.open(one.netns) for flow in FLOWS if flow.protocol == "udp"]
        while not stop.wait(0.002):
            for sock, flow in zip(sockets, (Flow("udp", 4), Flow("udp", 6)), strict=True):
                with contextlib.suppress(OSError):  # that nobody is there, after a while
                    sock.sendto(b"stream", (far.addresses[flow.family], 9))
        for sock in sockets:
            sock.close()

    def gone() -> bool:
        return second.name not in first.daemon.get("/status").body["cluster"]["networks"][OVERLAY]["hosts"]

    thread = threading.Thread(target=send)
    with lab.restored(), nothing_leaks(lab):
        thread.start()
        try:
            lab.kill(second)
            eventually(gone, "the first host knows that the second is gone")
            assert not any(miss(one, flow, far.addresses[flow.family]).startswith("far ") for flow in FLOWS)
        finally:
            stop.set()
            thread.join()
        for flow in FLOWS:
            eventually(partial(is_unreachable, one, flow, far.addresses[flow.family]), f"it is, by {flow}")
    eventually(lambda: miss(one, FLOWS[0], far.addresses[4]).startswith("far "), "it is back")


# A bridge beside


def test_a_container_of_a_bridge_is_a_stranger_until_a_policy_names_its_network_or_address(
    lab: Lab, one: Container, flow: Flow
) -> None:
    bridged, to = lab.containers["bridged"], one.addresses[flow.family]
    assert miss(bridged, flow, to) == SILENT
    one.policy(policies=[{"direction": "ingress", "peer": {"network": OVERLAY}}])
    assert miss(bridged, flow, to) == SILENT
    address = bridged.addresses[flow.family]
    for peer in ({"network": "blue"}, {"cidr": f"{address}/{32 if flow.family == 4 else 128}"}):
        one.policy(policies=[{"direction": "ingress", "peer": peer, "protocol": flow.protocol}])
        assert reach(bridged, flow, to).startswith("one ")
        assert miss(bridged, flow.other, to) == SILENT


def test_a_container_of_a_bridge_does_not_pass_for_one_of_the_overlay_on_another_host(lab: Lab, flow: Flow) -> None:
    bridged, far = lab.containers["bridged"], lab.containers["far"]
    for peer in ({"network": OVERLAY}, {"labels": {"app": "one"}}, {"cidr": BRIDGE["subnet"]}):
        far.policy(policies=[{"direction": "ingress", "peer": peer}])
        assert miss(bridged, flow, far.addresses[flow.family]) == SILENT, peer


def test_other_networks_of_the_host_are_the_world_which_policy_denies(lab: Lab, one: Container, flow: Flow) -> None:
    bridged = lab.containers["bridged"].addresses[flow.family]
    assert reach(one, flow, bridged).startswith("bridged ")
    one.policy(deny_networks=list(BRIDGE.values()))
    assert miss(one, flow, bridged) == REFUSED
    one.policy(deny_networks=list(BRIDGE.values()), policies=[{"direction": "egress", "peer": {"network": "blue"}}])
    assert reach(one, flow, bridged).startswith("bridged ")


def test_two_overlays_of_one_host_are_strangers(lab: Lab, one: Container, flow: Flow) -> None:
    shut, to = lab.containers["shut"], one.addresses[flow.family]
    one.policy(policies=[{"direction": "ingress", "peer": {"network": OVERLAY}}])
    assert miss(shut, flow, to) == SILENT
    one.policy(policies=[{"direction": "ingress", "peer": {"network": "shut"}}])
    assert reach(shut, flow, to).startswith("one ")
