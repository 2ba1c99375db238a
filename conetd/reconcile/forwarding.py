"""Keeping the host forwarding where containers need it, with every sysctl noted before it changes."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Sequence

from conetd.kernel import forwarding
from conetd.kernel.forwarding import SysctlChange
from conetd.reconcile.core import Core, is_planned, network_plan
from conetd.store import networks

log = logging.getLogger(__name__)


def adjust_forwarding(core: Core) -> None:
    """Switch forwarding on where the networks need it, and back when none does. Runs in the kernel lane.

    The host ends of attachments are no uplinks; where one is routed to, its driver's plan switches forwarding on.
    """
    versions: set[int] = set()
    ours: set[str] = set()
    for live in core.networks.all():
        if is_planned(live):
            plan = network_plan(live)
            versions |= plan.forward
            ours |= {link.name for link in plan.links}
    ends = {name for links in core.expected.values() for name in links}
    recorded = _recorded(core)
    wanted = forwarding.plan_forwarding(versions, ours)
    changes = [change for change in wanted if change.path.split("/")[2] not in ends]
    if changes:
        _make(core, changes)
        recorded = _recorded(core)
    done_with = [] if versions else recorded
    if done_with:
        _restore(core, done_with)
        recorded = []
    _tell_filter(core, recorded, versions, ours | ends)


def remember_opened(core: Core) -> None:
    """Tell the filter before its first sync which uplinks conetd opened, so that they are not open for a moment."""
    links = {link.name for live in core.networks.all() if is_planned(live) for link in network_plan(live).links}
    _tell_filter(core, _recorded(core), (4, 6), links)


def _tell_filter(
    core: Core, recorded: Sequence[SysctlChange], versions: Collection[int], ours: Collection[str]
) -> None:
    for version in (4, 6):
        opened = forwarding.opened(recorded, version, ours) if version in versions else frozenset()
        core.kernel.filter.set_opened(version, sorted(opened))


def _recorded(core: Core) -> list[SysctlChange]:
    return [SysctlChange(path, old, new) for path, (old, new) in networks.sysctls(core.database.reader()).items()]


def _make(core: Core, changes: Sequence[SysctlChange]) -> None:
    def write(db: sqlite3.Connection) -> None:
        for change in changes:
            networks.put_sysctl(db, change.path, change.old, change.new)

    core.database.write(write)
    forwarding.apply(changes)
    for change in changes:
        log.info("sysctl", extra={"path": change.path, "old": change.old, "new": change.new})


def _restore(core: Core, changes: Sequence[SysctlChange]) -> None:
    forwarding.restore(changes)
    for change in changes:
        log.info("sysctl restored", extra={"path": change.path, "value": change.old})

    def write(db: sqlite3.Connection) -> None:
        for change in changes:
            networks.delete_sysctl(db, change.path)

    core.database.write(write)
