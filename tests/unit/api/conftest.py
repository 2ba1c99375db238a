"""Both doors open on real sockets in front of a service that records what it was asked."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conetd.api.private import private_application
from conetd.api.public import public_application
from conetd.api.server import Doors
from conetd.api.sockets import ListeningSocket


class RecordingService:
    """Answers what a test tells it to; `calls` are what it was asked, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.results: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in _READS | _CHANGES:
            raise AttributeError(name)

        def called(*args: Any, **options: Any) -> Any:
            self.calls.append((name, *args, *options.items()))
            result = self.results.get(name)
            if isinstance(result, Future):
                return result
            if name in _READS:
                if isinstance(result, BaseException):
                    raise result
                return result
            future: Future[Any] = Future()
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
            return future

        return called


_READS = {"networks", "network", "containers", "container", "policy", "drivers", "status"}
_READS |= {"info", "bulk_info", "metrics", "bulk_metrics"}
_CHANGES = {
    "create_network",
    "replace_default_policy",
    "delete_network",
    "configure",
    "forget",
    "replace_policy",
    "up",
    "down",
    "net_in",
    "net_out",
}


@dataclass
class Reply:
    """One HTTP response; `json` is its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("conetd", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


@dataclass
class Door:
    """A client of one socket."""

    path: Path

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Send one request; a body that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = _Connection(self.path)
        try:
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def raw(self, request: bytes) -> bytes:
        """Send bytes as they are and return all that comes until the daemon closes the connection."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(self.path))
            sock.sendall(request)
            return b"".join(iter(lambda: sock.recv(65536), b""))


@dataclass
class OpenDoors:
    """What a test gets: two doors and the service behind them."""

    service: RecordingService
    public: Door
    private: Door
    close: Callable[[], None]
    closing: Callable[[], Future[None]] = field(repr=False)


@pytest.fixture
def doors(tmp_path: Path) -> Iterator[OpenDoors]:
    service = RecordingService()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    sockets = {name: ListeningSocket(tmp_path / name, mode=0o600) for name in ("public", "private")}
    served = Doors(patience_s=20)
    reads = ThreadPoolExecutor(2)

    async def open_both() -> None:
        await served.open(public_application(service, reads), sockets["public"])
        await served.open(private_application(service, reads), sockets["private"])

    def closing() -> Future[None]:
        return asyncio.run_coroutine_threadsafe(served.close(), loop)

    def close() -> None:
        closing().result(30)
        for one in sockets.values():
            one.close()

    async def settle() -> None:
        # a transport's socket is closed in the turn of the loop after the one in which it was told so
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(open_both(), loop).result(10)
    yield OpenDoors(service, Door(tmp_path / "public"), Door(tmp_path / "private"), close, closing)
    close()
    asyncio.run_coroutine_threadsafe(settle(), loop).result(10)
    reads.shutdown()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
