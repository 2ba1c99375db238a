"""How a container's config changes: stored, and while it is up attached and detached live."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from conetd.errors import Conflict, DriverError, Invalid, NotFound
from conetd.model import Attachment
from conetd.reconcile.core import Core, is_planned
from conetd.reconcile.down import close, detach_foreign, discard, leaving_of
from conetd.reconcile.joins import check_unchanged
from conetd.reconcile.namespace import container_netns
from conetd.reconcile.policies import policies_told
from conetd.reconcile.up import UpJob, act, attach_foreign, finish
from conetd.reconcile.wishes import give_back, new_wishes, write_wishes
from conetd.store import AttachmentRecord, ContainerRecord, Join, containers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Config:
    """A container's config as the client PUT it."""

    attach_to: tuple[Join, ...]
    labels: Mapping[str, str]


def configure(core: Core, handle: str, config: Config) -> bool:
    """Store the config; of a container that is up, attach what is new and detach what is gone before returning.

    Returns whether there was no config before. Raises Invalid and Conflict, DriverError when a network could not be
    attached: then config and attachments are as before.
    """
    started = time.monotonic()
    for number, join in enumerate(config.attach_to):
        if join.network not in core.networks:
            path = f"attach_to[{number}]"
            complaint = f'there is no network "{join.network}"'
            raise Invalid(f"config: {path}: {complaint}", fields={path: complaint})
    container = containers.container(core.database.reader(), handle) or ContainerRecord(handle)
    created = container.attach_to is None
    wanted = replace(container, attach_to=config.attach_to, labels=config.labels)
    if container.life is None:
        core.database.write(lambda db: containers.put_container(db, wanted))
    else:
        _change_live(core, wanted)
    took_ms = round((time.monotonic() - started) * 1000, 1)
    networks = ",".join(join.network for join in config.attach_to)
    log.info("configured", extra={"handle": handle, "network": networks, "ms": took_ms})
    return created


def _change_live(core: Core, container: ContainerRecord) -> None:
    assert container.attach_to is not None
    assert container.life is not None
    joins = container.attach_to
    db = core.database.reader()
    if any(record.leaving for record in containers.attachments_of(db, container.handle)):
        core.reaper.finish(container.handle)
    standing = {record.network: record for record in containers.attachments_of(db, container.handle)}
    for number, join in enumerate(joins):
        if join.network in standing:
            check_unchanged(standing[join.network], join, f"attach_to[{number}]")
    kept = [standing[join.network] for join in joins if join.network in standing]
    gone = [record for network, record in standing.items() if network not in {join.network for join in joins}]
    with container_netns(container) as netns:
        if netns is None:
            raise Conflict(f'the process of container "{container.handle}" has ended; its attachments cannot change')
        job = UpJob(container.handle, container.life.pid)
        job.netns = netns
        job.container = container
        job.wishes = new_wishes(core, db, container, joins, kept)

        def write(db: sqlite3.Connection) -> None:
            write_wishes(db, job.wishes)

        try:
            core.database.write(write)
        except BaseException:
            for wish in job.wishes:
                give_back(core, wish)
            raise
        [error] = core.on_lane(act, core, [job])
        error = error or attach_foreign(core, job)
        if error is not None:
            fresh = [(wish.record, wish.value) for wish in job.wishes if wish.new]
            _discard(core, container.handle, fresh)
            _restore(core, kept)
            raise error

        def settle(db: sqlite3.Connection) -> None:
            containers.put_container(db, container)
            for record in gone:
                containers.leave(db, record.handle, record.network)

        leaving = [leaving_of(core, record) for record in gone]
        core.database.write(settle)
        finish(core, [job])
        failures = core.on_lane(close, core, [one for one in leaving if is_planned(one.live)])
        for one in leaving:
            if not is_planned(one.live):
                failures |= detach_foreign(core, one, netns)
        if failures:
            raise DriverError(f"detaching failed, it will be tried again: {next(iter(failures.values())).message}")


def _discard(core: Core, handle: str, fresh: Sequence[tuple[AttachmentRecord, Attachment]]) -> None:
    for failure in discard(core, handle, fresh, whole=False):
        log.error("undoing an attach failed, it will be retried", extra={"handle": handle, "error": str(failure)})


def _restore(core: Core, kept: Sequence[AttachmentRecord]) -> None:
    """Wish for the standing attachments what was wished before; the patrol sees that the kernel follows."""
    records = [replace(record, rev=core.revisions.next()) for record in kept]

    def write(db: sqlite3.Connection) -> None:
        for record in records:
            containers.put_attachment(db, record)

    core.database.write(write)


def forget(core: Core, handle: str) -> None:
    """Delete config and policy of a container. Raises NotFound, Conflict while it is up."""
    db = core.database.reader()
    container = containers.container(db, handle)
    if container is None or not is_known(core, container):
        raise NotFound(f'there is no container "{handle}"')
    if container.life is not None:
        raise Conflict(f'container "{handle}" is up; take it down first')
    if containers.attachments_of(db, handle):
        core.reaper.finish(handle)
    told = policies_told(core, handle, containers.policies_of(db, handle), {})

    def write(db: sqlite3.Connection) -> None:
        containers.delete_container(db, handle)
        core.cluster.post(db, told)

    core.database.write(write)
    log.info("forgotten", extra={"handle": handle})


def is_known(core: Core, container: ContainerRecord) -> bool:
    """Whether a client sees this container: one whose last link is still being removed is gone already."""
    if container.attach_to is not None or container.life is not None:
        return True
    return bool(containers.policies_of(core.database.reader(), container.handle))
