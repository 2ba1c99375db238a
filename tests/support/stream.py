"""A steady stream of datagrams, of which every lost or leaked one is noticed."""

from __future__ import annotations

import contextlib
import socket
import threading

from onehost import Lab, Machine
from traffic import SILENCE_S, Flow

SINK = 9000  # takes datagrams and answers none
PACE_S = 0.0005  # between two datagrams: each leaves an entry in the connection table
_SO_RCVBUFFORCE = 33


class Stream:
    """Datagrams from a container to a sink that counts them, each the first of its flow, for the length of a block."""

    def __init__(self, lab: Lab, sender: Machine, to: str) -> None:
        self._sender, self._to = sender, to
        self._flow = Flow("udp", 6 if ":" in to else 4)
        self._sink = self._flow.open(lab.outside.netns)
        self._sink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        self._sink.bind((to, SINK))
        self._sink.settimeout(SILENCE_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.sent = 0

    def _send(self) -> None:
        while not self._stop.wait(PACE_S):
            with self._flow.open(self._sender.netns) as sock:
                sock.sendto(b"%d" % self.sent, (self._to, SINK))
            self.sent += 1

    def arrived(self) -> int:
        """Stop sending and tell how many arrived."""
        self._stop.set()
        self._thread.join()
        found = set()
        with contextlib.suppress(TimeoutError):
            while True:
                found.add(self._sink.recv(64))
        return len(found)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sink.close()
