"""How a start finds out what is left of the last run, and makes the kernel match the store again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from conetd.errors import ConetError
from conetd.kernel.process import ProcessId
from conetd.plan import FilterObject
from conetd.reconcile.core import (
    Core,
    attachment_plan,
    end_forbidden,
    is_planned,
    subnets_by_network,
    whole_network_plan,
)
from conetd.reconcile.down import DownJob, bring_down, close, leaving_of, note_failure
from conetd.reconcile.forwarding import adjust_forwarding, remember_opened
from conetd.reconcile.identities import know_asks
from conetd.reconcile.lanes import GROUP_MOST
from conetd.reconcile.namespace import lives
from conetd.reconcile.networks import ensure_network
from conetd.reconcile.state import LiveNetwork, is_clustered
from conetd.reconcile.up import UpJob, act, finish, open_for
from conetd.reconcile.wishes import Wish, standing_wishes
from conetd.store import ContainerRecord, cluster, containers

log = logging.getLogger(__name__)


def recover(core: Core) -> None:
    """Bring kernel and store together after a start, as far as planned types go. Runs in the kernel lane.

    What cannot be mended is noted as a problem, for `GET /status` and the patrol; it keeps nothing else from starting.
    """
    started = time.monotonic()
    _know_clusters(core)
    _remove_replaced(core)
    records = [one for one in containers.containers(core.database.reader()) if one.life is not None]
    living = [one for one in records if lives(core.boot_id, one)]
    dead = [one for one in records if one not in living]
    _hold_ports(core, living)
    wishes = _wishes(core, living)
    remember_opened(core)
    drifts = core.kernel.filter.sync(wanted_filter(core, [one for some in wishes.values() for one in some]))
    for drift in drifts[:20]:
        log.info("filter repaired", extra={"drift": str(drift)})
    # A network's config may have been changed by the settings while its containers stayed.
    changed = [one for some in wishes.values() for one in some if one.live.record.rev != one.live.record.applied_rev]
    end_forbidden(core, [(one.live, one.value.key) for one in changed if is_planned(one.live)])
    for live in core.networks.all():
        if is_planned(live):
            _ensure(core, live)
    _close_leaving(core)
    planned_dead = [DownJob(one.handle) for one in dead if _only_planned(core, one)]
    for result in bring_down(core, planned_dead):
        if isinstance(result, BaseException):
            log.error("an ended container could not be taken down, it will be retried", extra={"error": str(result)})
    _complete(core, [one for one in living if _only_planned(core, one)], wishes)
    for one in living:
        if not _only_planned(core, one):
            _expect(core, one, wishes)
    remove_orphans(core)
    _remove_unreachable(core)
    adjust_forwarding(core)
    for one in living:
        assert one.life is not None
        core.watch.watch(one.handle, ProcessId(one.life.pid, one.life.start_time))
    took_ms = round((time.monotonic() - started) * 1000, 1)
    log.info("recovered", extra={"up": len(living), "ended": len(dead), "repaired": len(drifts), "ms": took_ms})


def _know_clusters(core: Core) -> None:
    """Have what the store knows of other hosts' policies at hand, before any attachment is planned."""
    db = core.database.reader()
    subnets = subnets_by_network(core)
    for live in core.networks.all():
        if is_clustered(live):
            know_asks(core, live.record.name, cluster.asks(db, live.record.name))
            core.networks.renew(live.record.name, lambda network: replace(network, subnets=subnets))


def wanted_filter(core: Core, wishes: Iterable[Wish]) -> list[FilterObject]:
    """Everything the filter should hold: all planned networks, and these attachments."""
    wanted: list[FilterObject] = []
    for live in core.networks.all():
        if is_planned(live):
            wanted += whole_network_plan(live).filter
    for wish in wishes:
        if is_planned(wish.live):
            wanted += attachment_plan(wish.live, wish.value, wish.policy).filter
    return wanted


def all_wishes(core: Core) -> dict[str, list[Wish]]:
    """Handle to the attachments that should be in force, for every container that is up."""
    records = containers.containers(core.database.reader())
    return _wishes(core, [one for one in records if one.life is not None])


def remove_orphans(core: Core) -> None:
    """Remove links that carry our mark and belong to nothing in the store."""
    wanted = {link.name for live in core.networks.all() if is_planned(live) for link in whole_network_plan(live).links}
    for record in containers.attachments(core.database.reader()):
        one = leaving_of(core, record)
        if is_planned(one.live):
            wanted |= {link.name for link in one.plan(core).links}
    planned_types = any(is_planned(live) for live in core.networks.all()) or not core.foreign
    orphans = {name: alias for name, alias in core.kernel.owned_links().items() if name not in wanted}
    if not orphans or not planned_types:
        return
    for name, alias in orphans.items():
        log.warning("removing a link that belongs to nothing", extra={"link": name, "alias": alias})
    try:
        core.kernel.reap(sorted(orphans))
    except ConetError as err:
        log.error("orphans could not be removed", extra={"error": str(err)})


def _remove_unreachable(core: Core) -> None:
    """Remove what a network that is gone left of the routes that lead nowhere."""
    wanted = {one for live in core.networks.all() if is_planned(live) for one in whole_network_plan(live).unreachable}
    try:
        core.kernel.drop_unreachable(core.kernel.unreachable() - wanted)
    except ConetError as err:
        log.error("unreachable routes could not be removed", extra={"error": err.message})


def _remove_replaced(core: Core) -> None:
    """Those of planned types; a driver of a foreign type must not be waited for in the lane it works through."""
    for live in [one for one in core.replaced if is_planned(one)]:
        core.replaced.remove(live)
        try:
            core.kernel.remove(whole_network_plan(live), None)
        except ConetError as err:
            log.error("a replaced network left something", extra={"network": live.record.name, "error": str(err)})


def _hold_ports(core: Core, living: Sequence[ContainerRecord]) -> None:
    handles = {one.handle for one in living}
    for (handle, network), ports in containers.all_host_ports(core.database.reader()).items():
        if handle not in handles:
            continue
        try:
            core.ports.keep_only(handle, network, [one.port for one in ports])
        except ConetError as err:
            core.problems[handle, network] = err.message
            log.error("a host port was taken meanwhile", extra={"handle": handle, "error": err.message})


def _wishes(core: Core, living: Sequence[ContainerRecord]) -> dict[str, list[Wish]]:
    found = {}
    for one in living:
        try:
            found[one.handle] = standing_wishes(core, one)
        except ConetError as err:
            core.problems[one.handle, ""] = err.message
            log.error("a container's wish cannot be read", extra={"handle": one.handle, "error": err.message})
    return found


def _ensure(core: Core, live: LiveNetwork) -> None:
    try:
        ensure_network(core, live)
    except ConetError as err:
        log.error("network failed", extra={"network": live.record.name, "error": str(err)})


def _close_leaving(core: Core) -> None:
    leaving = [leaving_of(core, record) for record in containers.attachments(core.database.reader()) if record.leaving]
    close(core, [one for one in leaving if is_planned(one.live)])


def _only_planned(core: Core, container: ContainerRecord) -> bool:
    records = containers.attachments_of(core.database.reader(), container.handle)
    return all(is_planned(core.networks.get(record.network)) for record in records)


def _complete(core: Core, living: Sequence[ContainerRecord], wishes: dict[str, list[Wish]]) -> None:
    """Complete what was cut off, and make anew what is missing; what stands as wanted is left alone."""
    there = core.kernel.links()
    jobs = []
    for one in living:
        mine = []
        for wish in wishes.get(one.handle, ()):
            plan = attachment_plan(wish.live, wish.value, wish.policy)
            wish.links = tuple(link.name for link in plan.links)
            if _needs_work(wish, there):
                mine.append(wish)
            else:
                core.expected[one.handle, wish.record.network] = wish.links
        if mine:
            try:
                jobs.append(open_for(one, mine))
            except ConetError as err:
                for wish in mine:
                    note_failure(core, wish.record, err)
    for start in range(0, len(jobs), GROUP_MOST):
        complete(core, jobs[start : start + GROUP_MOST])


def _expect(core: Core, container: ContainerRecord, wishes: dict[str, list[Wish]]) -> None:
    """Have the patrol look after a container that is on a network of a foreign type too, and complete it."""
    for wish in wishes.get(container.handle, ()):
        if is_planned(wish.live):
            plan = attachment_plan(wish.live, wish.value, wish.policy)
            wish.links = tuple(link.name for link in plan.links)
        core.expected[container.handle, wish.record.network] = wish.links


def complete(core: Core, jobs: Sequence[UpJob]) -> None:
    """Make the jobs' attachments as wanted and record it; failures are noted, for the patrol. Runs in the lane."""
    errors = act(core, jobs)
    for job, error in zip(jobs, errors, strict=True):
        if error is not None:
            for wish in job.wishes:
                note_failure(core, wish.record, error)
    finish(core, [job for job, error in zip(jobs, errors, strict=True) if error is None])
    for job in jobs:
        job.close()


def _needs_work(wish: Wish, there: frozenset[str]) -> bool:
    if wish.record.rev != wish.record.applied_rev or wish.record.error is not None:
        return True
    return not there.issuperset(wish.links)
