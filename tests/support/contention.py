"""One host port that many containers want: who had it when, and who was seen to have it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from played import TCP4, UP
from traffic import ask as reach
from world import World


@dataclass(frozen=True)
class Hold:
    """When a container had the port: it may have had it from `begun` to `gone`, it had from `up` to `ending`."""

    name: str
    begun: float
    up: float
    ending: float
    gone: float

    def may_overlap(self, start: float, end: float) -> bool:
        """Whether it may have had the port at some time between the two."""
        return self.begun <= end and start <= self.gone


@dataclass(frozen=True)
class Seen:
    """What was seen during a while: the name that answered, or that was told as the holder's; or why none was."""

    start: float
    end: float
    name: str


class Watch:
    """Asks again and again, until the block ends, who answers at the port, and counts who is said to have it."""

    def __init__(self, world: World, port: int) -> None:
        self.port = port
        self.seen: list[Seen] = []
        self.most = {"listed": 0, "in the kernel": 0}
        self._world = world
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(3)
        self._looking: list[Future[None]] = []

    def __enter__(self) -> Watch:
        looks = (self.knock, self._list, self._look_into_the_kernel)
        self._looking = [self._pool.submit(self._repeat, look) for look in looks]
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for one in self._looking:
            one.result()
        self._pool.shutdown()

    def _repeat(self, look: Callable[[], None]) -> None:
        while not self._stop.is_set():
            look()

    def knock(self, patience: float = 0.5) -> None:
        """Ask once, and note who answered."""
        start = time.monotonic()
        answer = reach(self._world.outside, TCP4, UP, self.port, patience=patience)
        self.seen.append(Seen(start, time.monotonic(), answer.split()[0]))

    def _list(self) -> None:
        told = self._world.daemon.get("/containers").body
        ports = [port["host_port"] for one in told for part in one["attachments"] for port in part["mapped_ports"]]
        self.most["listed"] = max(self.most["listed"], ports.count(self.port))

    def _look_into_the_kernel(self) -> None:
        listing = self._world.host.run("nft", "list", "ruleset").stdout
        listing += self._world.host.run("iptables-legacy-save", "-t", "nat", check=False).stdout
        count = len(re.findall(rf"tcp \. {self.port} : |--dport {self.port} .*DNAT", listing))
        self.most["in the kernel"] = max(self.most["in the kernel"], count)
