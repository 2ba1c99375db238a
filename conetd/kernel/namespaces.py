"""How to open a container's network namespace and how to work inside it for a moment."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from conetd.driver import Namespace
from conetd.errors import Invalid, KernelError, NotFound

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12


class NetNS:
    """An open network namespace. Keeps the namespace alive until it is closed; closing twice is fine."""

    __slots__ = ("_fd", "_inode")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._inode = os.fstat(fd).st_ino

    @property
    def fd(self) -> int:
        """A descriptor for setns(2), -1 once closed."""
        return self._fd

    @property
    def inode(self) -> int:
        """The namespace's inode number, as in `readlink /proc/PID/ns/net`."""
        return self._inode

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> NetNS:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_namespace(pid: int) -> NetNS:
    """Open the network namespace of a process.

    Raises NotFound when the process is gone, Invalid when it lives in the calling thread's own namespace: what is
    meant for a container must never land on the host.
    """
    try:
        netns = NetNS(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    except (FileNotFoundError, ProcessLookupError) as err:
        raise NotFound(f"process {pid} is gone, and its network namespace with it") from err
    except OSError as err:
        raise KernelError("open", f"the network namespace of process {pid}", err.errno or 0) from err
    if netns.inode == Path(_OWN).stat().st_ino:
        netns.close()
        raise Invalid(f"process {pid} is in the host's network namespace; a container needs one of its own")
    return netns


@contextmanager
def inside(netns: Namespace) -> Iterator[None]:
    """Have the calling thread in the namespace for the block. Not for the main thread.

    A thread that cannot come back would do the host's work in a container: then the process ends at once, and the
    next start finds everything in the store. Raises KernelError when the namespace cannot be entered.
    """
    assert threading.current_thread() is not threading.main_thread(), "the main thread stays in its namespace"
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(netns.fd, _CLONE_NEWNET):
            raise KernelError("enter", f"network namespace {netns.inode}", ctypes.get_errno())
        try:
            yield
        finally:
            if _libc.setns(home, _CLONE_NEWNET):
                print("conetd: cannot return to its own network namespace; ending", file=sys.stderr)  # noqa: T201
                os.abort()
    finally:
        os.close(home)
