"""What identities come to on this host: known, given to attachments, and in force in the policies that mean them."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from conetd.cluster.keys import Key, Kind
from conetd.driver import PlannedDriver
from conetd.errors import ConetError, Unavailable
from conetd.kernel.work import Work
from conetd.model import JSON, Identity, Labels, Selector, label_set
from conetd.plan import Endpoint, Plan
from conetd.reconcile.core import Core, end_forbidden, guard
from conetd.reconcile.down import note_failure
from conetd.reconcile.state import LiveNetwork, attachment_value, is_clustered
from conetd.store import AttachmentRecord, cluster, containers, encode

log = logging.getLogger(__name__)

Wanted = tuple[Labels, str | None]
"""Which identity a container should have: a label set, and its handle if some policy names that."""


def know_asks(core: Core, name: str, asks: Mapping[str, Collection[Selector]]) -> None:
    """Know which containers of a network the policies of all hosts name, and whether any are sent to by name."""
    selectors = [one for some in asks.values() for one in some]
    core.named[name] = frozenset(one.handle for one in selectors if one.handle is not None)
    (core.sent_to.add if any(one.outbound for one in selectors) else core.sent_to.discard)(name)


def wanted_identity(core: Core, name: str, handle: str, labels: Mapping[str, str]) -> Wanted:
    """Which identity a container should have on a network."""
    return label_set(labels), handle if handle in core.named.get(name, ()) else None


def identity_number(core: Core, live: LiveNetwork, handle: str, labels: Mapping[str, str]) -> int:
    """The number a container has on the network; 0 where there are no identities. Raises Unavailable."""
    if not is_clustered(live):
        return 0
    name = live.record.name
    identities = core.networks.get(name).network.identities
    # One of its own may come later: until then it is one of its label set, which is what most policies go by.
    number = identities.number(*wanted_identity(core, name, handle, labels)) or identities.number(label_set(labels))
    if not number:
        raise Unavailable(
            f'container "{handle}" has no identity on network "{name}" yet: its label set is new, and whoever gives '
            "numbers to new ones cannot be asked now"
        )
    return number


def missing_identities(
    core: Core, handle: str, labels: Mapping[str, str], networks: Iterable[str]
) -> list[tuple[LiveNetwork, Wanted]]:
    """The identities that a container needs on these networks and that nobody has decided on yet."""
    found = []
    for name in networks:
        if name not in core.networks or not is_clustered(core.networks.get(name)):
            continue
        live = core.networks.get(name)
        wanted = wanted_identity(core, name, handle, labels)
        if not live.network.identities.number(*wanted):
            found.append((live, wanted))
    return found


def decide_identities(core: Core, missing: Iterable[tuple[LiveNetwork, Wanted]]) -> None:
    """Have missing identities decided on and known here. May wait; not in the kernel lane. Raises Unavailable."""
    for live, (labels, handle) in missing:
        try:
            core.cluster.allocate(core, live, labels, handle)
        except Unavailable:
            if handle is None or not live.network.identities.number(labels):
                raise  # else it is one of its label set meanwhile


def change_identities(core: Core, name: str, put: Sequence[Identity], drop: Sequence[int]) -> None:
    """Know identities, and forget others; the policies that mean them follow. Runs in the kernel lane."""
    if name not in core.networks:
        return
    before = core.networks.get(name).network.identities
    fresh = [one for one in put if _differs(before.by_number.get(one.number), one)]
    gone = [number for number in drop if number in before.by_number]
    if not (fresh or gone):
        return

    def write(db: sqlite3.Connection) -> None:
        for number in gone:
            cluster.delete_identity(db, name, number)
        for one in fresh:
            cluster.put_identity(db, name, one)

    core.database.write(write)
    _take_marks(core, name, {*gone, *(one.number for one in fresh if one.number in before.by_number)}, fresh, gone)
    db = core.database.reader()
    fresh = [replace(one, addresses=cluster.addresses_of(db, name, one.number)) for one in fresh]
    _renew(core, name, fresh, gone)


def _take_marks(core: Core, name: str, numbers: set[int], put: Sequence[Identity], drop: Sequence[int]) -> None:
    """Before numbers mean something else, see that no container here speaks with them that is not meant."""
    if not numbers:
        return
    live = core.networks.get(name)
    after = live.network.identities.changed(put, drop)
    db = core.database.reader()
    changed: list[AttachmentRecord] = []
    endpoints: list[Endpoint] = []
    for record in containers.attachments_on(db, name):
        container = containers.container(db, record.handle)
        if record.leaving or record.identity not in numbers or container is None:
            continue
        number = after.number(*wanted_identity(core, name, record.handle, container.labels))
        if number == record.identity:
            continue
        changed.append(replace(record, identity=number))
        held = core.kernel.filter.held("Endpoint", record.key)
        if isinstance(held, Endpoint):
            endpoints.append(replace(held, mark=number))

    def write(db: sqlite3.Connection) -> None:
        for record in changed:
            containers.put_attachment(db, record)

    if changed:
        core.database.write(write)
        core.kernel.ensure(Plan(filter=tuple(endpoints)))
        core.wake_tender()


def change_addresses(core: Core, name: str, host: str, addresses: Mapping[int, Sequence[str]]) -> None:
    """Know where a host's containers of some identities can be reached; of this host, have the others told.

    Runs in the kernel lane.
    """
    if name not in core.networks:
        return
    known = cluster.addresses_at(core.database.reader(), name, host)
    changed = {number: some for number, some in addresses.items() if known.get(number, []) != list(some)}
    if not changed:
        return

    def write(db: sqlite3.Connection) -> None:
        for number, some in changed.items():
            cluster.put_addresses(db, name, number, host, some)
        if host == core.cluster.host:
            keys = {number: Key(Kind.ADDRESSES, name, host=host, number=number) for number in changed}
            core.cluster.post(db, {keys[one]: encode(list(some)) if some else None for one, some in changed.items()})

    core.database.write(write)
    renew_addresses(core, name, changed)


def renew_addresses(core: Core, name: str, numbers: Iterable[int]) -> None:
    """Know anew from the store where the containers of these identities can be reached. Runs in the kernel lane."""
    db = core.database.reader()
    by_number = core.networks.get(name).network.identities.by_number
    fresh = [
        replace(by_number[number], addresses=cluster.addresses_of(db, name, number))
        for number in numbers
        if number in by_number
    ]
    _renew(core, name, [one for one in fresh if one != by_number[one.number]], ())


def _differs(before: Identity | None, after: Identity) -> bool:
    return before is None or (before.labels, before.handle) != (after.labels, after.handle)


def _renew(core: Core, name: str, put: Sequence[Identity], drop: Sequence[int]) -> None:
    if not (put or drop):
        return
    before = core.networks.get(name).network.identities
    old = [before.by_number[number] for number in (*drop, *(one.number for one in put)) if number in before.by_number]
    core.networks.renew(name, lambda network: replace(network, identities=before.changed(put, drop)))
    changed = [*old, *put]
    replan(
        core,
        name,
        lambda selectors: any(one.matches(selector) for selector in selectors for one in changed),
        closing=bool(old),
    )


def replan(core: Core, name: str, concerned: Callable[[Sequence[Selector]], bool], *, closing: bool) -> None:
    """Plan the policies of a network's attachments anew as far as their selectors are concerned.

    With `closing`, flows that are forbidden now end. What the kernel refuses is noted, and tried again by the patrol.
    """
    live = core.networks.get(name)
    driver = live.loaded.driver
    assert isinstance(driver, PlannedDriver)
    db = core.database.reader()
    if not _any_concerned(core, live, containers.policy_documents(db, name), concerned):
        return
    own = containers.all_policies(db)
    known = {one.handle: one for one in containers.containers(db)}
    records: list[AttachmentRecord] = []
    plans: list[Plan] = []
    for record in containers.attachments_on(db, name):
        if record.leaving or record.handle not in known or not _in_force(core, record):
            continue
        document = own.get(record.handle, {}).get(name, ("", live.record.default_policy))[1]
        try:
            policy = core.networks.policy(live, document)
            if not concerned(driver.selectors(policy)):
                continue
            ports = containers.host_ports(db, record.handle, name)
            value = attachment_value(record, ports, known[record.handle].labels)
            plan = guard(live.loaded, "plan_policy", partial(driver.plan_policy, live.network, value, policy))
        except ConetError as err:
            note_failure(core, record, err)
            continue
        if any(core.kernel.filter.held(type(one).__name__, one.key) != one for one in plan.filter):
            records.append(record)
            plans.append(plan)
    errors = core.kernel.ensure_many([Work(plan, "", None) for plan in plans])
    for record, error in zip(records, errors, strict=True):
        if error is not None:
            note_failure(core, record, error)
    if closing:
        end_forbidden(core, [(live, one.key) for one, error in zip(records, errors, strict=True) if error is None])


def _any_concerned(
    core: Core, live: LiveNetwork, documents: Sequence[JSON], concerned: Callable[[Sequence[Selector]], bool]
) -> bool:
    for document in (live.record.default_policy, *documents):
        try:
            if concerned(live.loaded.driver.selectors(core.networks.policy(live, document))):
                return True
        except ConetError:
            return True  # which is told where it is planned
    return False


def _in_force(core: Core, record: AttachmentRecord) -> bool:
    # what is still on its way up gets its policy there
    return core.kernel.filter.held("EndpointPolicy", record.key) is not None
