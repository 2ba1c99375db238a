"""When to look for busy connections between hosts: while this host sends on many packets."""

from __future__ import annotations

import logging
import threading

from conetd.errors import ConetError
from conetd.kernel.forwarded import forwarded
from conetd.plan import NetworkFilter
from conetd.reconcile.core import Core, is_planned, network_plan

log = logging.getLogger(__name__)
_EVERY_S = 0.5
_MANY = 2000  # packets a round: below that the filter costs less than a hundredth of a processor
_LOOK_S = 0.05
_BUSY = 40  # segments while looking
_PAUSE_MOST = 64  # rounds, after looking in vain


class FastPathKeeper:
    """A thread that puts busy connections on the fast path. It looks only while it is worth it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fast-path", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round at hand."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        before = forwarded()
        pause = wait = 0
        said = ""
        while not self._stop.wait(_EVERY_S):
            now = forwarded()
            many, before = now - before >= _MANY, now
            if not many:
                pause = wait = 0
                continue
            if wait:
                wait -= 1
                continue
            taken = 0
            try:
                taken = self._round()
            except ConetError as err:
                if str(err) != said:
                    said = str(err)
                    log.error("busy connections stay off the fast path", extra={"error": said})
            except Exception:  # one that breaks must not end the rounds
                log.exception("busy connections stay off the fast path")
            pause = 0 if taken else min(2 * pause + 1, _PAUSE_MOST)
            wait = pause

    def _round(self) -> int:
        core = self._core
        if not core.on_lane(_look, core):
            return 0
        self._stop.wait(_LOOK_S)
        taken: int = core.on_lane(_take_up, core)
        if taken:
            log.debug("on the fast path", extra={"directions": taken})
        return taken


def _look(core: Core) -> bool:
    assert core.busy is not None
    return core.busy.look(
        one.tunnel.interface
        for live in core.networks.all()
        if is_planned(live)
        for one in network_plan(live).filter
        if isinstance(one, NetworkFilter) and one.tunnel is not None
    )


def _take_up(core: Core) -> int:
    assert core.busy is not None
    return core.busy.take_up(_BUSY)
