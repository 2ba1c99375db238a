"""The one process that touches the legacy tables: reads its parent's requests, holds the xtables lock while it works.

python-iptables keeps its tables for the whole process, is not made for threads and has crashed processes; here a crash
costs one restart. Nothing is remembered between requests. Started as
`python -m conetd.kernel.iptables.worker CHANNEL NAMESPACE`, two inherited descriptors; ends with its channel.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conetd.errors import KernelError
from conetd.kernel.iptables.protocol import LOCK_SECONDS, Difference, Glance, Tables

if TYPE_CHECKING:
    from conetd.kernel.iptables.legacy import LegacyTable

_LOCK = "/run/xtables.lock"  # XT_LOCK_NAME; iptables itself takes another from this variable
_LOCK_VARIABLE = "XTABLES_LOCKFILE"
_CLONE_NEWNET = 0x40000000
_NAMES = {4: "/proc/net/ip_tables_names", 6: "/proc/net/ip6_tables_names"}
_LEVELS = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_GET_INFO = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_INFO = struct.Struct("=32sI5I5III")  # struct ipt_getinfo
# What only lets pass what the rest forbids comes last: rules stand before the ways to them are opened.
_OPENING = ("filter", "mangle", "nat", "raw")
_CLOSING = ("raw", "nat")
_libc = ctypes.CDLL(None, use_errno=True)


class Tables4And6:
    """The tables of this process's namespace."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, str], LegacyTable] = {}

    def apply(self, wanted: Tables, closing: bool = True) -> tuple[list[Difference], Glance]:
        """Make the tables as wanted, what closes before what opens; return what was not so before.

        Without `closing` no way is closed before the rest goes: for handing over to another backend.
        """
        with _locked():
            tables = self._read(wanted)
            differences = list(_differences(tables, wanted))
            for name in _CLOSING if closing else ():
                for key in _of(name, tables):
                    tables[key].close(wanted[key][0])
            for name in _OPENING:
                for key in _of(name, tables):
                    tables[key].make(*wanted[key])
            return differences, _glance(tables)

    def check(self, wanted: Tables) -> tuple[list[Difference], Glance]:
        """Return what is not as wanted."""
        with _locked():
            tables = self._read(wanted)
            return list(_differences(tables, wanted)), _glance(tables)

    def left(self) -> dict[tuple[int, str], dict[str, list[bytes]]]:
        """The chains of ours in each table that exists."""
        with _locked():
            every: Tables = {(family, name): ({}, {}) for family in _NAMES for name in _OPENING}
            found = {key: table.found().chains for key, table in self._read(every).items()}
            return {key: chains for key, chains in found.items() if chains}

    def glance(self) -> Glance:
        """How many rules and bytes each table holds, and where its chains begin."""
        return _glance([(family, name) for family in _NAMES for name in _existing(family).intersection(_OPENING)])

    def links(self) -> set[str]:
        """The names of the links in this namespace."""
        return {name for _number, name in socket.if_nameindex()}

    def _read(self, wanted: Tables) -> dict[tuple[int, str], LegacyTable]:
        from conetd.kernel.iptables.legacy import LegacyTable

        tables = {}
        for family in _NAMES:
            existing = _existing(family)
            for key in (key for key in wanted if key[0] == family):
                # Opening a table creates it in the kernel.
                if key[1] not in existing and (not any(wanted[key]) or not _speaks(family)):
                    continue
                if key not in self._open:
                    self._open[key] = LegacyTable(*key)
                tables[key] = self._open[key]
                tables[key].forget()
        return tables


def _of(name: str, tables: dict[tuple[int, str], LegacyTable]) -> Iterator[tuple[int, str]]:
    return (key for key in tables if key[1] == name)


def _speaks(family: int) -> bool:
    return family == 4 or Path("/proc/net/if_inet6").exists()


def _existing(family: int) -> set[str]:
    try:
        return set(Path(_NAMES[family]).read_text().split())
    except FileNotFoundError:  # the kernel's module is not there yet
        return set()


def _differences(tables: dict[tuple[int, str], LegacyTable], wanted: Tables) -> Iterator[Difference]:
    for key, table in tables.items():
        chains, jumps = wanted[key]
        found = table.found()
        for name in dict.fromkeys([*chains, *found.chains]):
            if found.chains.get(name) != chains.get(name):
                yield (*key, name, found.chains.get(name))
        for name in dict.fromkeys([*jumps, *found.jumps]):
            if found.jumps.get(name, []) != ([jumps[name]] if name in jumps else []):
                yield (*key, name, found.jumps.get(name, []))


def _glance(keys: Any) -> Glance:
    seen = {}
    for family in _NAMES:
        names = [name for its_family, name in keys if its_family == family]
        if not names:
            continue
        with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_RAW, 255) as raw:
            for name in names:
                info = ctypes.create_string_buffer(name.encode(), _INFO.size)
                size = ctypes.c_uint32(_INFO.size)
                if _libc.getsockopt(raw.fileno(), _LEVELS[family], _GET_INFO, info, ctypes.byref(size)):
                    raise KernelError("look at", f"table {name} of family {family}", ctypes.get_errno())
                seen[family, name] = info.raw
    return seen


@contextmanager
def _locked() -> Iterator[None]:
    """Hold the lock every iptables takes. Raises KernelError when somebody else keeps it for too long."""
    path = os.environ.get(_LOCK_VARIABLE) or _LOCK
    try:
        lock = os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise KernelError("open", f"the xtables lock {path}", err.errno or errno.EIO) from err
    try:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, LOCK_SECONDS)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except TimeoutError as err:
            said = f"another process has held it for {LOCK_SECONDS} s"
            raise KernelError("take", f"the xtables lock {path}", errno.EAGAIN, said) from err
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        yield
    finally:
        os.close(lock)


def _interrupt(number: int, frame: object) -> None:
    raise TimeoutError


def _answer(tables: Tables4And6, request: tuple[str, tuple[Any, ...]]) -> tuple[str, Any]:
    try:
        return "done", getattr(tables, request[0])(*request[1])
    except KernelError as err:
        return "failed", (err.operation, err.object, err.errno, err.detail)


def main(channel: Connection, namespace: int) -> None:
    """Answer requests until the parent closes the channel."""
    # The parent decides when to end: a signal to the whole group must not cut off its last request.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _libc.setns(namespace, _CLONE_NEWNET):
        channel.send(("failed", ("enter", "its network namespace", ctypes.get_errno(), "")))
        return
    os.close(namespace)
    try:
        import conetd.kernel.iptables.legacy  # noqa: F401  # the first import of python-iptables
    except ImportError as err:
        channel.send(("missing", str(err)))
        return
    channel.send(("done", None))
    tables = Tables4And6()
    while True:
        try:
            channel.send(_answer(tables, channel.recv()))
        except (EOFError, ConnectionError):  # the latter when the daemon was killed in the middle of a request
            return


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
