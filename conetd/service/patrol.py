"""The round that is made each second: has somebody changed the kernel, is something left to do, has a process ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial

from conetd.errors import ConetError, NotFound
from conetd.kernel.seen import preload
from conetd.reconcile.core import Core
from conetd.reconcile.forwarding import adjust_forwarding
from conetd.reconcile.namespace import lives
from conetd.reconcile.repair import (
    inspect,
    inspect_network,
    missing_links,
    repair,
    repair_network,
    tend_filter,
    unfinished,
)
from conetd.service.assembly import find_external_ip
from conetd.store import containers, networks

log = logging.getLogger(__name__)
EVERY_S = 1.0
FORWARDING_EVERY = 5  # rounds
PROCESSES_EVERY = 30  # rounds; the watch tells sooner, this is for what it may have missed


Repair = Callable[[Core, str], None]
Submit = Callable[[str, Repair], Future[None]]


class Patrol:
    """A thread that compares what is wanted with what is, and has the difference mended in its turn."""

    def __init__(self, core: Core, submit: Submit, submit_network: Submit) -> None:
        """`submit` runs a repair of a handle when its turn comes, on a thread that may do it; so does `submit_network`
        for a network.
        """
        self._core = core
        self._submit = submit
        self._submit_network = submit_network
        self._going: dict[str, Future[None]] = {}
        self._seen: dict[str, int] = {}
        self._container = self._network = ""  # those looked at last
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="patrol", daemon=True)

    def start(self) -> None:
        """Begin the rounds."""
        if not self._stop.is_set():
            self._thread.start()

    def stop(self) -> None:
        """End after the round at hand."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        preload()  # the lane is not to wait for it when the first round looks closely
        number = 0
        while not self._stop.wait(EVERY_S):
            try:
                self._round(number)
            except ConetError as err:
                log.error("a round failed, it will be made again", extra={"error": str(err)})
            except Exception:  # a round that breaks must not end the rounds
                log.exception("a round failed, it will be made again")
            number += 1

    def _round(self, number: int) -> None:
        core = self._core
        core.on_lane(tend_filter, core)
        gone_networks, gone_handles = core.on_lane(missing_links, core)
        broken = {
            one.name
            for one in networks.networks(core.database.reader())
            if one.rev != one.applied_rev or one.error is not None
        }
        for name in gone_networks | broken:
            self._have(f"network {name}", self._submit_network, name, repair_network)
        for handle in gone_handles | self._stuck() | self._ended(number):
            self._have(f"container {handle}", self._submit, handle, repair)
        if number % FORWARDING_EVERY == 0:
            core.on_lane(adjust_forwarding, core)
            find_external_ip(core)
        self._inspect_next()
        core.rounds += 1

    def _inspect_next(self) -> None:
        """Look closely at one container and one network a round, each in its turn."""
        handles = [handle for handle, _ in sorted(self._core.expected)]
        if handles:
            self._container = next((one for one in handles if one > self._container), handles[0])
            self._have(f"container {self._container}", self._submit, self._container, inspect)
        names = [live.record.name for live in self._core.networks.all()]
        if names:
            self._network = next((one for one in names if one > self._network), names[0])
            self._have(f"network {self._network}", self._submit_network, self._network, inspect_network)

    def _have(self, what: str, submit: Submit, name: str, repair: Repair) -> None:
        """Have something mended, and wait a moment for it: what takes longer, or fails, holds up nothing else."""
        self._going = {key: future for key, future in self._going.items() if not future.done()}
        if what in self._going:
            return
        try:
            future = self._going[what] = submit(name, repair)
        except NotFound:  # a network that was deleted since we looked
            return
        future.add_done_callback(partial(_log_failure, what))
        wait([future], EVERY_S)

    def _stuck(self) -> set[str]:
        """Those that had the same work left a round ago: others are being worked on right now."""
        now = unfinished(self._core.database.reader())
        stuck = {handle for handle, mark in now.items() if self._seen.get(handle) == mark}
        self._seen = now
        return stuck

    def _ended(self, number: int) -> set[str]:
        if number % PROCESSES_EVERY:
            return set()
        records = containers.containers(self._core.database.reader())
        return {one.handle for one in records if one.life is not None and not lives(self._core.boot_id, one)}


def _log_failure(what: str, done: Future[None]) -> None:
    error = done.exception()
    if isinstance(error, ConetError):
        log.error("could not be mended, it will be tried again", extra={"what": what, "error": str(error)})
    elif error is not None:
        log.error("could not be mended, it will be tried again", extra={"what": what}, exc_info=error)
