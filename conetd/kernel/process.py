"""Which process is meant, whether it still lives, and who hears when it ends.

A pid alone names nobody for long: the kernel gives it out again. With its start time it does. Ends are noticed by
pidfd (Linux 5.3), never by asking again and again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import select
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conetd.errors import KernelError, NotFound

log = logging.getLogger(__name__)

FILE_LIMIT = 65536
"""Descriptors the daemon may need: a pidfd for each container, a socket for each published port, its clients."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process and no later one of the same pid. `start_time` is in clock ticks since boot."""

    pid: int
    start_time: int


def identify(pid: int) -> ProcessId:
    """The living process that has this pid now. Raises NotFound when there is none; a zombie counts as none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f"process {pid} does not exist") from None
    # proc(5): the second field, the name in parentheses, may itself hold spaces and parentheses
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        raise NotFound(f"process {pid} has ended")
    return ProcessId(pid, int(fields[19]))


def alive(process: ProcessId) -> bool:
    """Whether that very process still lives."""
    try:
        return identify(process.pid) == process
    except NotFound:
        return False


def namespace_inode(pid: int) -> int | None:
    """Inode number of the process's network namespace; None when the process is gone."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except (FileNotFoundError, ProcessLookupError):
        return None


def boot_id() -> str:
    """A UUID that changes with each boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def raise_file_limit(wanted: int = FILE_LIMIT) -> int:
    """Let this process open `wanted` files, or as many as it may; return how many that is. Never lowers the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for new in ((max(soft, wanted), max(hard, wanted)), (max(soft, min(wanted, hard)), hard)):
        # the first needs CAP_SYS_RESOURCE if it raises the hard limit
        with contextlib.suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, new)
            return new[0]
    return soft


class ProcessWatch:
    """Calls `on_exit(key)`, on a thread of its own, once for each watched process when it has ended.

    What `on_exit` raises is logged, and the other processes are still watched.
    """

    def __init__(self, on_exit: Callable[[str], None]) -> None:
        self._on_exit = on_exit
        self._lock = threading.Lock()
        self._watched: dict[str, int] = {}  # key to pidfd
        self._keys: dict[int, str] = {}
        self._ended: deque[str] = deque()  # keys whose process had ended before it was watched
        self._retired: list[int] = []  # closed by the thread alone, so that no event can mean a newer descriptor
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="process-watch", daemon=True)
        self._thread.start()

    def __enter__(self) -> ProcessWatch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def watch(self, key: str, process: ProcessId) -> None:
        """Report the end of the process under this key, also when it has ended already.

        Takes the place of what was watched under the key. Raises KernelError when it cannot be watched.
        """
        descriptor: int | None = None
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError as err:
            if err.errno != errno.ESRCH:
                raise KernelError("watch", f"process {process.pid}", err.errno or errno.EIO) from err
        # Asked after the descriptor is open: from now on it is either that process or was never it.
        if descriptor is not None and not alive(process):
            os.close(descriptor)
            descriptor = None
        with self._lock:
            self._retire(key)
            if self._closed:
                if descriptor is not None:
                    os.close(descriptor)
            elif descriptor is None:
                self._ended.append(key)
            else:
                self._watched[key] = descriptor
                self._keys[descriptor] = key
                # An epoll that is being waited on takes it in; to wake the thread would only cost a turn.
                self._epoll.register(descriptor, select.EPOLLIN)
            if self._ended or self._retired:
                self._nudge()

    def forget(self, key: str) -> None:
        """Report nothing more under this key, save what is being reported just now. Unknown keys are fine."""
        with self._lock:
            self._retire(key)
            self._nudge()

    def close(self) -> None:
        """Stop reporting and wait for a report under way, unless called from within it. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._nudge()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _retire(self, key: str) -> None:
        with contextlib.suppress(ValueError):
            self._ended.remove(key)
        descriptor = self._watched.pop(key, None)
        if descriptor is not None:
            del self._keys[descriptor]
            self._epoll.unregister(descriptor)
            self._retired.append(descriptor)

    def _nudge(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while True:
            events = self._epoll.poll()
            with self._lock:
                if self._closed:
                    break
                for descriptor, _event in events:
                    if descriptor == self._wake:
                        os.eventfd_read(self._wake)
                    elif descriptor in self._keys:
                        key = self._keys[descriptor]
                        self._retire(key)
                        self._ended.append(key)
                while self._retired:
                    os.close(self._retired.pop())
            self._report()
        with self._lock:
            for descriptor in (*self._retired, *self._watched.values(), self._wake):
                os.close(descriptor)
            self._watched.clear()
            self._keys.clear()
            self._ended.clear()
            self._retired.clear()
            self._wake = -1
            self._epoll.close()

    def _report(self) -> None:
        while True:
            with self._lock:
                if self._closed or not self._ended:
                    return
                key = self._ended.popleft()
            try:
                self._on_exit(key)
            except Exception:
                log.exception("the end of a process could not be dealt with", extra={"key": key})
