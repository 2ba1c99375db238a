"""How the packets that our rules log reach the daemon: the two NFLOG groups, read and limited per container.

The kernel's own LOG target is silent outside the first namespace, and unlimited.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

from conetd.errors import KernelError
from conetd.kernel.filter import NFLOG_ALLOWED, NFLOG_DENIED
from conetd.kernel.logevents import LeftOut, LogEvent, log_event, parse
from conetd.kernel.netlink import NETLINK_NETFILTER, NLM_F_ACK, NLMSG_ERROR, attribute, message
from conetd.kernel.ratelimit import RateLimit

# linux/netfilter/nfnetlink_log.h
_PACKET, _CONFIG = 4 << 8 | 0, 4 << 8 | 1
_CMD, _MODE, _TIMEOUT, _FLAGS = 1, 2, 4, 6
_BIND, _COPY_PACKET, _FLAG_SEQUENCE = 1, 2, 1
_COPY_BYTES = 128  # IPv6 and some extension headers, and the beginning of what they carry
_FLUSH_AFTER = 10  # hundredths of a second that the kernel gathers packets before it hands them over
_SO_RCVBUFFORCE = 33
_BUFFER = 8 << 20
_CHUNK = 1 << 18
_TICK_MS = 1000
_VERDICTS = {NFLOG_ALLOWED: "allowed", NFLOG_DENIED: "denied"}


class LogReader:
    """Tells `on_event` of each packet logged in the namespace of the thread that makes this.

    One container's are told 100 at once and 10 a second after that; how many were left out is told a second later, or
    before its next. Packets the kernel could not hand over in time are told as lost. Raises KernelError,
    also when another process reads the groups.
    """

    def __init__(
        self, on_event: Callable[[LogEvent | LeftOut], None] = log_event, limit: RateLimit | None = None
    ) -> None:
        self._on_event = on_event
        self._limit = limit or RateLimit()
        self._next: dict[int, int] = {}  # group to the number its next message should have
        self._early: list[bytes] = []
        self._lock = threading.Lock()
        self._running = self._closed = False
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            for group in _VERDICTS:
                self._bind(group)
        except OSError as err:
            self._release()
            raise KernelError("open", "a socket for logged packets", err.errno or errno.EIO) from err
        except KernelError:
            self._release()
            raise

    def run(self) -> None:
        """Tell of packets until `close` is called, from another thread or from `on_event`. To be called once.

        What `on_event` raises ends it.
        """
        with self._lock:
            if self._closed:
                return
            self._running = True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while not self._closed:
                for received in self._early:
                    self._handle(received)
                self._early = []
                for prefix, count in self._limit.due(time.monotonic()):
                    self._on_event(LeftOut(prefix, count))
                if poll.poll(None if self._limit.idle() else _TICK_MS):
                    self._receive()
        finally:
            with self._lock:
                self._closed = True
                self._release()

    def close(self) -> None:
        """Have `run` return. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._running:
                os.eventfd_write(self._wake, 1)
            else:
                self._release()

    def _receive(self) -> None:
        while not self._closed:
            try:
                self._handle(self._socket.recv(_CHUNK, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return
            except OSError as err:
                # The buffer was full. How many packets that cost shows in the number of the next.
                if err.errno != errno.ENOBUFS:
                    raise

    def _handle(self, received: bytes) -> None:
        view = memoryview(received)
        offset = 0
        while offset + 20 <= len(view):
            size, kind = struct.unpack_from("=IH", view, offset)
            if kind == _PACKET:
                self._packet(view[offset + 16 : offset + size])
            offset += (size + 3) & ~3

    def _packet(self, payload: memoryview) -> None:
        (group,) = struct.unpack_from(">H", payload, 2)
        event, number = parse(payload, _VERDICTS[group])
        if number is not None:
            expected = self._next.get(group, 0)
            self._next[group] = (number + 1) & 0xFFFFFFFF
            if number != expected:
                self._on_event(LeftOut(None, (number - expected) & 0xFFFFFFFF))
        if event is not None and self._limit.admit(event.prefix, time.monotonic()):
            left_out = self._limit.take_left_out(event.prefix)
            if left_out:
                self._on_event(LeftOut(event.prefix, left_out))
            self._on_event(event)

    def _bind(self, group: int) -> None:
        request = bytearray(
            message(
                _CONFIG,
                NLM_F_ACK,
                struct.pack(">BBH", socket.AF_UNSPEC, 0, group)
                + attribute(_CMD, bytes([_BIND]))
                + attribute(_MODE, struct.pack(">IBx", _COPY_BYTES, _COPY_PACKET))
                + attribute(_TIMEOUT, struct.pack(">I", _FLUSH_AFTER))
                + attribute(_FLAGS, struct.pack(">H", _FLAG_SEQUENCE)),
            )
        )
        struct.pack_into("=I", request, 8, group)
        self._socket.send(request)
        while True:
            received = self._socket.recv(_CHUNK)
            kind, _flags, sequence = struct.unpack_from("=4xHHI", received)
            if kind == NLMSG_ERROR and sequence == group:
                (code,) = struct.unpack_from("=i", received, 16)
                if code:
                    # the kernel says EPERM for a group that another socket reads, too
                    reason = "another process reads it, or CAP_NET_ADMIN is missing" if -code == errno.EPERM else ""
                    raise KernelError("read", f"NFLOG group {group}", -code, reason)
                return
            self._early.append(received)  # packets of the group bound before

    def _release(self) -> None:
        self._socket.close()
        os.close(self._wake)
