"""A relay between conet-hook and the daemon that loses the first answer on its way back, as a crash does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class LossyRelay:
    """Hands requests that come to `path` on to the daemon, one after the other, and its answers back.

    Once the daemon has answered the first of them, `lose` is called instead, and the connection closed without a word.
    """

    def __init__(self, path: Path, daemon: Path, lose: Callable[[], None]) -> None:
        self.answers: list[bytes] = []
        """The body of each answer of the daemon, the lost one included."""
        self._daemon = daemon
        self._lose = lose
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> LossyRelay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                hook, _ = self._listening.accept()
            except OSError:  # closed
                return
            # while the daemon is away the hook is hung up on, and asks again
            with hook, contextlib.suppress(ConnectionError, FileNotFoundError):
                self._relay(hook)

    def _relay(self, hook: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.connect(str(self._daemon))
            daemon.sendall(_request(hook))
            answer = b"".join(iter(lambda: daemon.recv(1 << 16), b""))  # the hook asks for `Connection: close`
        self.answers.append(answer.partition(b"\r\n\r\n")[2])
        if len(self.answers) == 1:
            self._lose()
        else:
            hook.sendall(answer)


def _request(hook: socket.socket) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        got += hook.recv(1 << 16)
    head, _, body = got.partition(b"\r\n\r\n")
    [length] = [int(line.split()[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")]
    while len(body) < length:
        body += hook.recv(1 << 16)
    return head + b"\r\n\r\n" + body
