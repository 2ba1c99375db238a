"""How what this host decided reaches etcd: from the store's outbox, in order, until etcd has it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from conetd.cluster.errors import EtcdDown, EtcdRefused
from conetd.cluster.etcd import Etcd
from conetd.cluster.keys import Keys, Kind
from conetd.cluster.messages import Compare, Operation, delete, put, value_is
from conetd.errors import ConetError
from conetd.model import JSON
from conetd.reconcile.etcd.decisions import Decisions
from conetd.store import Database, cluster, encode

log = logging.getLogger(__name__)
_EVERY_S = 0.2
_RETRY_S = 0.5
_AT_ONCE = 50  # keys; etcd takes 128 operations in a transaction
_REFUSED_S = 5.0  # for so long what etcd refuses is not tried again
_PATIENCE_S = 2.0  # for how long an answer waits for etcd


@dataclass(slots=True)
class _Waiter:
    keys: set[str]
    deadline: float
    future: Future[JSON | None]


class Outbox:
    """A thread that tells etcd what the store says it has yet to be told."""

    def __init__(
        self, database: Database, etcd: Etcd, keys: Keys, host: str, decisions: Decisions, connected: Callable[[], bool]
    ) -> None:
        self._database = database
        self._etcd = etcd
        self._keys = keys
        self._holder = encode({"host": host})
        self._decisions = decisions
        self._connected = connected
        self.working = threading.RLock()
        """Held while etcd is told, and by those who decide what the outbox has older wishes about."""
        self.problem: str | None = None
        """What etcd refused to be told last."""
        self.generation = 0
        """The revision at which etcd was told last."""
        self.told_at: dict[str, int] = {}
        """Key to the revision at which etcd was told it last."""
        self._refused: dict[str, float] = {}  # keys that etcd refuses, until when they are not tried again
        self._left: set[str] = set()  # networks that this host has left, to be forgotten if it was the last
        self._lock = threading.Lock()  # guards _waiters
        self._waiters: list[_Waiter] = []
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        # Of its own, since the other may be waiting for etcd when an answer is due.
        self._clock = threading.Thread(target=self._watch_clock, name="outbox-clock", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()
        self._clock.start()

    def stop(self) -> None:
        """End; what is left stays in the store."""
        self._stop.set()
        self._wake.set()
        for thread in (self._thread, self._clock):
            if thread.is_alive():
                thread.join()

    def wait_for(self, keys: Collection[str]) -> Future[JSON | None]:
        """Whether etcd has been told these keys, known within seconds: `confirmed`, and the `generation` it gave."""
        waiter = _Waiter(set(keys), time.monotonic() + _PATIENCE_S, Future())
        with self._lock:
            self._waiters.append(waiter)
        if not self._connected():
            waiter.deadline = 0
        self._wake.set()
        return waiter.future

    def rejoined(self, name: str) -> None:
        """Do not have a network forgotten that this host left and is on again."""
        self._left.discard(name)

    def hurry(self) -> None:
        """Look now whether there is something to tell."""
        self._wake.set()

    def flush(self) -> None:
        """Tell etcd everything there is to tell. Raises EtcdDown."""
        with self.working:
            while self._publish():
                pass

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(_EVERY_S)
            self._wake.clear()
            try:
                if self._connected():
                    self.flush()
            except EtcdDown:
                self._stop.wait(_RETRY_S)
            except ConetError as err:
                log.error("the cluster could not be told, it will be tried again", extra={"error": err.message})
                self._stop.wait(_RETRY_S)
            except Exception:  # one that breaks must not end the rest
                log.exception("the cluster could not be told, it will be tried again")
                self._stop.wait(_RETRY_S)
            self._answer()

    def _watch_clock(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._answer()

    def _publish(self) -> bool:
        told = cluster.outbox(self._database.reader(), _AT_ONCE + len(self._refused))
        if not told:
            return False
        told = {key: value for key, value in told.items() if self._refused.get(key, 0) <= time.monotonic()}
        if not told:
            return False
        guards = {key: self._guard(key, value) for key, value in told.items()}
        together = {key: value for key, value in told.items() if not guards[key]}
        done = self._commit(together, []) if together else {}
        for key in told.keys() - together.keys():
            done |= self._commit({key: told[key]}, guards[key])
        self._database.write(lambda db: cluster.posted(db, done), durable=False)
        self._sweep(done)
        self._answer()
        return bool(done)

    def _guard(self, key: str, value: str | None) -> list[Compare]:
        """On what condition the key is told: another host may hold by now what this one held."""
        parsed = self._keys.parse(key)
        if parsed is None:
            return []
        if parsed.kind is Kind.CLAIM:
            return [value_is(key, self._holder)]
        if parsed.kind is Kind.LEASE and value is not None:
            claims = json.loads(value)["claims"]
            return [value_is(self._keys.claim(parsed.network, one), self._holder) for one in claims]
        return []

    def _sweep(self, done: Mapping[str, str | None]) -> None:
        """Forget the networks that this host has left, if no other is on them, once all of that is told."""
        db = self._database.reader()
        for key, value in done.items():
            parsed = self._keys.parse(key)
            if parsed is not None and value is None and parsed.kind is Kind.LEASE:
                self._left.add(parsed.network)
        for name in sorted(self._left):
            if not cluster.outbox_of(db, [self._keys.below(kind, name) for kind in Kind]):
                self._decisions.sweep(name)
                self._left.discard(name)

    def _commit(self, told: dict[str, str | None], compare: list[Compare]) -> dict[str, str | None]:
        """Tell etcd these keys; returns those that are done with. What it refuses is tried again, later."""
        operations: list[Operation] = [delete(key) if value is None else put(key, value) for key, value in told.items()]
        try:
            done = self._etcd.commit(compare, operations)
        except EtcdRefused as err:
            if len(told) > 1:
                return {key: value for one in told.items() for key, value in self._commit(dict([one]), compare).items()}
            [key] = told
            self._refused[key] = time.monotonic() + _REFUSED_S
            self.problem = f"etcd refuses {key}: {err.message}"
            log.error("the cluster refuses what it is told", extra={"key": key, "error": err.message})
            return {}
        for key in told:
            self._refused.pop(key, None)
            if done.succeeded:
                self.told_at[key] = done.revision
        if not self._refused:
            self.problem = None
        self.generation = max(self.generation, done.revision)
        return told

    def _answer(self) -> None:
        now = time.monotonic()
        with self._lock:
            waiting, self._waiters = self._waiters, []
        for one in waiting:
            db = self._database.reader()
            if not any(cluster.in_outbox(db, key) for key in one.keys):
                one.future.set_result({"confirmed": self.problem is None, "generation": self.generation})
            elif now >= one.deadline:
                one.future.set_result({"confirmed": False, "generation": self.generation})
            else:
                with self._lock:
                    self._waiters.append(one)
