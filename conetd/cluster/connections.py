"""How the members of etcd are connected to: over TLS if so wanted, noticing a cut network, and kept for reuse."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from conetd.cluster.errors import MemberFailed
from conetd.errors import Invalid

_IDLE_MAX = 4  # connections kept for each member
# Until the kernel gives up on a peer that has gone silent, tcp(7): after 3 s a probe each second.
_KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 3,
    socket.TCP_KEEPINTVL: 1,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 5000,  # milliseconds
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a member answers."""

    url: str
    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """The endpoint of a URL `http://host:port` or `https://host:port`."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        return cls(url, parts.hostname, parts.port, parts.scheme == "https")


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom a client trusts, and as whom it comes: PEM files. `ca` None: the authorities the system trusts."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """What connections are secured by; the files are read now. Raises Invalid, naming the one of no use."""
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        except OSError as err:
            raise Invalid(f"cluster.ca: {self.ca} is of no use: {_reason(err)}") from err
        try:
            if self.cert is not None:
                context.load_cert_chain(str(self.cert), None if self.key is None else str(self.key))
        except OSError as err:
            raise Invalid(f"cluster.cert: {self.cert} with key {self.key} is of no use: {_reason(err)}") from err
        return context


class Connections:
    """Connections to members. From any thread; whoever uses one has it alone."""

    def __init__(self, tls: Tls, *, secured: bool) -> None:
        """The files of `tls` are read now if some members are `secured`. Raises Invalid."""
        self._context = tls.context() if secured else None
        # one that wants a certificate and gets none hangs up after the handshake, often without a word
        self._hint = " (no certificate was shown: cluster.cert is not set)" if tls.cert is None else ""
        self._lock = threading.Lock()
        self._idle: defaultdict[Endpoint, list[http.client.HTTPConnection]] = defaultdict(list)
        self._closed = False

    def close(self) -> None:
        """Give up what is kept. Requests under way end as they would have; those to come keep nothing."""
        with self._lock:
            self._closed = True
            idle = [one for kept in self._idle.values() for one in kept]
            self._idle.clear()
        for one in idle:
            one.close()

    @contextlib.contextmanager
    def borrow(self, endpoint: Endpoint, timeout_s: float) -> Iterator[http.client.HTTPConnection]:
        """A connection to the member, kept for the next when the block ends well. Raises MemberFailed."""
        connection = self._kept(endpoint)
        if connection is None:
            connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
            connection.auto_open = 0
            connection.sock = self.open_socket(endpoint, timeout_s)
        assert connection.sock is not None
        connection.sock.settimeout(timeout_s)
        try:
            with translated(timeout_s, alive=True, hint=self._hint if endpoint.tls else ""):
                yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if connection.sock is not None and not self._closed and len(self._idle[endpoint]) < _IDLE_MAX:
                self._idle[endpoint].append(connection)
                return
        connection.close()

    def _kept(self, endpoint: Endpoint) -> http.client.HTTPConnection | None:
        while True:
            with self._lock:
                if not self._idle[endpoint]:
                    return None
                connection = self._idle[endpoint].pop()
            if connection.sock is not None and not _readable(connection.sock):
                return connection
            connection.close()  # nothing is awaited on it, so this is its end

    def open_socket(self, endpoint: Endpoint, timeout_s: float) -> socket.socket:
        """A fresh connection. Raises MemberFailed."""
        with translated(timeout_s, alive=False):
            sock = socket.create_connection((endpoint.host, endpoint.port), timeout_s)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEP_ALIVE.items():
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._context is not None and endpoint.tls:
                    return self._context.wrap_socket(sock, server_hostname=endpoint.host)
            except BaseException:
                sock.close()
                raise
            return sock


@contextlib.contextmanager
def translated(timeout_s: float, *, alive: bool, hint: str = "") -> Iterator[None]:
    """What the network fails with becomes MemberFailed, its reason with the hint after it.

    `alive`: a connection stands, and if it ends a fresh one may do; and what was sent may have been carried out.
    """
    try:
        yield
    except TimeoutError:
        raise MemberFailed(f"no answer within {timeout_s:.3g} s", alive=alive, unsure=alive) from None
    except (OSError, http.client.HTTPException) as err:
        raise MemberFailed(_reason(err) + hint, alive=alive, unsure=alive) from err


def _reason(err: Exception) -> str:
    # of a certificate that is not trusted the first says why, and the second no more than that it failed
    return str(getattr(err, "verify_message", None) or getattr(err, "strerror", None) or err or repr(err))


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
