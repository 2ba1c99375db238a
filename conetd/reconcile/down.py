"""How containers go down: commit the wish, close the filter, answer; the links follow through the reaper."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from conetd.errors import ConetError
from conetd.kernel.namespaces import NetNS
from conetd.model import JSON, Attachment
from conetd.plan import Plan
from conetd.reconcile.core import Core, attachment_context, attachment_plan, is_planned
from conetd.reconcile.state import LiveNetwork, attachment_value
from conetd.store import AttachmentRecord, containers

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Leaving:
    """One attachment on its way out of the kernel."""

    live: LiveNetwork
    record: AttachmentRecord
    value: Attachment

    def plan(self, core: Core) -> Plan:
        """What has to go; the policy does not matter for that."""
        return attachment_plan(self.live, self.value, core.networks.policy(self.live, {}))


@dataclass(slots=True)
class DownJob:
    """One `down`."""

    handle: str
    started: float = field(default_factory=time.monotonic)
    leaving: list[Leaving] = field(default_factory=list)


def bring_down(core: Core, jobs: list[DownJob]) -> list[JSON | BaseException]:
    """Take down containers that are on networks of planned types only. Runs in the kernel lane."""
    decide(core, jobs)
    failures = close(core, [one for job in jobs for one in job.leaving])
    return [_result(job, failures) for job in jobs]


def bring_down_mixed(core: Core, job: DownJob) -> JSON:
    """Take down a container that is on a network of a foreign type, too. Runs in a thread of its own."""
    decide(core, [job])
    failures = core.on_lane(close, core, [one for one in job.leaving if is_planned(one.live)])
    for one in job.leaving:
        if not is_planned(one.live):
            failures |= detach_foreign(core, one, None)
    result = _result(job, failures)
    if isinstance(result, BaseException):
        raise result
    return result


def take_down(core: Core, handles: Sequence[str]) -> None:
    """Take containers down and wait until nothing of them is left. Raises the first failure."""
    jobs = [DownJob(handle) for handle in handles]
    decide(core, jobs)
    leaving = [one for job in jobs for one in job.leaving]
    failures = core.on_lane(close, core, [one for one in leaving if is_planned(one.live)])
    for one in leaving:
        if not is_planned(one.live):
            failures |= detach_foreign(core, one, None)
    if failures:
        raise next(iter(failures.values()))
    for handle in handles:
        core.reaper.finish(handle)


def decide(core: Core, jobs: Sequence[DownJob]) -> None:
    """Commit for all jobs that their attachments go, in one durable transaction. What is down already stays so."""
    db = core.database.reader()
    for job in jobs:
        job.leaving = [leaving_of(core, record) for record in containers.attachments_of(db, job.handle)]

    def write_all(db: sqlite3.Connection) -> None:
        for job in jobs:
            for one in job.leaving:
                containers.leave(db, one.record.handle, one.record.network)
            containers.end_life(db, job.handle)
            containers.delete_if_unwanted(db, job.handle)

    if any(containers.container(db, job.handle) is not None for job in jobs):
        core.database.write(write_all)
    for job in jobs:
        core.watch.forget(job.handle)


def leaving_of(core: Core, record: AttachmentRecord) -> Leaving:
    """The attachment as something that has to go, with the host ports it still holds."""
    live = core.networks.get(record.network)
    ports = containers.host_ports(core.database.reader(), record.handle, record.network)
    return Leaving(live, record, attachment_value(record, ports, {}))


def close(core: Core, leaving: Sequence[Leaving]) -> dict[tuple[str, str], ConetError]:
    """Make sure no packet of these attachments passes, give their host ports back and hand them to the reaper.

    Runs in the kernel lane. Returns what failed by (handle, network); that is tried again by the patrol.
    """
    if not leaving:
        return {}
    failures: dict[tuple[str, str], ConetError] = {}
    plans = [one.plan(core) for one in leaving]
    for one, plan, error in zip(leaving, plans, core.kernel.close_many(plans), strict=True):
        if error is not None:
            failures[one.record.handle, one.record.network] = error
            note_failure(core, one.record, error)
        else:
            _closed(core, one, plan)
    return failures


def detach_foreign(core: Core, one: Leaving, netns: NetNS | None) -> dict[tuple[str, str], ConetError]:
    """Have a foreign driver detach. Returns the failure by (handle, network), if any."""
    policy = core.networks.policy(one.live, {})
    ctx = attachment_context(core, one.live, one.value, policy, netns)
    try:
        core.ask(one.live.loaded, "detach", lambda: one.live.loaded.driver.detach(ctx))
    except ConetError as err:
        note_failure(core, one.record, err)
        return {(one.record.handle, one.record.network): err}
    _closed(core, one, Plan())
    return {}


def _closed(core: Core, one: Leaving, plan: Plan) -> None:
    key = one.record.handle, one.record.network
    core.ports.keep_only(*key, ())
    core.reaper.add(one.record, plan)
    core.problems.pop(key, None)
    core.expected.pop(key, None)
    core.tell_addresses(one.record.network)


def discard(
    core: Core, handle: str, attachments: Sequence[tuple[AttachmentRecord, Attachment]], *, whole: bool = True
) -> list[ConetError]:
    """Take back attachments that never came to life, at once and wholly.

    With `whole` the container's life ends, too. What fails stays in the store as leaving, for the patrol.
    """

    def write(db: sqlite3.Connection) -> None:
        for record, _ in attachments:
            containers.leave(db, record.handle, record.network)
        if whole:
            containers.end_life(db, handle)
            containers.delete_if_unwanted(db, handle)

    core.database.write(write)
    failures: list[ConetError] = []
    for record, value in attachments:
        one = Leaving(core.networks.get(record.network), record, value)
        if is_planned(one.live):
            failures += core.on_lane(close, core, [one]).values()
        else:
            failures += detach_foreign(core, one, None).values()
    if not failures:
        core.reaper.finish(handle)
    return failures


def note_failure(core: Core, record: AttachmentRecord, error: ConetError) -> None:
    """Keep what went wrong where `GET /status` and the patrol find it."""
    core.problems[record.handle, record.network] = error.message
    try:
        core.database.write(
            lambda db: containers.attachment_failed(db, record.handle, record.network, error.message), durable=False
        )
    except ConetError as err:  # it is known until the next start, which looks for itself
        log.error("a failure could not be recorded", extra={"handle": record.handle, "error": err.message})


def _result(job: DownJob, failures: dict[tuple[str, str], ConetError]) -> JSON | BaseException:
    took_ms = round((time.monotonic() - job.started) * 1000, 1)
    networks = ",".join(one.record.network for one in job.leaving)
    for one in job.leaving:
        error = failures.get((one.record.handle, one.record.network))
        if error is not None:
            log.error("down failed", extra={"handle": job.handle, "network": networks, "error": str(error)})
            return error
    log.info("down", extra={"handle": job.handle, "network": networks, "ms": took_ms})
    return {"handle": job.handle, "state": "down"}
