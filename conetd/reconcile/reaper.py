"""How what is closed already leaves the kernel for good: links in groups, flows, then the rows and their claims."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conetd.errors import ConetError, Conflict
from conetd.model import IPAddress
from conetd.plan import Endpoint, Plan, Veth
from conetd.reconcile.state import Claims
from conetd.store import AttachmentRecord, Database, containers

log = logging.getLogger(__name__)
GATHER_S = 0.05  # a delete costs an RCU wait of 16-20 ms that a group shares, so wait a moment for company
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of an attachment that is closed: its links, its addresses, and its row."""

    record: AttachmentRecord
    plan: Plan

    @property
    def links(self) -> list[str]:
        """The links in the host namespace."""
        return [link.name for link in self.plan.links if isinstance(link, Veth)]

    @property
    def addresses(self) -> list[IPAddress]:
        """The addresses the container spoke from."""
        return [address for one in self.plan.filter if isinstance(one, Endpoint) for address in one.addresses]


@dataclass(frozen=True, slots=True)
class Tools:
    """What the reaper does its work with; each is used by one thread at a time."""

    reap_links: Callable[[Sequence[str]], None]
    forget_flows: Callable[[Sequence[IPAddress]], None]
    close: Callable[[], None]


class Reaper:
    """A thread that removes what attachments left behind and then lets their claims go."""

    def __init__(self, database: Database, claims: Claims, open_tools: Callable[[], Tools]) -> None:
        self._database = database
        self._claims = claims
        self._open_tools = open_tools
        self._tools: Tools | None = None
        self._lock = threading.Lock()  # guards _pending, briefly
        self._pending: dict[tuple[str, str], Remains] = {}
        self._working = threading.RLock()  # held while links are removed, so that no link is removed by name too late
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the group at hand and end. What is pending stays in the store, for the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._working:
            if self._tools is not None:
                self._tools.close()
                self._tools = None

    def add(self, record: AttachmentRecord, plan: Plan) -> None:
        """Remove what is left of the attachment, soon."""
        with self._lock:
            self._pending[record.handle, record.network] = Remains(record, plan)
        self._wake.set()

    def finish(self, handle: str) -> None:
        """Remove what is left of the container's attachments now. Raises KernelError when that fails.

        When this returns, its names and addresses are free.
        """
        with self._working:
            with self._lock:
                mine = [key for key in self._pending if key[0] == handle]
                remains = [self._pending.pop(key) for key in mine]
            self._remove(remains)

    @property
    def pending(self) -> int:
        """How many attachments are still to be removed."""
        return len(self._pending)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._stop.wait(GATHER_S)
            self._wake.clear()
            if self._stop.is_set():
                return
            with self._working:
                with self._lock:
                    remains = list(self._pending.values())
                    self._pending.clear()
                try:
                    self._remove(remains)
                except ConetError as err:
                    log.error("removing links failed, it will be retried", extra={"error": str(err)})
                    self._stop.wait(RETRY_S)
                    self._wake.set()

    def _remove(self, remains: Sequence[Remains]) -> None:
        """Remove all of it, or put it back and raise."""
        # A down that was repeated meanwhile adds what is gone by now, or has come up anew.
        remains = [one for one in remains if self._is_leaving(one.record)]
        if not remains:
            return
        try:
            if self._tools is None:
                self._tools = self._open_tools()
            self._tools.reap_links([link for one in remains for link in one.links])
            self._tools.forget_flows([address for one in remains for address in one.addresses])
        except BaseException:
            with self._lock:
                for one in remains:
                    self._pending.setdefault((one.record.handle, one.record.network), one)
            raise

        def write(db: sqlite3.Connection) -> None:
            for one in remains:
                containers.delete_attachment(db, one.record.handle, one.record.network)
                containers.delete_if_unwanted(db, one.record.handle)
                # Before others see that the row is gone: the next life of the handle may claim the same at once.
                self._claims.give_back(one.record.network, one.record.handle, one.record.lease.claims)

        try:
            self._database.write(write, durable=False)
        except BaseException:
            for one in remains:
                with contextlib.suppress(Conflict):  # whoever was that quick is refused by the store
                    self._claims.take(one.record.network, one.record.handle, one.record.lease.claims)
            raise

    def _is_leaving(self, record: AttachmentRecord) -> bool:
        rows = containers.attachments_of(self._database.reader(), record.handle)
        return any(row.leaving and (row.network, row.rev) == (record.network, record.rev) for row in rows)
