"""How containers come up: decide and commit the wish, act on the kernel, record; many at a time."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from conetd.driver import PlannedDriver
from conetd.errors import ConetError, Conflict, Invalid, NotFound
from conetd.kernel.namespaces import NetNS, open_namespace
from conetd.kernel.process import ProcessId, alive, identify
from conetd.kernel.work import Work
from conetd.model import JSON
from conetd.plan import EndpointPolicy, Plan, PortMapping
from conetd.reconcile import answers
from conetd.reconcile.core import Core, attachment_context, attachment_work, guard, is_planned
from conetd.reconcile.down import discard, take_down
from conetd.reconcile.joins import choose_joins
from conetd.reconcile.wishes import Garden, Wish, give_back, new_wishes, standing_wishes, write_wishes
from conetd.store import ContainerRecord, Life, containers

log = logging.getLogger(__name__)


@dataclass(slots=True)
class UpJob:
    """One `up`, and what has been decided of it so far."""

    handle: str
    pid: int
    properties: Mapping[str, str] = field(default_factory=dict)
    garden: Garden = field(default_factory=Garden)
    started: float = field(default_factory=time.monotonic)
    netns: NetNS | None = None
    container: ContainerRecord = field(init=False)
    wishes: list[Wish] = field(default_factory=list)
    settled: bool = False
    """It was up already, in this very namespace, and nothing is left to do."""

    def close(self) -> None:
        """Let go of the namespace."""
        if self.netns is not None:
            self.netns.close()
            self.netns = None


def bring_up(core: Core, jobs: list[UpJob]) -> list[JSON | BaseException]:
    """Bring up containers that join networks of planned types only. Runs in the kernel lane."""
    errors: dict[int, BaseException] = {}
    for job in jobs:
        try:
            prepare(core, job)
        except BaseException as err:
            errors[id(job)] = err
    ready = [job for job in jobs if id(job) not in errors and not job.settled]
    for job, error in zip(ready, commit(core, ready), strict=True):
        if error is not None:
            errors[id(job)] = error
    acting = [job for job in ready if id(job) not in errors]
    for job, error in zip(acting, act(core, acting), strict=True):
        if error is not None:
            errors[id(job)] = undo(core, job, error)
    done = [job for job in acting if id(job) not in errors]
    finish(core, done)
    for job in done:
        core.afterwards(partial(_log_up, job, time.monotonic()))
    results: list[JSON | BaseException] = []
    for job in jobs:
        job.close()
        results.append(errors[id(job)] if id(job) in errors else answer(core, job))
    return results


def bring_up_mixed(core: Core, job: UpJob) -> JSON:
    """Bring up a container that joins a network of a foreign type, too. Runs in a thread of its own."""
    try:
        prepare(core, job)
        if not job.settled:
            [error] = commit(core, [job])
            if error is None:
                [error] = core.on_lane(act, core, [job])
            if error is None:
                error = attach_foreign(core, job)
            if error is not None:
                raise undo(core, job, error)
            core.on_lane(finish, core, [job])
            _log_up(job, time.monotonic())
        return answer(core, job)
    finally:
        job.close()


def prepare(core: Core, job: UpJob) -> None:
    """Decide everything about the job: networks, names, leases, ports, policies. After an error it holds nothing."""
    db = core.database.reader()
    try:
        job.netns = open_namespace(job.pid)
        process = identify(job.pid)
    except NotFound as err:  # the body is wrong, not the path
        raise Invalid(err.message, fields={"pid": err.message}) from err
    life = Life(process.pid, process.start_time, job.netns.inode, core.boot_id)
    container = containers.container(db, job.handle) or ContainerRecord(job.handle)
    if container.life is not None and not _same_life(core, job.handle, container.life, life):
        take_down(core, [job.handle])
        container = containers.container(db, job.handle) or ContainerRecord(job.handle)
    standing = containers.attachments_of(db, job.handle)
    if any(record.leaving for record in standing):
        core.reaper.finish(job.handle)
        standing = containers.attachments_of(db, job.handle)
        if any(record.leaving for record in standing) and container.life is None:
            take_down(core, [job.handle])  # an earlier down failed: what it left must not become part of this life
            standing = containers.attachments_of(db, job.handle)
    if container.life is not None:
        job.container = replace(container, life=life)
        job.wishes = standing_wishes(core, job.container)
        job.settled = all(w.record.applied_rev == w.record.rev and w.record.error is None for w in job.wishes)
        return
    job.container = replace(container, life=life, properties=dict(job.properties))
    joins = choose_joins(container, job.properties, core.settings.default_attach_to)
    try:
        job.wishes = new_wishes(core, db, job.container, joins, (), garden=job.garden)
    except NotFound as err:
        raise Invalid(f'container "{job.handle}" cannot be brought up: {err.message}') from err


def open_for(container: ContainerRecord, wishes: list[Wish]) -> UpJob:
    """A job that completes attachments of a container that is up. Raises Invalid when its process is gone."""
    assert container.life is not None
    job = UpJob(container.handle, container.life.pid)
    job.netns = open_namespace(container.life.pid)
    job.container = container
    job.wishes = wishes
    return job


def _same_life(core: Core, handle: str, old: Life, new: Life) -> bool:
    """Whether an up of a container that is up means the same namespace. Raises Conflict if the old one lives on."""
    if old.boot_id != core.boot_id:
        return False
    if old.netns == new.netns and (old.pid == new.pid) == (old.start_time == new.start_time):
        return True
    if alive(ProcessId(old.pid, old.start_time)):
        raise Conflict(
            f'container "{handle}" is up in another network namespace, that of process {old.pid}, which still lives'
        )
    return False


def commit(core: Core, jobs: Sequence[UpJob]) -> list[BaseException | None]:
    """Commit the wishes of all jobs in one durable transaction; a job whose wish is refused fails alone."""
    if not jobs:
        return []

    def write_all(db: sqlite3.Connection) -> None:
        for job in jobs:
            _write(db, job)

    try:
        core.database.write(write_all)
    except (sqlite3.IntegrityError, ConetError) as err:
        if len(jobs) > 1:
            return [commit(core, [job])[0] for job in jobs]
        for wish in jobs[0].wishes:
            give_back(core, wish)
        if isinstance(err, sqlite3.IntegrityError):
            if err.sqlite_errorname == "SQLITE_CONSTRAINT_FOREIGNKEY":
                return [Conflict(f'a network that container "{jobs[0].handle}" joins was deleted meanwhile')]
            return [Conflict(f'what container "{jobs[0].handle}" was to get is held by another: {err}')]
        return [err]
    return [None] * len(jobs)


def _write(db: sqlite3.Connection, job: UpJob) -> None:
    containers.put_container(db, job.container)
    write_wishes(db, job.wishes)
    if job.garden.placed is not None:
        network, document = job.garden.placed
        containers.put_policy(db, job.handle, network, "garden", document)


def act(core: Core, jobs: Sequence[UpJob]) -> list[ConetError | None]:
    """Make the planned attachments of all jobs real; a job's first error, or None. Runs in the kernel lane."""
    works: list[Work] = []
    owners: list[int] = []
    errors: list[ConetError | None] = [None] * len(jobs)
    for number, job in enumerate(jobs):
        try:
            made = [_plan(wish, job.netns) for wish in job.wishes if is_planned(wish.live)]
        except ConetError as err:
            errors[number] = err
            continue
        works += made
        owners += [number] * len(made)
    for number, error in zip(owners, core.kernel.ensure_many(works), strict=True):
        errors[number] = errors[number] or error
    for number, job in enumerate(jobs):
        if errors[number] is None:
            errors[number] = _describe(core, job)
    return errors


def _plan(wish: Wish, netns: NetNS | None) -> Work:
    work = attachment_work(wish.live, wish.value, wish.policy, netns)
    wish.links = tuple(link.name for link in work.plan.links)
    wish.mappings = published(work.plan)
    return work


def published(plan: Plan) -> tuple[PortMapping, ...]:
    """The port mappings a plan asks for."""
    return tuple(port for one in plan.filter if isinstance(one, EndpointPolicy) for port in one.ports)


def _describe(core: Core, job: UpJob) -> ConetError | None:
    """Ask planned drivers what the client is told, and end flows to the published ports that went elsewhere."""
    try:
        for wish in job.wishes:
            if is_planned(wish.live):
                wish.record = replace(wish.record, answer=_told(wish))
                core.flows.end_others(wish.mappings)
    except ConetError as err:
        return err
    return None


def _told(wish: Wish) -> JSON:
    driver = wish.live.loaded.driver
    assert isinstance(driver, PlannedDriver)
    return guard(wish.live.loaded, "describe", lambda: driver.describe(wish.live.network, wish.value))


def attach_foreign(core: Core, job: UpJob) -> ConetError | None:
    """Have the foreign drivers attach, one after the other; the first error, or None."""
    for wish in job.wishes:
        if is_planned(wish.live):
            continue
        driver = wish.live.loaded.driver
        ctx = attachment_context(core, wish.live, wish.value, wish.policy, job.netns)
        try:
            told = core.ask(wish.live.loaded, "attach", partial(driver.attach, ctx))
        except ConetError as err:
            return err
        wish.record = replace(wish.record, answer=told)
    return None


def finish(core: Core, jobs: Sequence[UpJob]) -> None:
    """Record that the kernel holds what was wanted, and watch the processes. Need not survive a power cut."""
    done = [
        (wish.record.rev, wish.record.answer, wish.record.handle, wish.record.network)
        for job in jobs
        for wish in job.wishes
    ]
    if done:
        core.database.write(lambda db: containers.attachments_applied(db, done), durable=False)
    for job in jobs:
        for wish in job.wishes:
            wish.record = replace(wish.record, applied_rev=wish.record.rev, error=None)
            core.problems.pop((job.handle, wish.record.network), None)
            core.expected[job.handle, wish.record.network] = wish.links
            core.tell_addresses(wish.record.network)
        core.afterwards(partial(_watch, core, job))


def _watch(core: Core, job: UpJob) -> None:
    life = job.container.life
    assert life is not None
    core.watch.watch(job.handle, ProcessId(life.pid, life.start_time))


def _log_up(job: UpJob, ready: float) -> None:
    took_ms = round((ready - job.started) * 1000, 1)
    networks = ",".join(wish.record.network for wish in job.wishes)
    log.info("up", extra={"handle": job.handle, "network": networks, "ms": took_ms})


def undo(core: Core, job: UpJob, error: BaseException) -> BaseException:
    """Take back what a failed up made, its lease and ports included. Returns the error to answer."""
    log.error("up failed", extra={"handle": job.handle, "error": str(error)})
    failures = discard(core, job.handle, [(wish.record, wish.value) for wish in job.wishes])
    for failure in failures:
        log.error("undoing an up failed, it will be retried", extra={"handle": job.handle, "error": str(failure)})
    return error


def answer(core: Core, job: UpJob) -> JSON:
    """What the hook is told."""
    return answers.up(job.handle, [(wish.record, wish.ports) for wish in job.wishes], core.external_ip)


def is_mixed(core: Core, job: UpJob) -> bool:
    """Whether the job joins, or is on, a network of a foreign type."""
    if not core.foreign:
        return False
    db = core.database.reader()
    standing = containers.attachments_of(db, job.handle)
    names = {record.network for record in standing}
    if not names:
        container = containers.container(db, job.handle)
        try:
            joins = choose_joins(container, job.properties, core.settings.default_attach_to)
        except Invalid:
            return False
        names = {join.network for join in joins}
    return any(name in core.networks and not is_planned(core.networks.get(name)) for name in names)
