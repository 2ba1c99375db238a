"""Which host ports an attachment gets: kept, bound anew, and given back, with nothing held after a failure."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence

from conetd.errors import Conflict, Exhausted, Invalid
from conetd.kernel.hostports import HostPorts
from conetd.model import PROTOCOL_NAMES, HostPort, PortRequest
from conetd.ports import PortPool, candidates, overlaps
from conetd.reconcile.joins import match_ports, settle
from conetd.store import HostPortRecord

_Socket = tuple[int, str, int]


class PortKeeper:
    """Settles the host ports of attachments by binding them. May be used from any thread."""

    def __init__(self, sockets: HostPorts, pool: PortPool, last: Mapping[int, int] | None = None) -> None:
        """`last` is what `last` was when the keeper before this one ended: the pool goes on from there."""
        self._sockets = sockets
        self._pool = pool
        self._lock = threading.Lock()
        self._last: dict[int, int] = dict(last or {})
        self._held: dict[str, dict[str, dict[_Socket, HostPort]]] = {}  # by handle and network

    def settle(
        self, handle: str, network: str, requests: Sequence[PortRequest], held: Sequence[HostPortRecord]
    ) -> tuple[HostPortRecord, ...]:
        """Bind what the requests need beside what is `held` for them already, and return them all in their order.

        An entry that stands keeps its port. What is needed no longer stays bound until `keep_only`. Raises Conflict
        naming the holder, Exhausted when the pool is empty, Invalid when two entries want one port; each is filed under
        the entry's path. After an error the same is held as before.
        """
        if not requests and not held:
            return ()
        with self._lock:
            before = dict(self._mine(handle, network))
            try:
                return self._settle(handle, network, requests, held)
            except BaseException:
                self._restore(handle, network, before)
                raise

    def keep_only(self, handle: str, network: str, ports: Collection[HostPort]) -> None:
        """Give back every port of the attachment that is not among these, and hold these."""
        with self._lock:
            self._restore(handle, network, {_socket(port): port for port in ports})

    @property
    def last(self) -> dict[int, int]:
        """By IANA protocol number, the port of the pool that was given out last."""
        with self._lock:
            return dict(self._last)

    def release_unclaimed(self) -> None:
        """Give back what the service manager kept and no attachment holds."""
        self._sockets.release_unclaimed()

    def _settle(
        self, handle: str, network: str, requests: Sequence[PortRequest], held: Sequence[HostPortRecord]
    ) -> tuple[HostPortRecord, ...]:
        matched = match_ports(requests, held)
        standing = {_socket(found.port) for _, found in matched if found is not None}
        mine = self._mine(handle, network)
        records: list[HostPortRecord] = []
        asked = {request.host_port for request in requests}
        for request, found in matched:
            path = f"networks.{network}.{request.path}"
            if found is None and request.host_port == 0:
                found = self._pick(handle, network, request, asked)
            elif found is None:
                found = settle(request, request.host_port)
                self._refuse_twice(records, found.port, path)
                if _socket(found.port) not in mine:
                    for key, port in list(mine.items()):
                        if key not in standing and overlaps(port, found.port):
                            self._sockets.release(mine.pop(key))
                    try:
                        self._bind(handle, network, found.port)
                    except (Conflict, Invalid) as err:
                        field = next(iter(err.fields), "host_port")
                        raise type(err)(f"{path}: {err.message}", fields={f"{path}.{field}": err.message}) from err
            records.append(found)
        return tuple(records)

    def _restore(self, handle: str, network: str, wanted: dict[_Socket, HostPort]) -> None:
        mine = self._mine(handle, network)
        for key in [key for key in mine if key not in wanted]:
            self._sockets.release(mine.pop(key))
        for key, port in wanted.items():
            if key not in mine:
                self._bind(handle, network, port)
        if not mine:
            del self._held[handle][network]
            if not self._held[handle]:
                del self._held[handle]

    def _mine(self, handle: str, network: str) -> dict[_Socket, HostPort]:
        return self._held.setdefault(handle, {}).setdefault(network, {})

    def _bind(self, handle: str, network: str, port: HostPort) -> None:
        # For the sockets the container is one owner; its networks must not share a port either.
        for other, ports in self._held.get(handle, {}).items():
            if other != network and any(overlaps(one, port) for one in ports.values()):
                name = f"{port.host_port}/{PROTOCOL_NAMES[port.protocol]}"
                raise Conflict(f'host port {name} is held by container "{handle}" on network "{other}"')
        self._sockets.bind(port, handle)
        self._mine(handle, network)[_socket(port)] = port

    def _pick(self, handle: str, network: str, request: PortRequest, asked: Collection[int]) -> HostPortRecord:
        # The container's own ports would bind again, being its own.
        own = {port.host_port for ports in self._held[handle].values() for port in ports.values()}
        for number in candidates(self._pool, own.union(asked), self._last.get(request.protocol)):
            record = settle(request, number)
            if self._sockets.try_bind(record.port, handle):
                self._mine(handle, network)[_socket(record.port)] = record.port
                self._last[request.protocol] = number
                return record
        raise Exhausted(
            f"port pool is exhausted: all {self._pool.size} {PROTOCOL_NAMES[request.protocol]} ports from "
            f"{self._pool.start} on are held"
        )

    def _refuse_twice(self, records: Sequence[HostPortRecord], port: HostPort, path: str) -> None:
        for one in records:
            if overlaps(one.port, port):
                name = f"{port.host_port}/{PROTOCOL_NAMES[port.protocol]}"
                complaint = f"{name} is asked for twice in one policy"
                raise Invalid(f"{path}: host port {complaint}", fields={f"{path}.host_port": complaint})


def _socket(port: HostPort) -> _Socket:
    return port.protocol, str(port.host_ip or ""), port.host_port
