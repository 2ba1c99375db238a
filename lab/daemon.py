"""A daemon in a host's namespace with sockets and a state directory of its own, and how it is spoken to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_netns import Netns

PATIENCE_S = 20.0


def eventually(check: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """The first true result of `check`, asked again and again. Raises AssertionError when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {seconds:g} s: {what}")
        time.sleep(0.02)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("conetd", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


@dataclass
class Answer:
    """Status and JSON body of an answer."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def error(self) -> dict[str, Any]:
        """The error object of a refusal."""
        assert set(self.body) == {"error"}, self.body
        told: dict[str, Any] = self.body["error"]
        return told


@dataclass
class Daemon:
    """A conetd in a host's namespace with a state directory of its own."""

    host: Netns
    folder: Path
    settings: str = ""
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    """Beside the environment of the tests."""
    group: str = "root"
    """Whose the public socket is."""

    @property
    def public_socket(self) -> Path:
        return self.folder / "conetd.sock"

    @property
    def private_socket(self) -> Path:
        return self.folder / "guardian.sock"

    @property
    def database(self) -> Path:
        return self.folder / "state" / "conetd.sqlite"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def config(self) -> Path:
        return self.folder / "conetd.toml"

    def start(self, *, wait: bool = True, before: Sequence[str] = ()) -> None:
        """Start it; `before` is a command that ends by executing what follows it."""
        self.config.write_text(
            f'state_dir = "{self.folder}/state"\npublic_socket = "{self.public_socket}"\n'
            f'private_socket = "{self.private_socket}"\nsocket_group = "{self.group}"\n{self.settings}\n'
        )
        command = [*before, sys.executable, "-m", "conetd", "run", "--config", str(self.config)]
        with (self.folder / "log").open("ab") as log:
            self.process = self.host.popen(command, stdout=log, stderr=log, env=os.environ | self.environment)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the daemon ended:\n{self.log}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                return bool(self.get("/status").body["status"] != "starting")
            return False

        eventually(ready, f"the daemon is ready:\n{self.log}")

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """The process does nothing within the block."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def call(
        self, method: str, path: str, document: Any = None, *, private: bool = False, raw: bytes | None = None
    ) -> Answer:
        connection = _UnixConnection(self.private_socket if private else self.public_socket)
        try:
            body = raw if raw is not None else None if document is None else json.dumps(document).encode()
            connection.request(method, path, body)
            response = connection.getresponse()
            content = response.read()
            return Answer(response.status, json.loads(content) if content else None, dict(response.getheaders()))
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def post(self, path: str, document: Any) -> Answer:
        return self.call("POST", path, document)

    def put(self, path: str, document: Any) -> Answer:
        return self.call("PUT", path, document)

    def delete(self, path: str) -> Answer:
        return self.call("DELETE", path)

    def up(self, handle: str, container: Netns, **more: Any) -> Answer:
        state = {"ociVersion": "1.0.2", "id": handle, "status": "creating", "pid": container.pid, "bundle": "/b"}
        return self.call("POST", f"/containers/{handle}/up", state | more, private=True)

    def down(self, handle: str) -> Answer:
        return self.call("POST", f"/containers/{handle}/down", private=True)

    def network(self, name: str = "blue", **config: Any) -> Answer:
        policy = config.pop("default_policy", {})
        document = {"name": name, "type": "bridge", "config": {"subnet": "10.10.0.0/24"} | config}
        answer = self.post("/networks", document | {"default_policy": policy})
        assert answer.status in (200, 201), answer
        return answer

    def join(self, handle: str, *networks: Any, **more: Any) -> None:
        answer = self.put(f"/containers/{handle}/config", {"attach_to": list(networks), **more})
        assert answer.status in (200, 201), answer

    def bring_up(self, handle: str, container: Netns, *networks: Any) -> dict[str, Any]:
        """Configure the container and bring it up; returns what `up` answered."""
        self.join(handle, *(networks or ("blue",)))
        answer = self.up(handle, container)
        assert answer.status == 200, (answer, self.log)
        told: dict[str, Any] = answer.body
        return told

    def policy(self, handle: str, **networks: Any) -> Answer:
        return self.put(f"/containers/{handle}/policy", {"networks": networks})
