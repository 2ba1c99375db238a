"""How the daemon is put together: settings, log, sockets, service and signals, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from conetd import __version__, log, ports, sdnotify
from conetd.settings import DEFAULT_GROUP, PortPool, Settings

if TYPE_CHECKING:
    from conetd.api.sockets import ListeningSocket
    from conetd.service import Service

_LOG = logging.getLogger(__name__)
_READERS = 4  # threads for reads: enough that one slow look at the disk does not hold up the next
_STOP_MARGIN_S = 5.0
# After so long Python code on another thread hands the interpreter over. With the default of 5 ms a request waits up to
# that long at each turn of the loop while the kernel lane is busy; at 1 ms the slowest answers come a third sooner
_SWITCH_INTERVAL_S = 0.001
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def run(settings: Settings, *, debug: bool = False) -> int:
    """Serve until SIGTERM or SIGINT, then finish what runs and return 0. All container networking stays in place.

    Raises ConetError when the start is not possible.
    """
    started = time.monotonic()
    log.setup(settings.log, debug=debug)
    # Imports stand where they are first needed: the sockets listen before the half second that the rest takes.
    from conetd.api import sockets

    _warn_of_overlap(settings.port_pool)
    with contextlib.ExitStack() as stack:
        group = sockets.group_id(settings.socket_group, DEFAULT_GROUP)
        # Whoever connects from here on is answered once the rest of the start is through: clients wait, none fails.
        public = stack.enter_context(
            contextlib.closing(sockets.ListeningSocket(settings.public_socket, mode=0o660, gid=group))
        )
        private = stack.enter_context(contextlib.closing(sockets.ListeningSocket(settings.private_socket, mode=0o600)))
        from conetd.kernel.process import raise_file_limit
        from conetd.service import Service

        raise_file_limit()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        service = Service(settings, sdnotify.adopted_fds())
        asyncio.run(_serve(service, settings, public, private, started))
    return 0


async def _serve(
    service: Service, settings: Settings, public: ListeningSocket, private: ListeningSocket, started: float
) -> None:
    from conetd.api.private import LINE_MAX, private_application
    from conetd.api.public import public_application
    from conetd.api.server import Doors

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    notifier = sdnotify.Notifier()
    doors = Doors(patience_s=settings.driver_timeout + _STOP_MARGIN_S)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as reads:
        recovered = asyncio.wrap_future(service.start())
        recovered.add_done_callback(lambda done: stopping.set() if done.exception() else None)
        try:
            await doors.open(public_application(service, reads), public)
            await doors.open(private_application(service, reads), private, LINE_MAX)
            # What was imported and set up lives as long as the process: no collection need walk over it.
            gc.freeze()
            # A long policy is tens of thousands of objects that live on; to walk over all others for each few hundred
            # of them took longer than to read it.
            gc.set_threshold(20_000, 20, 20)
            notifier.send("READY=1")
            _LOG.info("serving", extra={"version": __version__, "ms": round((time.monotonic() - started) * 1000)})
            async with _watchdog(notifier):
                await stopping.wait()
            if recovered.done() and recovered.exception() is not None:
                await recovered  # raises why this host cannot be worked on
            _LOG.info("stopping")
            notifier.send("STOPPING=1")
        finally:
            await doors.close()
            await loop.run_in_executor(reads, service.stop)
    _LOG.info("stopped")


@contextlib.asynccontextmanager
async def _watchdog(notifier: sdnotify.Notifier) -> AsyncIterator[None]:
    async def beat(every_s: float) -> None:
        while True:
            notifier.send("WATCHDOG=1")
            await asyncio.sleep(every_s)

    # half the time allowed, as sd_watchdog_enabled(3) advises
    task = None if notifier.watchdog_s is None else asyncio.create_task(beat(notifier.watchdog_s / 2))
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


def _warn_of_overlap(pool: PortPool) -> None:
    try:
        first, last = (int(number) for number in _EPHEMERAL_PORTS.read_text().split())
    except (OSError, ValueError) as err:
        _LOG.warning("could not compare the port pool with the ephemeral ports", extra={"reason": str(err)})
        return
    if ports.meets_ephemeral(ports.PortPool(pool.start, pool.size), first, last):
        _LOG.warning(
            "port_pool overlaps the ports the host's own connections use",
            extra={"port_pool": f"{pool.start}-{pool.start + pool.size - 1}", "ip_local_port_range": f"{first}-{last}"},
        )
