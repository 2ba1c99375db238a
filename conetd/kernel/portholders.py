"""Who on this host holds a port that could not be bound, as the end of a sentence."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from conetd.model import TCP, HostPort, IPAddress
from conetd.ports import overlaps

_TIME_WAIT = "06"  # TCP_TIME_WAIT in net/tcp_states.h
UNKNOWN = "a socket of this host (no process has it open, or it is bound and does not listen)"


def holder(port: HostPort) -> str:
    """`process 1234 (nginx)`, or what else keeps the port busy in the calling thread's namespace.

    Looks through the open files of every process: for error messages only.
    """
    states = dict(_sockets(port))
    inodes = {inode for inode in states if inode}
    for pid in _processes() if inodes else ():
        if inodes & _open_sockets(pid):
            return f"process {pid} ({_name(pid)})"
    if _TIME_WAIT in states.values():
        return "a connection of this host that has just ended (TIME_WAIT)"
    return UNKNOWN


def _sockets(port: HostPort) -> Iterator[tuple[int, str]]:
    """Inode (0: none any more) and state of each socket that overlaps the port."""
    for table in ("tcp", "tcp6") if port.protocol == TCP else ("udp", "udp6"):
        try:
            lines = Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
        except FileNotFoundError:  # no IPv6
            continue
        for line in lines:
            # proc_pid_net(5): slot, local and remote address, state, queues, timer, retransmits, uid, timeout, inode
            words = line.split()
            address, number = words[1].split(":")
            if int(number, 16) != port.host_port:
                continue
            if overlaps(port, HostPort(port.protocol, port.host_port, 0, _address(address))):
                yield int(words[9]), words[3]


def _address(text: str) -> IPAddress | None:
    # 32-bit words of the address, each in the host's byte order
    packed = b"".join(int(text[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8))
    if len(packed) == 4:
        return IPv4Address(packed)
    address = IPv6Address(packed)
    if address.is_unspecified:
        return None  # may well be for both families
    return address.ipv4_mapped or address


def _processes() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())  # noqa: PTH208


def _open_sockets(pid: int) -> set[int]:
    found = set()
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:  # ended since, or hidden from us
        for entry in entries:
            with contextlib.suppress(OSError):  # closed since
                target = os.readlink(entry.path)  # noqa: PTH115
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "ended since"
