"""Frames as a container may forge them, and captures that tell what of them arrives."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address

from pytest_netns import Netns

IPV4, ARP, IPV6, VLAN = 0x0800, 0x0806, 0x86DD, 0x8100
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
BROADCAST = "ff:ff:ff:ff:ff:ff"
_EVERYTHING = 3  # linux/if_ether.h: ETH_P_ALL
_SHORTEST = 60  # of an Ethernet frame, without its checksum


def mac(words: str) -> bytes:
    """Six bytes."""
    return bytes.fromhex(words.replace(":", ""))


def multicast_mac(address: str) -> str:
    """Where frames to an IPv6 multicast address go."""
    return "33:33:" + ip_address(address).packed[12:].hex(":")


def ethernet(to: str, source: str, kind: int, payload: bytes) -> bytes:
    """A frame."""
    return (mac(to) + mac(source) + struct.pack(">H", kind) + payload).ljust(_SHORTEST, b"\0")


def tagged(to: str, source: str, kind: int, payload: bytes) -> bytes:
    """A frame of VLAN 0, which is no VLAN but a priority."""
    return ethernet(to, source, VLAN, struct.pack(">HH", 0, kind) + payload)


def checksum(data: bytes) -> int:
    """The internet checksum, RFC 1071."""
    words: tuple[int, ...] = struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source: str, to: str, protocol: int, payload: bytes) -> bytes:
    """An IP packet."""
    sender, target = ip_address(source), ip_address(to)
    if sender.version == 6:
        return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 255) + sender.packed + target.packed + payload
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    header += sender.packed + target.packed
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + payload


def _summed(source: str, to: str, protocol: int, payload: bytes, at: int) -> bytes:
    """The payload with its checksum, over the pseudo header too, put in place."""
    sender, target = ip_address(source), ip_address(to)
    pseudo = sender.packed + target.packed + struct.pack(">IxxxB", len(payload), protocol)
    return payload[:at] + struct.pack(">H", checksum(pseudo + payload)) + payload[at + 2 :]


def datagram(source: str, to: str, port: int, words: bytes) -> bytes:
    """A UDP packet to the port, from port 9."""
    return packet(
        source, to, UDP, _summed(source, to, UDP, struct.pack(">HHHH", 9, port, 8 + len(words), 0) + words, 6)
    )


def segment(source: str, to: str, from_port: int, to_port: int, *, flags: int) -> bytes:
    """A TCP packet of nothing but flags (SYN 2, RST 4, ACK 16 …), with sequence numbers of no connection."""
    head = struct.pack(">HHIIBBHHH", from_port, to_port, 0x12345678, 0x9ABCDEF0, 5 << 4, flags, 1024, 0, 0)
    return packet(source, to, TCP, _summed(source, to, TCP, head, 16))


def icmpv6(source: str, to: str, kind: int, body: bytes) -> bytes:
    """An ICMPv6 packet with code 0; the body follows the checksum."""
    return packet(source, to, ICMPV6, _summed(source, to, ICMPV6, struct.pack(">BBH", kind, 0, 0) + body, 2))


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str]) -> bytes:
    """An ARP message (1 asks, 2 tells); sender and target are MAC and address."""
    head = struct.pack(">HHBBH", 1, IPV4, 6, 4, operation)
    return head + b"".join(mac(link) + ip_address(address).packed for link, address in (sender, target))


def send(where: Netns, *frames: bytes, link: str = "eth0") -> None:
    """Put frames on a link as they are."""
    with where.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((link, 0))
        for frame in frames:
            sock.send(frame)


class Capture:
    """What comes in by a link, or by all links, of a namespace from now on, seen below every protocol."""

    def __init__(self, where: Netns, link: str | None = "eth0", kind: int = _EVERYTHING) -> None:
        self._socket = where.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
        if link is not None:
            self._socket.bind((link, kind))

    def until(self, last: Callable[[bytes], bool], seconds: float) -> list[bytes]:
        """The frames so far and up to the one that `last` knows, or for so many seconds."""
        found: list[bytes] = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                found.append(self._socket.recv(65536))
                if last(found[-1]):
                    break
        return found

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()
