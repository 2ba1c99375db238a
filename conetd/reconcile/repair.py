"""How what is not as wanted is found while the daemon runs, and mended: by comparing, never by trusting a list."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from conetd.errors import ConetError
from conetd.kernel.namespaces import NetNS
from conetd.plan import Drift
from conetd.reconcile.core import (
    Core,
    attachment_alias,
    attachment_context,
    attachment_plan,
    is_planned,
    network_alias,
    network_context,
    network_plan,
    waits,
    whole_network_plan,
)
from conetd.reconcile.down import DownJob, bring_down, bring_down_mixed, close, detach_foreign, leaving_of
from conetd.reconcile.namespace import container_netns, lives
from conetd.reconcile.networks import ensure_network
from conetd.reconcile.recover import all_wishes, complete, wanted_filter
from conetd.reconcile.up import attach_foreign, open_for
from conetd.reconcile.wishes import Wish, standing_wishes
from conetd.store import AttachmentRecord, containers

log = logging.getLogger(__name__)
_MANY_HOSTS, _MANY_EVERY = 100, 10  # a network of more hosts is compared in one of so many rounds: it takes a while


def unfinished(db: sqlite3.Connection) -> dict[str, int]:
    """Handle to a number that changes with its wishes, for every container that has something left to do."""
    rows = db.execute(
        "SELECT handle, max(rev) * 2 + max(leaving) FROM attachments"
        " WHERE rev != applied_rev OR error IS NOT NULL OR leaving = 1 GROUP BY handle"
    )
    return dict(rows.fetchall())


def repair(core: Core, handle: str) -> None:
    """Make one container as wanted, if it is not: complete it while its process lives, else take it down.

    Runs in the lane, or elsewhere when a network is of a foreign type. Failures are noted and tried again.
    """
    container = containers.container(core.database.reader(), handle)
    records = containers.attachments_of(core.database.reader(), handle)
    mixed = any(not is_planned(core.networks.get(record.network)) for record in records)
    if container is None:
        return
    if not lives(core.boot_id, container):
        if mixed:
            bring_down_mixed(core, DownJob(handle))
        else:
            core.on_lane(bring_down, core, [DownJob(handle)])
        return
    wishes = [
        one
        for one in standing_wishes(core, container)
        if one.record.rev != one.record.applied_rev
        or one.record.error is not None
        or (handle, one.record.network) in core.problems
    ]
    _close_again(core, [record for record in records if record.leaving])
    if not wishes:
        return
    for wish in wishes:
        core.ports.keep_only(handle, wish.record.network, [one.port for one in wish.ports])
    job = open_for(container, wishes)
    if not mixed:
        core.on_lane(complete, core, [job])
        return
    try:
        error = attach_foreign(core, job)
        if error is not None:
            raise error
        core.on_lane(complete, core, [job])
    finally:
        job.close()


def _close_again(core: Core, records: Sequence[AttachmentRecord]) -> None:
    """Have those that were to leave while the container lives on leave after all."""
    leaving = [leaving_of(core, record) for record in records]
    core.on_lane(close, core, [one for one in leaving if is_planned(one.live)])
    for one in leaving:
        if not is_planned(one.live):
            detach_foreign(core, one, None)


def inspect(core: Core, handle: str) -> None:
    """Compare one container's attachments with the kernel in every detail, and mend what is not as wanted.

    The filter is left out: whether somebody touched it is known each second, and reading it back is dear.
    """
    container = containers.container(core.database.reader(), handle)
    with container_netns(container) as netns:
        if container is None or netns is None:
            return
        for wish in standing_wishes(core, container):
            drifts = _compare(core, wish, netns)
            if drifts:
                core.problems[handle, wish.record.network] = str(drifts[0])
                told = {"handle": handle, "network": wish.record.network, "drift": str(drifts[0])}
                log.warning("not as wanted", extra=told)
    repair(core, handle)


def _compare(core: Core, wish: Wish, netns: NetNS) -> Sequence[Drift]:
    if is_planned(wish.live):
        plan = replace(attachment_plan(wish.live, wish.value, wish.policy), filter=())
        alias = attachment_alias(wish.record.network, wish.record.handle)
        return core.on_lane(core.kernel.diff, plan, netns, alias)
    driver = wish.live.loaded.driver
    ctx = attachment_context(core, wish.live, wish.value, wish.policy, netns)
    return core.ask(wish.live.loaded, "check", lambda: driver.check(ctx))


def inspect_network(core: Core, name: str) -> None:
    """Compare a network of a planned type with the kernel in every detail, and mend what is not as wanted."""
    if name not in core.networks or not is_planned(core.networks.get(name)):
        return
    network = core.networks.get(name).network
    if waits(core.networks.get(name)):
        return  # the cluster has to give it first
    if len(network.members) > _MANY_HOSTS and core.rounds % _MANY_EVERY:
        return
    plan = replace(whole_network_plan(core.networks.get(name)), filter=())
    drifts = core.on_lane(core.kernel.diff, plan, None, network_alias(name))
    if drifts:
        log.warning("not as wanted", extra={"network": name, "drift": str(drifts[0])})
        repair_network(core, name)


def repair_network(core: Core, name: str) -> None:
    """Make a network as wanted again. Failures are noted and tried again."""
    if name not in core.networks:
        return
    before = core.problems.get(("", name))
    try:
        ensure_network(core, core.networks.get(name))
    except ConetError as err:
        if err.message != before:
            log.error("network failed", extra={"network": name, "error": str(err)})


def start_foreign(core: Core, name: str) -> None:
    """What a start owes a network of a foreign type: what the settings replaced goes, and the network is made sure of.

    For planned types `recover` does so. Failures are noted and, as for the network, tried again.
    """
    for old in [one for one in core.replaced if one.record.name == name]:
        core.replaced.remove(old)
        remove = partial(old.loaded.driver.remove_network, network_context(core, old))
        try:
            core.ask(old.loaded, "remove_network", remove)
        except ConetError as err:
            log.error("a replaced network left something", extra={"network": name, "error": str(err)})
    repair_network(core, name)


def tend_filter(core: Core) -> None:
    """If somebody else changed the packet filter, make it hold what it should. Runs in the kernel lane.

    Raises what keeps it from that, which `GET /status` says until it has succeeded.
    """
    if not core.kernel.filter.disturbed():
        core.filter_problem = None
        return
    wanted = wanted_filter(core, [one for some in all_wishes(core).values() for one in some])
    try:
        drifts = core.kernel.filter.sync(wanted)
    except ConetError as err:
        core.filter_problem = err.message
        raise
    core.filter_problem = None
    if drifts:
        log.warning("filter repaired", extra={"drifts": len(drifts), "first": str(drifts[0])})


def missing_links(core: Core) -> tuple[set[str], set[str]]:
    """The networks and the handles whose links somebody removed. Runs in the kernel lane. Raises KernelError."""
    there = core.kernel.links()
    gone_networks = {
        live.record.name
        for live in core.networks.all()
        if is_planned(live) and any(link.name not in there for link in network_plan(live).links)
    }
    gone_handles = set()
    for (handle, network), links in list(core.expected.items()):
        if not there.issuperset(links):
            core.problems[handle, network] = "its link is gone"
            log.warning("a link is gone", extra={"handle": handle, "network": network})
            gone_handles.add(handle)
    if (gone_networks or gone_handles) and core.kernel.filter.fast_path is not None:
        core.kernel.filter.fast_path.clear()  # links that are made again have other numbers
    return gone_networks, gone_handles
