"""What tests of etcd's client need beside an etcd: certificates, and what a watch has told."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pytest_netns import Netns

from conetd.cluster.messages import Event
from conetd.cluster.watch import Watch
from lab.etcd import EtcdCluster, Pem, missing

__all__ = ["EtcdCluster", "Pem", "Seen", "certificates", "eventually", "missing", "take"]

T = TypeVar("T")


def certificates(directory: Path, address: str = "127.0.0.1") -> Pem:
    """An authority of a day, with a certificate for servers at the address and one for clients, made by openssl."""
    directory.mkdir(exist_ok=True)
    ca, ca_key = directory / "ca.pem", directory / "ca-key.pem"
    day = ("-days", "1", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    _openssl("req", "-x509", *day, "-subj", "/CN=test authority", "-keyout", ca_key, "-out", ca)
    made: list[Path] = []
    for name, extensions in (
        # etcd's gateway comes to its own server as a client, with this certificate
        ("server", f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n"),
        ("client", "extendedKeyUsage=clientAuth\n"),
    ):
        cert, key, request, options = (directory / f"{name}{end}" for end in (".pem", "-key.pem", ".csr", ".ext"))
        options.write_text(extensions)
        _openssl("req", *day[2:], "-subj", f"/O={name}", "-keyout", key, "-out", request)
        signing = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "1", "-extfile", options)
        _openssl("x509", "-req", "-in", request, *signing, "-out", cert)
        made += [cert, key]
    return Pem(ca, *made)


def _openssl(*argv: str | Path) -> None:
    subprocess.run(["openssl", *argv], check=True, capture_output=True)


class Seen:
    """What a watch tells, taken by a thread of its own in the namespace of its etcd's client."""

    def __init__(self, watch: Watch, place: Netns) -> None:
        self.watch = watch
        self._place = place
        self.events: list[Event] = []
        self.error: Exception | None = None
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        with self._place.inside():
            try:
                for _, events in self.watch:
                    self.events += events
            except Exception as err:
                self.error = err
        self.ended.set()

    def has(self, *keys: str) -> None:
        assert [event.key for event in self.events] == list(keys)


def take(watch: Watch, count: int = 1, seconds: float = 10.0) -> list[Event]:
    """The next events of the watch, at least so many, or AssertionError; what else the watch raises comes through."""
    taken: list[Event] = []
    limit = threading.Timer(seconds, watch.close)
    limit.start()
    try:
        while len(taken) < count:
            try:
                taken += next(watch)[1]
            except StopIteration:
                raise AssertionError(f"the watch told {taken} and then nothing for {seconds} s") from None
    finally:
        limit.cancel()
        limit.join()
    return taken


def eventually(attempt: Callable[[], T], seconds: float = 10.0, *, catch: type[Exception] = AssertionError) -> T:
    """What the attempt gives, as soon as it no longer raises `catch`; after so many seconds its error is raised."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except catch:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
