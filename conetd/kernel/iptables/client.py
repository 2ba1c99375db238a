"""The worker process as seen by the backend: started once, started again when it has died."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any

from conetd.errors import DriverError, KernelError
from conetd.kernel.iptables.protocol import LOCK_SECONDS

_ATTEMPTS = 3
_ANSWER_SECONDS = LOCK_SECONDS + 60
_START_SECONDS = 60
_NAMESPACE = "/proc/thread-self/ns/net"
_MISSING = "the iptables filter needs python-iptables: pip install conetd[iptables]"


class Worker:
    """The worker of the namespace in which the calling thread is now. Not for two threads at a time."""

    def __init__(self) -> None:
        """Start the process. Raises DriverError when python-iptables is not installed, KernelError when it fails."""
        self._namespace = os.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """The process as it is now."""
        return self._process.pid if self._process is not None else None

    def call(self, name: str, *arguments: object) -> Any:
        """Have the worker do something and return what it says.

        When it dies over it, a new one repeats it; every request may be repeated. Raises KernelError.
        """
        for _ in range(_ATTEMPTS):
            try:
                if self._channel is None:
                    self._start()
                assert self._channel is not None
                self._channel.send((name, arguments))
                return self._answer(self._channel, _ANSWER_SECONDS)
            except (EOFError, ConnectionError):
                self._stop()
        raise KernelError("reach", "the iptables worker", errno.ECHILD, f"it died {_ATTEMPTS} times over one request")

    def close(self) -> None:
        """End the process. Closing twice is fine."""
        self._stop()
        namespace, self._namespace = self._namespace, -1
        if namespace >= 0:
            os.close(namespace)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "conetd.kernel.iptables.worker"]
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(self._namespace)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._namespace),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        self._channel = Connection(ours.detach())
        self._answer(self._channel, _START_SECONDS)

    def _answer(self, channel: Connection, seconds: float) -> Any:
        if not channel.poll(seconds):
            self._stop()
            raise KernelError("await", "the iptables worker", errno.ETIMEDOUT, f"no answer for {seconds} s")
        kind, said = channel.recv()
        if kind == "done":
            return said
        if kind == "missing":
            self._stop()
            raise DriverError(f"{_MISSING} ({said})")
        raise KernelError(*said)

    def _stop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        process, self._process = self._process, None
        if process is None:
            return
        # With its channel closed it ends by itself, unless it hangs.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
            return
        process.kill()
        process.wait()
