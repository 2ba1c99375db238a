"""That a container is nobody but itself, and that none can speak as a host: what it forges is seen nowhere.

Each forged packet is followed by an honest one, so that there is no waiting for what does not come.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from forged import FORGED, HONEST, SERVICE, SHAPES, Watchers, inner, send_from, vxlan, whole
from frames import Capture, datagram
from overlay import ANYBODY, PORT, VNI, open_lab, vtep
from pytest_netns import Netns
from traffic import PATIENCE_S, SILENCE_S, SILENT, Flow, Services, ask
from world import eventually

from lab.cluster import Lab
from lab.hosts import OVERLAY, Container
from lab.underlay import WORLD

BRIDGE = {"subnet": "10.10.0.0/24", "subnet6": "fd00:10::/64"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
SO_MARK = 36  # asm-generic/socket.h


@pytest.fixture(scope="module", params=[4, 6], ids=["underlay4", "underlay6"])
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """mallory, near, and bridged on one host; far on the other. Everybody lets everybody in; no reverse path filter."""
    with open_lab(tmp_path_factory.mktemp("lab"), 2, rp_filter=0, underlay=request.param, **ANYBODY) as lab:
        lab.network("blue", type="bridge", **BRIDGE)
        first, second = lab.hosts
        first.container("mallory", {"app": "mallory"})
        first.container("near", {"app": "near"})
        first.container("bridged", networks=["blue"])
        second.container("far", {"app": "far"})
        yield lab


@pytest.fixture
def mallory(lab: Lab) -> Container:
    return lab.containers["mallory"]


@pytest.fixture
def watchers(lab: Lab) -> Iterator[Watchers]:
    """Wherever a packet of mallory's may come to."""
    machines = {name: one.netns for name, one in lab.containers.items() if name != "mallory"}
    machines |= {host.name: host.netns for host in lab.hosts} | {"outside": lab.outside}
    with Watchers(machines, lab.hosts) as watchers:
        yield watchers


# Addresses


def foreign_sources(lab: Lab, family: int) -> dict[str, str]:
    """Addresses that mallory has not."""
    own, there = (vtep(host)[family] for host in lab.hosts)
    return {
        "neighbour": lab.containers["near"].addresses[family],
        "container of another host": lab.containers["far"].addresses[family],
        "unassigned": str(ip_address(own) + 99),
        "own VTEP": own,
        "other VTEP": there,
        "container of a bridge": lab.containers["bridged"].addresses[family],
        "own host": lab.hosts[0].addresses[family],
        "other host": lab.hosts[1].addresses[family],
        "world": WORLD[family],
        "loopback": "127.0.0.1" if family == 4 else "::1",
        "gateway": "169.254.1.1" if family == 4 else "fe80::1",
    }


@FAMILIES
@pytest.mark.parametrize("target", ["near", "far", "bridged", "outside"])
def test_nothing_is_seen_of_what_has_another_source_address(
    lab: Lab, mallory: Container, watchers: Watchers, family: int, target: str
) -> None:
    to = lab.machine(target)[1][family]
    sources = foreign_sources(lab, family)
    forged = [datagram(source, to, SERVICE, FORGED + name.encode()) for name, source in sources.items()]
    send_from(mallory, *forged, datagram(mallory.addresses[family], to, SERVICE, HONEST))
    assert watchers.seen(until=target) == []


@FAMILIES
def test_a_source_cannot_be_taken_for_good_inside_the_container(
    lab: Lab, mallory: Container, watchers: Watchers, family: int
) -> None:
    """Not even with the address on the interface, as whoever is root inside may put it there."""
    stolen, far = lab.containers["near"].addresses[family], lab.containers["far"].addresses[family]
    plain = [f"{stolen}/{32 if family == 4 else 128}", "dev", "eth0"]
    mallory.netns.run("ip", "address", "add", *plain, *(["nodad"] if family == 6 else []))
    try:
        with Flow("udp", family).open(mallory.netns) as sock:
            sock.bind((stolen, 0))
            sock.sendto(FORGED, (far, SERVICE))
        send_from(mallory, datagram(mallory.addresses[family], far, SERVICE, HONEST))
        assert watchers.seen(until="far") == []
    finally:
        mallory.netns.run("ip", "address", "del", *plain)


# Encapsulated packets


def forged_frame(lab: Lab, family: int) -> bytes:
    """What the first host would send the second for near."""
    near, far = (lab.containers[name].addresses[family] for name in ("near", "far"))
    return inner(near, far, lab.hosts[0], lab.hosts[1])


def returned_frame(lab: Lab, family: int) -> bytes:
    """What the second host would send the first for far."""
    near, far = (lab.containers[name].addresses[family] for name in ("near", "far"))
    return inner(far, near, lab.hosts[1], lab.hosts[0])


@FAMILIES
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sender", ["mallory", "bridged"])
def test_a_container_cannot_encapsulate(lab: Lab, watchers: Watchers, sender: str, shape: str, family: int) -> None:
    container = lab.containers[sender]
    own, outside = container.addresses[family], WORLD[family]
    first, second = lab.hosts
    packets: list[bytes] = []
    for host, other, frame in ((first, second, returned_frame), (second, first, forged_frame)):
        for words in (vxlan(frame(lab, inside), identity=1) for inside in (4, 6)):
            for to in (host.addresses[family], vtep(host)[family], outside):
                packets += SHAPES[shape](own, to, words)
            packets += SHAPES[shape](other.addresses[family], host.addresses[family], words)  # as if the other host's
    with Watchers({"outside": lab.outside}) as honest:
        send_from(container, *packets, *whole(own, outside, HONEST))
        assert honest.seen(until="outside") == []
    others = [name for name in watchers.seen(until="outside") if name != sender]
    assert others == []


@FAMILIES
@pytest.mark.parametrize("shape", SHAPES)
def test_other_datagrams_to_the_same_port_pass(
    lab: Lab, mallory: Container, watchers: Watchers, shape: str, family: int
) -> None:
    """Shorter ones, and those of a tunnel that is not of the host."""
    own, foreign = mallory.addresses[family], vxlan(bytes(14) + HONEST + bytes(40), vni=VNI + 1)
    send_from(mallory, *SHAPES[shape](own, WORLD[family], foreign))
    watchers.seen(until="outside")
    send_from(mallory, *whole(own, WORLD[family], b"short"))
    watchers.seen(until="outside", honest=b"short")


# Marks


def marked(where: Netns, family: int, to: str, mark: int) -> None:
    """Have a process inside send a datagram with a mark of its own choice."""
    with Flow("udp", family).open(where) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        sock.sendto(HONEST, (to, SERVICE))


def identity_on_the_wire(lab: Lab, mark: int = 0) -> int:
    """The identity that mallory's packets carry from host to host."""
    mallory, far = lab.containers["mallory"], lab.containers["far"]
    with Capture(lab.hosts[1].netns) as capture:
        marked(mallory.netns, 4, far.addresses[4], mark)
        frames = capture.until(lambda frame: HONEST in frame, PATIENCE_S)
    header = 14 + (40 if ":" in lab.hosts[0].address else 20)
    assert struct.unpack_from(">H", frames[-1], header + 2) == (PORT,)
    flags, identity, number = struct.unpack_from(">BxHI", frames[-1], header + 8)
    assert (flags, number >> 8) == (0x88, VNI)
    return int(identity)


@pytest.mark.parametrize("bits", [0x1, 0xFFFF, 0x10000, 0x7FFFFFFF])
def test_a_mark_set_in_a_container_does_not_travel(lab: Lab, bits: int) -> None:
    own = lab.containers["mallory"].attachments[0]["identity"]
    assert identity_on_the_wire(lab) == own
    assert identity_on_the_wire(lab, own ^ bits) == own


@FAMILIES
@pytest.mark.parametrize("target", ["near", "far"])
def test_a_mark_set_in_a_container_opens_nothing(lab: Lab, services: Services, family: int, target: str) -> None:
    mallory, receiver = lab.containers["mallory"], lab.containers[target]
    other = lab.containers["far" if target == "near" else "near"]
    receiver.policy(policies=[{"direction": "ingress", "peer": {"labels": {"app": other.name}}}])
    try:
        services.open(receiver.netns, target, "udp", SERVICE)
        to, flow = receiver.addresses[family], Flow("udp", family)
        eventually(lambda: ask(other.netns, flow, to, SERVICE, patience=SILENCE_S) != SILENT, "whom it names is let in")
        with Capture(receiver.netns) as capture:
            for mark in (other.attachments[0]["identity"], 0xFFFF, 0):
                marked(mallory.netns, family, to, mark)
            assert not any(HONEST in frame for frame in capture.until(lambda frame: HONEST in frame, SILENCE_S))
    finally:
        receiver.host.daemon.policy(target, **{OVERLAY: ANYBODY})
