"""Packets as containers, hosts and strangers may forge them in an overlay, and where any of them is seen."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address

from frames import ICMP, ICMPV6, IPV4, IPV6, UDP, Capture, checksum, datagram, ethernet, packet, send
from overlay import PORT, VNI, vtep_mac
from pytest_netns import Netns
from traffic import PATIENCE_S

from lab.hosts import Container, Host

SERVICE = 9000
FORGED, HONEST = b"forged-packet", b"honest-packet"
_DESTINATION_OPTIONS, _FRAGMENT = 60, 44  # of IPv6
_ADDED = (_DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0)


def ethertype(address: str) -> int:
    return IPV6 if ":" in address else IPV4


def vxlan(frame: bytes, *, vni: int = VNI, identity: int | None = None) -> bytes:
    """What is in a VXLAN datagram (RFC 7348), with an identity if there is one (draft-smith-vxlan-group-policy)."""
    return struct.pack(">BBHI", 0x08 if identity is None else 0x88, 0, identity or 0, vni << 8) + frame


def inner(
    source: str, to: str, sender: Host, receiver: Host, words: bytes = FORGED, *, mac: str | None = None
) -> bytes:
    """The frame that a host sends another through the overlay; `mac` is another than the sender's."""
    content = datagram(source, to, SERVICE, words)
    return ethernet(vtep_mac(receiver), mac or vtep_mac(sender), ethertype(to), content)


def send_encapsulated(where: Netns, to: Host, frame: bytes, *, identity: int | None = None) -> None:
    """Have a machine send a host's VTEP this frame, from the machine's own address."""
    family = socket.AF_INET6 if ":" in to.address else socket.AF_INET
    with where.call(socket.socket, family, socket.SOCK_DGRAM) as sock:
        sock.sendto(vxlan(frame, identity=identity), (to.address, PORT))


# How one and the same datagram can be sent


def whole(source: str, to: str, words: bytes) -> list[bytes]:
    """One plain packet to the tunnel's port."""
    return [datagram(source, to, PORT, words)]


def with_options(source: str, to: str, words: bytes) -> list[bytes]:
    """The UDP header is not where it is usually."""
    one = datagram(source, to, PORT, words)
    if ":" in to:
        return [packet(source, to, _DESTINATION_OPTIONS, bytes([UDP, *_ADDED[1:]]) + one[40:])]
    header = b"\x46" + one[1:2] + struct.pack(">H", len(one) + 4) + one[4:10] + b"\0\0" + one[12:20] + b"\1\1\1\0"
    return [header[:10] + struct.pack(">H", checksum(header)) + header[12:] + one[20:]]


def in_fragments(source: str, to: str, words: bytes) -> list[bytes]:
    """Two halves of a long one."""
    return _fragments(datagram(source, to, PORT, words.ljust(2000, b"\0")), source, to, 1200)


def in_tiny_fragments(source: str, to: str, words: bytes) -> list[bytes]:
    """The VNI is not in the first fragment."""
    return _fragments(datagram(source, to, PORT, words), source, to, 8)


SHAPES: dict[str, Callable[[str, str, bytes], list[bytes]]] = {
    "whole": whole,
    "with options": with_options,
    "in fragments": in_fragments,
    "in tiny fragments": in_tiny_fragments,
}


def _fragments(one: bytes, source: str, to: str, cut: int) -> list[bytes]:
    if ":" in to:
        payload = one[40:]
        parts = ((0, 1, payload[:cut]), (cut, 0, payload[cut:]))
        heads = (struct.pack(">BBHI", UDP, 0, offset | more, 77) + part for offset, more, part in parts)
        return [packet(source, to, _FRAGMENT, head) for head in heads]
    payload = one[20:]
    found = []
    for offset, more, part in ((0, 0x2000, payload[:cut]), (cut, 0, payload[cut:])):
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(part), 77, more | offset // 8, 64, UDP, 0)
        header += ip_address(source).packed + ip_address(to).packed
        found.append(header[:10] + struct.pack(">H", checksum(header)) + header[12:] + part)
    return found


# Who sends, and who sees


def send_from(container: Container, *packets: bytes) -> None:
    """Have a container send packets to its gateway as they are."""
    [gateway, *_] = [one for one in container.netns.json("ip", "-j", "neigh") if "lladdr" in one]
    own = str(container.attachments[0]["mac"])
    kinds = ((IPV6 if one[0] >> 4 == 6 else IPV4, one) for one in packets)
    send(container.netns, *(ethernet(gateway["lladdr"], own, kind, one) for kind, one in kinds))


class Watchers:
    """Ears at the interface `eth0` of several machines, and in some hosts for what is for the host itself."""

    def __init__(self, machines: Mapping[str, Netns], hosts: Iterable[Host] = ()) -> None:
        self._stack = contextlib.ExitStack()
        self._captures = {name: self._stack.enter_context(Capture(netns)) for name, netns in machines.items()}
        self._listeners = {host.name: self._stack.enter_context(_listening(host.netns)) for host in hosts}

    def seen(self, words: bytes = FORGED, *, until: str, honest: bytes = HONEST) -> list[str]:
        """Where these words have been seen, but in ICMP, when `honest` ones, sent after them, have come somewhere."""
        frames = {until: self._captures[until].until(lambda frame: honest in frame, PATIENCE_S)}
        assert frames[until], f"nothing came to {until}"
        assert honest in frames[until][-1], f"the honest packet did not come to {until}"
        for name, capture in self._captures.items():  # what goes elsewhere may take a little longer
            frames[name] = [*frames.get(name, ()), *capture.until(lambda frame: False, 0.02)]
        found = [name for name, some in frames.items() if any(words in one and not _is_icmp(one) for one in some)]
        return found + [f"{name} itself" for name, sock in self._listeners.items() if _heard(sock, words)]

    def __enter__(self) -> Watchers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def _is_icmp(frame: bytes) -> bool:
    """Whether it may be the answer that a packet was refused, which has that packet in it."""
    return (frame[12:14], frame[23]) == (b"\x08\x00", ICMP) or (frame[12:14], frame[20]) == (b"\x86\xdd", ICMPV6)


def _listening(where: Netns) -> socket.socket:
    sock = where.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", SERVICE))
    sock.setblocking(False)
    return sock


def _heard(sock: socket.socket, words: bytes) -> bool:
    heard = []
    with contextlib.suppress(BlockingIOError):
        while True:
            heard.append(sock.recv(2048))
    return words in heard
