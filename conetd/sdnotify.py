"""What conetd and systemd tell each other: readiness, watchdog, and descriptors kept across a restart."""

from __future__ import annotations

import array
import logging
import os
import socket
from collections.abc import Mapping, MutableMapping

_LOG = logging.getLogger(__name__)
_FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_SEND_TIMEOUT_S = 5.0  # systemd reads its socket in one loop with everything else; the daemon must not hang on it


class Notifier:
    """The way to the service manager. Without one (NOTIFY_SOCKET unset) everything here does nothing.

    A message that cannot be sent is logged, never raised: the daemon's work does not depend on it.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        self._path = env.get("NOTIFY_SOCKET", "")
        if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            self.watchdog_s: float | None = None
        else:
            self.watchdog_s = int(env["WATCHDOG_USEC"]) / 1e6 if env.get("WATCHDOG_USEC", "").isdigit() else None
        """Seconds within which systemd wants a `WATCHDOG=1`; None when it wants none."""

    def send(self, state: str, fd: int | None = None) -> None:
        """Send newline-separated assignments as sd_notify(3) knows them, with a descriptor if one is given."""
        if not self._path:
            return
        # A leading @ is systemd's spelling of an abstract address.
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(_SEND_TIMEOUT_S)
                sock.connect(address)
                sock.sendmsg([state.encode()], rights)
        except OSError as err:
            _LOG.warning("could not notify systemd", extra={"state": state, "reason": str(err)})

    def store_fd(self, name: str, fd: int) -> None:
        """Have systemd keep a copy of the descriptor under this name until `remove_fd`, also while conetd is down.

        FDPOLL=0: systemd must not drop a socket because it looks hung up; a bound one that does not listen does.
        """
        self.send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={_checked(name)}", fd)

    def remove_fd(self, name: str) -> None:
        """Have systemd close all it keeps under this name."""
        self.send(f"FDSTOREREMOVE=1\nFDNAME={_checked(name)}")


def adopted_fds(environment: MutableMapping[str, str] | None = None, *, first: int = _FIRST_FD) -> dict[str, int]:
    """The descriptors systemd kept for us, by name; they close on exec. Of two with one name the first stays open.

    The variables that announce them are removed, so that a second call and every child find none.
    """
    env = os.environ if environment is None else environment
    pid, count, names = (env.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    adopted: dict[str, int] = {}
    for fd, name in zip(range(first, first + int(count)), names.split(":"), strict=False):
        os.set_inheritable(fd, False)
        if name in adopted:
            os.close(fd)
        else:
            adopted[name] = fd
    return adopted


def _checked(name: str) -> str:
    # systemd.service(5): at most 255 characters, neither control characters nor a colon
    if not 0 < len(name) <= 255 or not name.isascii() or not name.isprintable() or ":" in name:
        raise ValueError(f"not a possible name for a stored descriptor: {name!r}")
    return name
