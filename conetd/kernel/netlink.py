"""How to write netlink messages and exchange them with the kernel: one buffer out, every answer read.

Writing is ours because it is on the path of every container (pyroute2's encoders cost 0.3 ms a link message, this
0.01) and because nftables' concatenated intervals have no encoder there; reading what the kernel dumps stays
pyroute2's wherever it is not hot.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from conetd.errors import KernelError

# linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_DUMP = 0x300
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
_NLMSGERR_ATTR_MSG = 1
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER = 64 << 20  # bytes; the kernel refuses a message longer than the send buffer (EMSGSIZE)
_CHUNK = 1 << 20

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded to four bytes."""
    size = len(payload)
    return _ATTRIBUTE.pack(size + 4, kind) + payload + _PAD[size & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def message(kind: int, flags: int, payload: bytes) -> bytes:
    """One netlink request without a sequence number; `Netlink.exchange` gives it one."""
    return _HEADER.pack(16 + len(payload), kind, flags | NLM_F_REQUEST, 0, 0) + payload + _PAD[len(payload) & 3]


def attributes(payload: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, memoryview]]:
    """The attributes of a payload from `offset` on: type without its flags, and value."""
    view = memoryview(payload)
    end = len(view)
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(view, offset)
        if size < 4:
            return
        yield kind & NLA_TYPE_MASK, view[offset + 4 : offset + size]
        offset += (size + 3) & ~3


@dataclass(frozen=True, slots=True)
class Answer:
    """What the kernel said to one message: `errno` 0 is success; `detail` is its own explanation, if any."""

    errno: int
    detail: str = ""


class Netlink:
    """A netlink socket in the namespace of the thread that opens it. Not for two threads at a time."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._sequence = 1

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. Closing twice is fine."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor, for ioctls on its namespace."""
        return self._socket.fileno()

    def exchange(self, messages: Sequence[bytes]) -> list[Answer]:
        """Send the messages in one buffer and return the kernel's answer to each, in their order.

        A message without NLM_F_ACK that raised no complaint counts as a success. The kernel works off a buffer
        before send returns, so whatever it has to say is there to be read then.
        """
        first = self._sequence
        buffer = bytearray()
        for number, one in enumerate(messages):
            start = len(buffer)
            buffer += one
            struct.pack_into("=I", buffer, start + 8, first + number)
        self._sequence = first + len(messages)
        self._socket.send(buffer)
        answers = [Answer(0)] * len(messages)
        for kind, sequence, payload in self._pending():
            if kind == NLMSG_ERROR and first <= sequence < first + len(messages):
                answers[sequence - first] = _answer(payload)
        return answers

    def dump(self, request: bytes) -> list[tuple[int, bytes]]:
        """Send one dump request and return type and payload of each answer.

        A dump that the kernel calls interrupted is asked for again. Raises KernelError.
        """
        for _ in range(20):
            found = self._dump_once(request)
            if found is not None:
                return found
        raise KernelError("list", f"netlink messages of type {struct.unpack_from('=H', request, 4)[0]}", errno.EINTR)

    def _dump_once(self, request: bytes) -> list[tuple[int, bytes]] | None:
        sequence = self._sequence
        self._sequence += 1
        buffer = bytearray(request)
        struct.pack_into("=I", buffer, 8, sequence)
        self._socket.send(buffer)
        found: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for kind, flags, number, payload in _split(self._socket.recv(_CHUNK)):
                if number != sequence:
                    continue
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_DONE:
                    return None if interrupted else found
                if kind == NLMSG_ERROR:
                    answer = _answer(payload)
                    if answer.errno == errno.EINTR:
                        return None
                    if answer.errno:
                        raise KernelError("list", "netlink objects", answer.errno, answer.detail)
                    return found
                found.append((kind, bytes(payload)))
                if not flags & NLM_F_MULTI:
                    return found

    def _pending(self) -> Iterator[tuple[int, int, memoryview]]:
        while True:
            try:
                received = self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            for kind, _flags, sequence, payload in _split(received):
                yield kind, sequence, payload


def _split(received: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    view = memoryview(received)
    offset = 0
    while offset + 16 <= len(view):
        size, kind, flags, sequence, _port = _HEADER.unpack_from(view, offset)
        yield kind, flags, sequence, view[offset + 16 : offset + size]
        offset += (size + 3) & ~3


def _answer(payload: memoryview) -> Answer:
    (code,) = struct.unpack_from("=i", payload)
    detail = ""
    if code:
        # With NETLINK_CAP_ACK the original message is cut to its header: 4 + 16 bytes, then the attributes.
        for kind, value in attributes(payload, 20):
            if kind == _NLMSGERR_ATTR_MSG:
                detail = bytes(value).rstrip(b"\0").decode(errors="replace")
    return Answer(-code, detail)
