"""What changes in etcd below a prefix, as it happens, from a revision on."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType

from conetd.cluster import messages
from conetd.cluster.answers import read_answer
from conetd.cluster.connections import Endpoint, translated
from conetd.cluster.errors import Compacted, EtcdDown, EtcdRefused, MemberFailed, TokenRefused
from conetd.cluster.gateway import Gateway
from conetd.cluster.messages import Event
from conetd.model import JSON

_SILENCE = 2  # times the timeout of an attempt: after so long without a word the member is asked whether it is well
_CHUNK = 65536


class Watch:
    """The changes below a prefix, in order: an iterator of (revision, events), and a context manager that closes it.

    Everything up to that revision has been told then, and all changes of one revision come together. Iterating raises
    Compacted when what was asked for is forgotten, EtcdRefused, and EtcdDown when the connection ended or the member is
    no longer part of a working etcd: within four times the client's timeout. Watch anew from `next_revision` then.
    """

    def __init__(self, gateway: Gateway, prefix: str, revision: int) -> None:
        """Begin. Raises EtcdDown when no member can be reached, and EtcdRefused."""
        self._gateway = gateway
        self._create: JSON = {
            "create_request": {**messages.below(prefix), "start_revision": str(revision), "progress_notify": True}
        }
        self._closed = False
        self._reading = threading.Lock()
        self._endpoint, self._socket, self._rest, first = gateway.reach(self._open)
        self._pending: JSON | None = first
        self.next_revision = revision or messages.revision_of(first) + 1
        """The first revision whose changes have not all been told."""

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, list[Event]]]:
        return self

    def __next__(self) -> tuple[int, list[Event]]:
        """The next changes; waits for them. StopIteration once it is closed."""
        try:
            with self._reading:
                return self._next()
        except (OSError, MemberFailed, EtcdDown):
            if self._closed:
                raise StopIteration from None
            raise
        finally:
            if self._closed:
                self._socket.close()

    def close(self) -> None:
        """End it, at once, also under another thread that waits for changes. Twice is once."""
        self._closed = True
        with contextlib.suppress(OSError):  # it may have ended by itself
            # not SSLSocket's own, which takes the TLS state from under the thread that reads
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        if self._reading.acquire(blocking=False):
            try:
                self._socket.close()
            finally:
                self._reading.release()

    def _next(self) -> tuple[int, list[Event]]:
        while not self._closed:
            message = self._pending or self._receive()
            self._pending = None
            if message.get("canceled"):
                raise self._cancelled(message)
            events = messages.events(message)
            if events:
                # not the header's revision: to one that is behind, etcd sends old changes under the present revision
                self.next_revision = events[-1].mod_revision + 1
                return events[-1].mod_revision, events
            if not message.get("created"):  # nothing has changed up to here
                self.next_revision = max(self.next_revision, messages.revision_of(message) + 1)
        raise StopIteration

    def _cancelled(self, message: JSON) -> Exception:
        reason = str(message.get("cancel_reason", "the watch was cancelled"))
        if oldest := messages.number(message, "compact_revision"):
            return Compacted(
                f"etcd has forgotten revision {self.next_revision}; it knows those from {oldest} on", oldest
            )
        if "no leader" in reason:
            return self._down(reason)
        return EtcdRefused(f"etcd at {self._endpoint.url} refuses a watch: {reason}")

    def _receive(self) -> JSON:
        silence_s = _SILENCE * self._gateway.timeout_s
        self._socket.settimeout(silence_s)
        while b"\n" not in self._rest:
            try:
                chunk = self._socket.recv(_CHUNK)
            except TimeoutError:
                self._check_member()
                continue
            except OSError as err:
                raise self._down(err.strerror or str(err)) from err
            if not chunk:
                raise self._down("the connection was closed")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return read_answer(200, bytes(line), self._endpoint.url)
        except (MemberFailed, TokenRefused) as err:
            raise self._down(str(err)) from err

    def _check_member(self) -> None:
        try:
            self._gateway.ask(self._endpoint, "maintenance/status", {}, self._gateway.timeout_s)
        except MemberFailed as err:
            raise self._down(str(err)) from err

    def _down(self, reason: str) -> EtcdDown:
        return EtcdDown.of({self._endpoint.url: reason})

    def _open(self, endpoint: Endpoint, timeout_s: float) -> tuple[Endpoint, socket.socket, bytearray, JSON]:
        def exchange(headers: dict[str, str]) -> tuple[Endpoint, socket.socket, bytearray, JSON]:
            sock = self._gateway.connections.open_socket(endpoint, timeout_s)
            try:
                with translated(timeout_s, alive=True):
                    sock.sendall(_request(endpoint, headers, self._create))
                    rest, first = _begin(sock, endpoint)
            except BaseException:
                sock.close()
                raise
            return endpoint, sock, rest, first

        return self._gateway.with_token(endpoint, timeout_s, exchange)


def gathered(watch: Iterable[tuple[int, list[Event]]]) -> Iterator[tuple[int, list[Event]]]:
    """What the watch tells, with everything that has come meanwhile in one: many changes are applied like one.

    Ends as the watch does, with its error.
    """
    queue: SimpleQueue[tuple[int, list[Event]] | BaseException | None] = SimpleQueue()

    def receive() -> None:
        try:
            for one in watch:
                queue.put(one)
            queue.put(None)
        except BaseException as err:  # it is raised where the events are applied
            queue.put(err)

    threading.Thread(target=receive, name="watch", daemon=True).start()
    while True:
        waiting = [queue.get()]
        while not queue.empty():
            waiting.append(queue.get())
        told = [one for one in waiting if isinstance(one, tuple)]
        if told:
            yield told[-1][0], [event for _, events in told for event in events]
        if not isinstance(waiting[-1], tuple):
            if waiting[-1] is not None:
                raise waiting[-1]
            return


def _request(endpoint: Endpoint, headers: dict[str, str], body: JSON) -> bytes:
    # HTTP 1.0, so that the stream comes as it is and not in chunks; http.client cannot go on reading after a timeout
    content = json.dumps(body).encode()
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    lines = {"Host": f"{host}:{endpoint.port}", "Content-Length": str(len(content)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /v3/watch HTTP/1.0\r\n{head}\r\n".encode() + content


def _begin(sock: socket.socket, endpoint: Endpoint) -> tuple[bytearray, JSON]:
    """What came after the first message, and that message, which says that the watch was created, or why not."""
    head, rest = _read_until(sock, bytearray(), b"\r\n\r\n")
    status = int(head.split(maxsplit=2)[1])
    if status != 200:
        while chunk := sock.recv(_CHUNK):
            rest += chunk
        read_answer(status, bytes(rest), endpoint.url)
        raise ConnectionError(f"HTTP {status}")
    line, rest = _read_until(sock, rest, b"\n")
    first = read_answer(200, line, endpoint.url)
    if first.get("canceled") and "token" in (reason := str(first.get("cancel_reason"))):
        raise TokenRefused(f"etcd at {endpoint.url} refuses a watch: {reason}")
    return rest, first


def _read_until(sock: socket.socket, buffer: bytearray, end: bytes) -> tuple[bytes, bytearray]:
    while end not in buffer:
        chunk = sock.recv(_CHUNK)
        if not chunk:
            raise ConnectionError("the connection was closed")
        buffer += chunk
    found, _, rest = buffer.partition(end)
    return bytes(found), rest
