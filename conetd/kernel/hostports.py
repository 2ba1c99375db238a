"""Who holds which host port: one bound, not listening socket for each, so that nobody else can have it too."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from conetd.errors import Conflict, Invalid, KernelError
from conetd.kernel.portholders import holder
from conetd.model import PROTOCOL_NAMES, TCP, UDP, HostPort, IPAddress
from conetd.ports import overlaps

_KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
_Key = tuple[int, int, IPAddress | None]


@dataclass(frozen=True, slots=True)
class Held:
    """A host port that is held for `owner`, a container's handle."""

    port: HostPort
    owner: str


@dataclass(frozen=True, slots=True)
class _Entry:
    port: HostPort
    owner: str | None  # None: kept over a restart, and not asked for yet
    socket: socket.socket


def fdname(protocol: int, host_ip: IPAddress | None, port: int) -> str:
    """The name under which a socket is kept by the service manager: printable, without colons."""
    name = f"hostport-{PROTOCOL_NAMES[protocol]}-{port}"
    return name if host_ip is None else f"{name}-{str(host_ip).replace(':', '_')}"


def _nothing(*_args: object) -> None:
    return None


class HostPorts:
    """The host ports held in the namespace of the threads that bind them. May be used from any thread.

    `kept` are sockets that outlived the former daemon, by name. `keep` and `drop` are told each socket from when it
    is bound (or taken over) and until it is released; the sockets are closed with the process otherwise.
    """

    def __init__(
        self,
        kept: Mapping[str, int] | None = None,
        *,
        keep: Callable[[str, int], None] = _nothing,
        drop: Callable[[str], None] = _nothing,
    ) -> None:
        self._keep = keep
        self._drop = drop
        self._lock = threading.Lock()
        self._entries: defaultdict[tuple[int, int], dict[_Key, _Entry]] = defaultdict(dict)
        for name, fd in (kept or {}).items():
            self.adopt(name, fd)

    def adopt(self, name: str, fd: int) -> None:
        """Take over a socket of `sockets`, kept from an earlier run: the next `bind` of that port gets it.

        A descriptor that is no such socket is closed, and dropped.
        """
        try:
            sock = socket.socket(fileno=fd)
        except OSError:  # no socket at all
            os.close(fd)
            self._drop(name)
            return
        port = _meaning(sock)
        if port is None or name != _fdname(port):
            sock.close()
            self._drop(name)
            return
        with self._lock:
            entries = self._entries[port.protocol, port.host_port]
            if _key(port) in entries:
                sock.close()  # a second descriptor of the same socket
            else:
                entries[_key(port)] = _Entry(port, None, sock)

    def bind(self, port: HostPort, owner: str) -> None:
        """Hold the port for the owner. Twice is once. Raises Conflict naming the holder when it is not free, Invalid
        for a `host_ip` that this host does not have, KernelError for anything else.
        """
        if not self._bind(port, owner):
            raise Conflict(f"host port {_name(port)} is held by {holder(port)}")

    def try_bind(self, port: HostPort, owner: str) -> bool:
        """Hold the port for the owner unless it is held by anybody; tell whether it is. Does not look for the holder.

        For choosing from the pool. Raises as `bind` does otherwise.
        """
        try:
            return self._bind(port, owner)
        except Conflict:
            return False

    def release(self, port: HostPort) -> None:
        """Give the port back. What is not held is fine."""
        with self._lock:
            self._close(_key(port))

    def release_unclaimed(self) -> None:
        """Give back what was kept from an earlier run and not asked for since."""
        with self._lock:
            for entry in [one for entries in self._entries.values() for one in entries.values()]:
                if entry.owner is None:
                    self._close(_key(entry.port))

    def held(self) -> list[Held]:
        """What is held, and for whom."""
        with self._lock:
            every = [entry for entries in self._entries.values() for entry in entries.values()]
        return [Held(entry.port, entry.owner) for entry in every if entry.owner is not None]

    def sockets(self) -> Mapping[str, int]:
        """The descriptor of each socket by its `fdname`. They stay ours."""
        with self._lock:
            every = [entry for entries in self._entries.values() for entry in entries.values()]
        return {_fdname(entry.port): entry.socket.fileno() for entry in every}

    def close(self) -> None:
        """Close every socket here without dropping it there: what the service manager keeps stays bound."""
        with self._lock:
            for entries in self._entries.values():
                for entry in entries.values():
                    entry.socket.close()
            self._entries.clear()

    def _bind(self, port: HostPort, owner: str) -> bool:
        key = _key(port)
        with self._lock:
            for entry in list(self._entries.get(key[:2], {}).values()):
                if not overlaps(entry.port, port) or (_key(entry.port) == key and entry.owner in (None, owner)):
                    continue
                if entry.owner is not None:
                    raise Conflict(f'host port {_name(port)} is held by container "{entry.owner}"')
                self._close(_key(entry.port))  # kept from an earlier run for a mapping that is no more
            before = self._entries.get(key[:2], {}).get(key)
            sock = before.socket if before else _bound(port)
            if sock is None:
                return False
            self._entries[key[:2]][key] = _Entry(port, owner, sock)
            if before is None or before.owner is None:
                self._keep(_fdname(port), sock.fileno())
            return True

    def _close(self, key: _Key) -> None:
        entries = self._entries.get(key[:2], {})
        entry = entries.pop(key, None)
        if not entries:
            self._entries.pop(key[:2], None)
        if entry is not None:
            entry.socket.close()
            self._drop(_fdname(entry.port))


def _key(port: HostPort) -> _Key:
    return port.protocol, port.host_port, port.host_ip


def _name(port: HostPort) -> str:
    return f"{port.host_port}/{PROTOCOL_NAMES[port.protocol]}"


def _fdname(port: HostPort) -> str:
    return fdname(port.protocol, port.host_ip, port.host_port)


def _bound(port: HostPort) -> socket.socket | None:
    """A socket that holds the port, None when it is busy."""
    if port.host_ip is not None:
        return _open(port, socket.AF_INET if port.host_ip.version == 4 else socket.AF_INET6, str(port.host_ip))
    try:
        return _open(port, socket.AF_INET6, "::")
    except (KernelError, Invalid):
        # no IPv6 on this host: EAFNOSUPPORT when it is left out or disabled at boot, EADDRNOTAVAIL by some sandboxes
        return _open(port, socket.AF_INET, "0.0.0.0")


def _open(port: HostPort, family: socket.AddressFamily, address: str) -> socket.socket | None:
    sock = None
    try:
        sock = socket.socket(family, _KINDS[port.protocol] | socket.SOCK_CLOEXEC)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, port.host_ip is not None)
        if port.protocol == UDP:
            # Nobody reads what comes past the mapping, from loopback say: let the kernel keep next to none of it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.bind((address, port.host_port))
    except OSError as err:
        if sock is not None:
            sock.close()
        if err.errno == errno.EADDRINUSE:
            return None
        # EINVAL: a link-local address without its interface
        if err.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
            raise Invalid(
                f"host_ip {address} is not an address of this host that a port could be published on",
                fields={"host_ip": f"not an address of this host: {address}"},
            ) from err
        raise KernelError("bind", f"host port {_name(port)}", err.errno or errno.EIO) from err
    return sock


def _meaning(sock: socket.socket) -> HostPort | None:
    """The port a kept socket holds, None if it is no socket that `_open` makes."""
    protocols = {kind: protocol for protocol, kind in _KINDS.items()}
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type not in protocols:
        return None
    address, number = sock.getsockname()[:2]
    if not number:
        return None
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        wildcard = ip.is_unspecified and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    else:
        wildcard = ip.is_unspecified
    return HostPort(protocols[socket.SocketKind(sock.type)], number, 0, None if wildcard else ip)
