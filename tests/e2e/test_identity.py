"""That a container is nobody but itself: what it forges arrives nowhere, what is its own does.

Each forged frame is followed by an honest one on the same way, so that there is no waiting for what does not come.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from frames import (
    ARP,
    BROADCAST,
    ICMPV6,
    IPV4,
    IPV6,
    Capture,
    arp,
    datagram,
    ethernet,
    icmpv6,
    mac,
    multicast_mac,
    packet,
    send,
    tagged,
)
from onehost import OUTSIDE, UP, Lab, Machine
from traffic import PATIENCE_S

GATEWAY = {4: "10.10.0.1", 6: "fd00:10::1"}
GATEWAY_MAC = "0a:c0:0a:0a:00:01"
OTHER_MAC = "02:00:5e:00:53:01"
PORT = 9000
FORGED, HONEST = b"forged-frame", b"honest-frame"
ALL_NODES = "ff02::1"
SOLICITATION, ADVERTISEMENT, ROUTER_ADVERTISEMENT, REDIRECT = 135, 136, 134, 137


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue, which opens the host; c on green."""
    lab = bare_lab
    lab.daemon.network("blue", subnet6="fd00:10::/64", allow_host_access=True)
    lab.daemon.network("green", subnet="10.20.0.0/24", subnet6="fd00:20::/64")
    for name, network in {"a": "blue", "b": "blue", "c": "green"}.items():
        lab.container(name, network)
    return lab


@pytest.fixture(params=["b", "outside", "c", "host"])
def target(lab: Lab, request: pytest.FixtureRequest, bridge_nf: int) -> Machine:
    """Who might be fooled."""
    if lab.backend == "iptables" and request.param == "b" and not bridge_nf:
        pytest.skip("iptables does not see frames inside a bridge with bridge-nf-call-iptables = 0")
    found: Machine = getattr(lab, request.param, None) or lab.containers[request.param]
    return found


def ethertype(family: int) -> int:
    return IPV4 if family == 4 else IPV6


def link_local(link: str) -> str:
    """The address that an interface with this MAC gives itself."""
    six = mac(link)
    return str(ip_address(b"\xfe\x80" + bytes(6) + bytes((six[0] ^ 2,)) + six[1:3] + b"\xff\xfe" + six[3:]))


class Judge:
    """Sends from a and looks what of it comes to somebody."""

    def __init__(self, lab: Lab, sender: Machine, target: Machine, family: int) -> None:
        self._lab, self._sender, self._target, self._family = lab, sender, target, family
        self.address = {"outside": OUTSIDE, "host": UP}.get(target.name, target.addresses)[family]
        self.next_hop = target.mac if target.name == "b" else GATEWAY_MAC

    def arrives(self, *forged: bytes) -> bool:
        """Whether any of the frames comes through; what is sent after them does."""
        honest = self.frame(self._sender.addresses[self._family], HONEST)
        if self._target.name == "host":  # its bridge shows frames before they are judged
            return self._received(*forged, honest)
        with Capture(self._target.netns) as capture:
            send(self._sender.netns, *forged, honest)
            seen = capture.until(lambda frame: HONEST in frame, PATIENCE_S)
        assert HONEST in seen[-1]
        return any(FORGED in frame for frame in seen)

    def frame(self, source: str, words: bytes, *, link: str | None = None) -> bytes:
        """A datagram to the target from that address and MAC."""
        content = datagram(source, self.address, PORT, words)
        return ethernet(self.next_hop, link or self._sender.mac, ethertype(self._family), content)

    def _received(self, *frames: bytes) -> bool:
        family = socket.AF_INET if self._family == 4 else socket.AF_INET6
        with self._target.netns.call(socket.socket, family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE_S)
            sock.bind(("", PORT))
            send(self._sender.netns, *frames)
            seen = [sock.recv(2048)]
            while HONEST not in seen[-1]:
                seen.append(sock.recv(2048))
        return any(FORGED in words for words in seen)


SOURCES: dict[str, Callable[[int], str]] = {
    "neighbour": lambda family: "10.10.0.3" if family == 4 else "fd00:10::3",
    "gateway": lambda family: GATEWAY[family],
    "unused": lambda family: "10.10.0.77" if family == 4 else "fd00:10::77",
    "other-network": lambda family: "10.20.0.2" if family == 4 else "fd00:20::2",
    "outside": lambda family: OUTSIDE[family],
    "stranger": lambda family: "203.0.113.5" if family == 4 else "2001:db8:99::5",
    "unspecified": lambda family: "0.0.0.0" if family == 4 else "::",
    "loopback": lambda family: "127.0.0.1" if family == 4 else "::1",
    "link-local": lambda family: "169.254.1.1" if family == 4 else link_local(OTHER_MAC),
}


@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.parametrize("family", [4, 6])
def test_no_other_source_address(lab: Lab, a: Machine, target: Machine, family: int, source: str) -> None:
    judge = Judge(lab, a, target, family)
    assert not judge.arrives(judge.frame(SOURCES[source](family), FORGED))


@pytest.mark.parametrize("link", ["neighbour", "gateway", "other"])
@pytest.mark.parametrize("family", [4, 6])
def test_no_other_mac(lab: Lab, a: Machine, b: Machine, target: Machine, family: int, link: str) -> None:
    judge = Judge(lab, a, target, family)
    used = {"neighbour": b.mac, "gateway": GATEWAY_MAC, "other": OTHER_MAC}[link]
    assert not judge.arrives(judge.frame(a.addresses[family], FORGED, link=used))


@pytest.mark.parametrize("family", [4, 6])
def test_no_neighbour_s_address_and_mac_together(
    lab: Lab, a: Machine, b: Machine, target: Machine, family: int
) -> None:
    judge = Judge(lab, a, target, family)
    assert not judge.arrives(judge.frame(b.addresses[family], FORGED, link=b.mac))


@pytest.mark.parametrize("family", [4, 6])
def test_not_by_a_tag_either(lab: Lab, a: Machine, b: Machine, bridge_nf: int, family: int) -> None:
    if lab.backend == "iptables":
        pytest.skip("iptables sees no tagged frames that stay inside a bridge")
    judge = Judge(lab, a, b, family)
    forged = datagram(GATEWAY[family], b.addresses[family], PORT, FORGED)
    assert not judge.arrives(tagged(b.mac, a.mac, ethertype(family), forged))


def test_the_bridge_does_not_learn_a_forged_mac(lab: Lab, a: Machine, b: Machine, bridge_nf: int) -> None:
    before = _forwarding(lab)
    judge = Judge(lab, a, b, 4)
    judge.arrives(
        judge.frame(b.addresses[4], FORGED, link=b.mac),
        judge.frame(a.addresses[4], FORGED, link=OTHER_MAC),
        ethernet(BROADCAST, OTHER_MAC, ARP, arp(2, (OTHER_MAC, "10.10.0.9"), (BROADCAST, "10.10.0.9"))),
    )
    assert _forwarding(lab) == before


def _forwarding(lab: Lab) -> list[tuple[str, str]]:
    return sorted((one["mac"], one["ifname"]) for one in lab.host.netns.json("bridge", "-j", "fdb", "show"))


# Who answers for an address


def _arps(a: Machine, b: Machine) -> dict[str, tuple[str, bytes]]:
    """Forged ARP: the frame's sender and the message."""
    gateway = (GATEWAY_MAC, GATEWAY[4])
    theirs = (b.mac, b.addresses[4])
    return {
        "gateway-is-at-mine": (a.mac, arp(2, (a.mac, GATEWAY[4]), theirs)),
        "neighbour-is-at-mine": (a.mac, arp(2, (a.mac, b.addresses[4]), gateway)),
        "who-has-as-the-gateway": (a.mac, arp(1, (a.mac, GATEWAY[4]), theirs)),
        "gratuitous-for-the-gateway": (a.mac, arp(1, (a.mac, GATEWAY[4]), ("00:00:00:00:00:00", GATEWAY[4]))),
        "mine-is-at-another": (a.mac, arp(2, (OTHER_MAC, a.addresses[4]), theirs)),
        "all-of-the-gateway": (GATEWAY_MAC, arp(2, gateway, theirs)),
        "all-of-the-neighbour": (b.mac, arp(2, theirs, gateway)),
        "probe-for-the-gateway": (a.mac, arp(1, (a.mac, "0.0.0.0"), ("00:00:00:00:00:00", GATEWAY[4]))),
    }


ARPS = [
    "gateway-is-at-mine",
    "neighbour-is-at-mine",
    "who-has-as-the-gateway",
    "gratuitous-for-the-gateway",
    "mine-is-at-another",
    "all-of-the-gateway",
    "all-of-the-neighbour",
    "probe-for-the-gateway",
]


@pytest.mark.parametrize("name", ARPS)
def test_no_forged_arp_arrives(lab: Lab, a: Machine, b: Machine, name: str, bridge_nf: int) -> None:
    if lab.backend == "iptables":
        pytest.skip("iptables does not see ARP")
    sender, message = _arps(a, b)[name]
    neighbours = _neighbours(lab.host), _neighbours(b)
    judge = Judge(lab, a, b, 4)
    forged = [(mac(to) + mac(sender) + struct.pack(">H", ARP) + message + FORGED) for to in (b.mac, BROADCAST)]
    assert not judge.arrives(*forged, ethernet(GATEWAY_MAC, sender, ARP, message))
    assert (_neighbours(lab.host), _neighbours(b)) == neighbours


def test_an_honest_arp_arrives(lab: Lab, a: Machine, b: Machine, bridge_nf: int) -> None:
    judge = Judge(lab, a, b, 4)
    message = arp(1, (a.mac, a.addresses[4]), ("00:00:00:00:00:00", b.addresses[4]))
    assert judge.arrives(mac(BROADCAST) + mac(a.mac) + struct.pack(">H", ARP) + message + FORGED)


def _neighbours(machine: Machine) -> set[tuple[str, str]]:
    """The addresses with the MAC they are believed to be at, as far as the identities of this test are concerned."""
    wanted = {"10.10.0.1", "10.10.0.3", "fd00:10::1", "fd00:10::3"}
    told = machine.netns.json("ip", "-j", "neigh", "show")
    forged = {OTHER_MAC, "0a:c0:0a:0a:00:02"}  # a's
    return {(one["dst"], one["lladdr"]) for one in told if one["dst"] in wanted and one.get("lladdr") in forged}


def _option(kind: int, link: str) -> bytes:
    return bytes((kind, 1)) + mac(link)


def _discoveries(a: Machine, b: Machine) -> dict[str, bytes]:
    """Forged neighbour discovery, from a's MAC: IPv6 packets to all nodes with the word behind."""
    own, gateway, theirs = (ip_address(one).packed for one in (a.addresses[6], GATEWAY[6], b.addresses[6]))
    override = b"\x20\0\0\0"
    router = struct.pack(">BBHII", 64, 0, 1800, 0, 0)
    own_local = link_local(a.mac)
    word = _option(14, "00:00:00:00:00:00") + FORGED + bytes(4)  # 14 is a nonce, which nobody minds
    return {
        "gateway-is-at-mine": icmpv6(
            a.addresses[6], ALL_NODES, ADVERTISEMENT, override + gateway + _option(2, a.mac) + word
        ),
        "neighbour-is-at-mine": icmpv6(
            a.addresses[6], ALL_NODES, ADVERTISEMENT, override + theirs + _option(2, a.mac) + word
        ),
        "gateway-as-the-gateway": icmpv6(
            GATEWAY[6], ALL_NODES, ADVERTISEMENT, override + gateway + _option(2, a.mac) + word
        ),
        "mine-as-the-gateway": icmpv6(GATEWAY[6], ALL_NODES, ADVERTISEMENT, override + own + _option(2, a.mac) + word),
        "who-has-as-the-gateway": icmpv6(
            GATEWAY[6], ALL_NODES, SOLICITATION, bytes(4) + theirs + _option(1, a.mac) + word
        ),
        "duplicate-address-of-the-gateway": icmpv6("::", ALL_NODES, SOLICITATION, bytes(4) + gateway + word),
        "router": icmpv6(own_local, ALL_NODES, ROUTER_ADVERTISEMENT, router + _option(1, a.mac) + word),
        "redirect": icmpv6(own_local, ALL_NODES, REDIRECT, bytes(4) + own + ip_address(OUTSIDE[6]).packed + word),
    }


DISCOVERIES = {  # and whether iptables, which looks at the source alone, sees it with bridge-nf-call-ip6tables = 1
    "gateway-is-at-mine": False,
    "neighbour-is-at-mine": False,
    "gateway-as-the-gateway": True,
    "mine-as-the-gateway": True,
    "who-has-as-the-gateway": True,
    "duplicate-address-of-the-gateway": False,
    "router": False,
    "redirect": False,
}


@pytest.mark.parametrize("name", list(DISCOVERIES))
def test_no_forged_neighbour_discovery_arrives(lab: Lab, a: Machine, b: Machine, name: str, bridge_nf: int) -> None:
    if lab.backend == "iptables" and not (bridge_nf and DISCOVERIES[name]):
        pytest.skip("iptables sees a source at most, and with bridge-nf-call-ip6tables = 0 not even that")
    neighbours = _neighbours(lab.host), _neighbours(b)
    judge = Judge(lab, a, b, 6)
    forged = _discoveries(a, b)[name]
    assert not judge.arrives(*(ethernet(to, a.mac, IPV6, forged) for to in (b.mac, multicast_mac(ALL_NODES))))
    assert (_neighbours(lab.host), _neighbours(b)) == neighbours


def test_an_honest_advertisement_arrives(lab: Lab, a: Machine, b: Machine, bridge_nf: int) -> None:
    own = b"\x20\0\0\0" + ip_address(a.addresses[6]).packed + _option(2, a.mac) + FORGED + bytes(4)
    message = icmpv6(a.addresses[6], ALL_NODES, ADVERTISEMENT, own)
    assert Judge(lab, a, b, 6).arrives(ethernet(multicast_mac(ALL_NODES), a.mac, IPV6, message))


def test_neighbour_discovery_is_not_hidden_behind_an_extension_header(
    lab: Lab, a: Machine, b: Machine, bridge_nf: int
) -> None:
    if lab.backend == "iptables":
        pytest.skip("iptables sees a source at most")
    override = b"\x20\0\0\0" + ip_address(GATEWAY[6]).packed + _option(2, a.mac) + FORGED + bytes(4)
    message = icmpv6(a.addresses[6], ALL_NODES, ADVERTISEMENT, override)[40:]
    padded = packet(a.addresses[6], ALL_NODES, 60, bytes((ICMPV6, 0, 1, 4, 0, 0, 0, 0)) + message)  # 60: destination
    judge = Judge(lab, a, b, 6)
    assert not judge.arrives(ethernet(multicast_mac(ALL_NODES), a.mac, IPV6, padded))


def test_a_container_that_left_the_network_is_nobody(lab: Lab, a: Machine, b: Machine, bridge_nf: int) -> None:
    if lab.backend == "iptables" and not bridge_nf:
        pytest.skip("iptables does not see frames inside a bridge with bridge-nf-call-iptables = 0")
    guest = lab.container("guest", "blue", "green")
    try:
        lab.daemon.join("guest", "green")
        with Capture(b.netns) as capture:
            with contextlib.suppress(OSError):  # the link follows within a second
                send(
                    guest.netns,
                    ethernet(b.mac, guest.mac, IPV4, datagram(guest.addresses[4], b.addresses[4], 9, FORGED)),
                )
            send(a.netns, Judge(lab, a, b, 4).frame(a.addresses[4], HONEST))
            seen = capture.until(lambda frame: HONEST in frame, PATIENCE_S)
        assert HONEST in seen[-1]
        assert not any(FORGED in frame for frame in seen)
    finally:
        lab.remove(guest)
