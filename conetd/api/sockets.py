"""How a UNIX socket is opened with the right owner and mode from its first moment, and who speaks through it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from conetd.errors import ConetError, Conflict

_LOG = logging.getLogger(__name__)
BACKLOG = 1024  # hooks that start at once; the kernel lowers it to net.core.somaxconn
_PEERCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)


class ListeningSocket:
    """A UNIX socket that listens at `path` until it is closed."""

    def __init__(self, path: Path, *, mode: int, gid: int | None = None) -> None:
        """Listen at the path, in the place of a socket nobody answers on any more.

        `gid` None leaves the group as it is. Missing parent directories are made with mode 0755. Raises Conflict when
        somebody answers there or something else than a socket is there, ConetError when the system refuses.
        """
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            _make_directory(path.parent)
            with _locked(path.parent):
                _clear(path)
                self._identity = _bind(self.socket, path, mode, gid)
                self.socket.listen(BACKLOG)
        except OSError as err:
            self.socket.close()
            raise ConetError(f"could not listen at {path}: {err.strerror or err}") from err
        except ConetError:
            self.socket.close()
            raise

    def close(self) -> None:
        """Stop listening and remove the path, unless another has taken it meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            if _identify(self.path) == self._identity:
                self.path.unlink()
        self.socket.close()


def group_id(group: str | None, default: str) -> int | None:
    """The number of the group. None asks for the default, which may be missing: then the answer is None too.

    Raises ConetError when a group that was asked for does not exist.
    """
    try:
        return grp.getgrnam(group or default).gr_gid
    except KeyError:
        if group is not None:
            raise ConetError(f"socket_group: there is no group {group!r} on this system") from None
        _LOG.warning("no group for the public socket: only root can use it", extra={"group": default})
        return None


def peer_uid(sock: socket.socket) -> int:
    """The user id of the process that opened the other end, as it was then."""
    _, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return int(uid)


def _make_directory(directory: Path) -> None:
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        one.chmod(0o755)  # whatever the umask


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep another conetd that starts now from taking a path between our look at it and our listening there."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"could not listen at {path}: something that is not a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
        refused = probe.connect_ex(str(path))
    if refused != errno.ECONNREFUSED:  # success, or EAGAIN: its backlog is full
        raise Conflict(f"could not listen at {path}: another process answers there")
    path.unlink()


def _bind(sock: socket.socket, path: Path, mode: int, gid: int | None) -> tuple[int, int]:
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)
    # Group first: between the two calls the mode is still 0600.
    if gid is not None:
        os.chown(path, -1, gid, follow_symlinks=False)
    path.chmod(mode)
    return _identify(path)


def _identify(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
