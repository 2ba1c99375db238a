"""What the legacy tables `filter` of iptables and ip6tables do on the forward hook. Reads them; never makes one."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from conetd.errors import KernelError
from conetd.kernel.foreign.fate import BaseChain, Kind, Ruleset, Verdict

OURS = "conetd-"
# linux/netfilter_ipv4/ip_tables.h and x_tables.h; those of IPv6 differ only as _Layout says
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES
_INFO = struct.Struct("=32sI5I5III")  # name, hooks, entry and underflow of each hook, number and bytes of entries
_ENTRIES_HEAD = struct.Struct("=32sI4x")  # name, bytes
_FORWARD = 2  # NF_INET_FORWARD
_OFFSETS = struct.Struct("=4xHH")  # behind the address part: nfcache, offset of the target, offset of the next entry
_EXTENSION = struct.Struct("=H29sB")  # of a match or target: size, name, revision
_STANDARD = {-1: Kind.DROP, -2: Kind.ACCEPT, -5: Kind.RETURN}
_ATTEMPTS = 20  # a table that somebody replaces between the two questions is asked for again
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things stand in an entry: length of the address part, its byte of flags, where matches begin."""

    family: str
    names: str
    level: int
    socket_family: socket.AddressFamily
    addresses: int
    flags: int
    goto: int
    head: int


_LAYOUTS = (
    _Layout("ip", "ip_tables_names", socket.IPPROTO_IP, socket.AF_INET, 84, 82, 0x02, 112),
    _Layout("ip6", "ip6_tables_names", socket.IPPROTO_IPV6, socket.AF_INET6, 136, 131, 0x04, 168),
)


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    next: int
    conditions: bool
    goto: bool
    target: str  # empty: a standard verdict
    data: bytes


def legacy_rulesets() -> Iterator[Ruleset]:
    """The tables `filter` that exist in the calling thread's namespace. Raises KernelError."""
    for layout in _LAYOUTS:
        try:
            names = Path("/proc/thread-self/net", layout.names).read_text().split()
        except FileNotFoundError:  # the kernel has no such tables
            continue
        if "filter" in names:
            yield _ruleset(layout)


def _ruleset(layout: _Layout) -> Ruleset:
    info, blob = _read(layout)
    first, policy = info[2 + _FORWARD], info[7 + _FORWARD]
    entries = list(_entries(layout, blob))
    # a chain's head is an entry that carries its name; rules lead to the entry behind it
    names = {first: "FORWARD"} | {one.next: _string(one.data) for one in entries if one.target == "ERROR"}
    chains: dict[str, list[Verdict]] = {name: [] for name in names.values()}
    drops = False
    current = None
    for entry in entries:
        if entry.offset == policy:
            verdict = _verdict(entry, names)
            drops = verdict is not None and verdict.kind is Kind.DROP
            current = None
        elif entry.target == "ERROR":
            current = None
        else:
            current = names.get(entry.offset, current)
            verdict = _verdict(entry, names)
            if current is not None and verdict is not None:
                chains[current].append(verdict)
    return Ruleset(layout.family, "filter", [BaseChain("FORWARD", drops)], chains.__getitem__, " (legacy iptables)")


def _verdict(entry: _Entry, names: Mapping[int, str]) -> Verdict | None:
    """The verdict of a rule without conditions. One that leads to conetd's own chain counts as an accept: what ours
    lets pass there, no rule behind it sees.
    """
    if entry.target == "":
        (code,) = struct.unpack_from("=i", entry.data)
        if code >= 0 and names[code].startswith(OURS):
            return Verdict(Kind.ACCEPT)
        if entry.conditions:
            return None
        if code >= 0:
            return Verdict(Kind.GOTO if entry.goto else Kind.JUMP, names[code])
        return Verdict(_STANDARD[code]) if code in _STANDARD else None
    return Verdict(Kind.REJECT) if entry.target == "REJECT" and not entry.conditions else None


def _entries(layout: _Layout, blob: bytes) -> Iterator[_Entry]:
    offset = 0
    while offset + layout.head <= len(blob):
        target_offset, next_offset = _OFFSETS.unpack_from(blob, offset + layout.addresses)
        target = offset + target_offset
        addresses = bytearray(blob[offset : offset + layout.addresses])
        goto = bool(addresses[layout.flags] & layout.goto)
        addresses[layout.flags] &= ~layout.goto
        size, name, _revision = _EXTENSION.unpack_from(blob, target)
        yield _Entry(
            offset=offset,
            next=offset + next_offset,
            conditions=any(addresses) or any(one != "comment" for one in _matches(blob, offset + layout.head, target)),
            goto=goto,
            target=_string(name),
            data=blob[target + _EXTENSION.size : target + size],
        )
        offset += next_offset


def _matches(blob: bytes, offset: int, end: int) -> Iterator[str]:
    while offset < end:
        size, name, _revision = _EXTENSION.unpack_from(blob, offset)
        yield _string(name)
        offset += size


def _string(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode(errors="replace")


def _read(layout: _Layout) -> tuple[tuple[int, ...], bytes]:
    """What GET_INFO and GET_ENTRIES say of the table, both of one moment."""
    try:
        sock = socket.socket(layout.socket_family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    except OSError as err:
        raise KernelError("read", _what(layout), err.errno or errno.EIO) from err
    with sock:
        for _ in range(_ATTEMPTS):
            number, answer = _ask(sock, layout, _GET_INFO, _INFO.pack(b"filter", *[0] * 13))
            if number:
                raise KernelError("read", _what(layout), number)
            info = _INFO.unpack(answer)
            size = info[-1]
            number, answer = _ask(sock, layout, _GET_ENTRIES, _ENTRIES_HEAD.pack(b"filter", size) + bytes(size))
            if not number:
                return info, answer[_ENTRIES_HEAD.size :]
            if number != errno.EAGAIN:
                raise KernelError("read", _what(layout), number)
    raise KernelError("read", _what(layout), errno.EAGAIN)


def _ask(sock: socket.socket, layout: _Layout, question: int, request: bytes) -> tuple[int, bytes]:
    # socket.getsockopt passes nothing in, and here the kernel reads the table's name from the buffer
    buffer = ctypes.create_string_buffer(request, len(request))
    length = ctypes.c_uint32(len(request))
    if _libc.getsockopt(sock.fileno(), layout.level, question, buffer, ctypes.byref(length)):
        return ctypes.get_errno(), b""
    return 0, buffer.raw


def _what(layout: _Layout) -> str:
    return f"the legacy table filter ({layout.family})"
