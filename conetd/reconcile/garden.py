"""How Garden's NetIn and NetOut change the policy of a container that is up: one document, one commit, one transaction.

There is no networking in here: what Garden asks for becomes entries of the policy of the container's first network
whose driver declares the capability `garden`. The first change copies the policy then in force; the copy lasts as long
as the container's life, or until a client puts a policy.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from conetd.errors import ConetError, Conflict, DriverError, Exhausted, Invalid
from conetd.garden.answers import UnknownHandle, net_in_response
from conetd.garden.rules import net_in_entry, net_out_entries
from conetd.garden.wire import NetIn, NetOutRule
from conetd.model import JSON, PROTOCOL_NAMES, TCP, PortRequest
from conetd.ports import overlaps
from conetd.reconcile.core import Core
from conetd.reconcile.policies import Change, apply, commit, new_change, parse, take_back, write_changes
from conetd.reconcile.state import LiveNetwork, has_ipv6, takes_garden
from conetd.store import AttachmentRecord, ContainerRecord, HostPortRecord, containers

log = logging.getLogger(__name__)
_ORIGIN = "garden"


@dataclass(frozen=True, slots=True)
class Target:
    """The attachment whose policy changes, and the document in force for it with where that came from."""

    container: ContainerRecord
    live: LiveNetwork
    record: AttachmentRecord
    document: JSON
    origin: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document that was checked while the lane could do something else, and what it was made of."""

    target: Target
    normalised: JSON
    policy: Any


Edit = Callable[[Target], JSON]
"""The document after the change. Raises Invalid and Conflict."""


def living(core: Core, handle: str) -> ContainerRecord:
    """The container, which for Garden is there while it is up. Raises UnknownHandle."""
    container = containers.container(core.database.reader(), handle)
    if container is None or container.life is None:
        raise UnknownHandle(handle)
    return container


def find(core: Core, handle: str) -> Target:
    """The attachment that Garden's requests are about. Raises UnknownHandle unless the container is up, Invalid when
    it is on no network that can hold what they say.
    """
    container = living(core, handle)
    db = core.database.reader()
    for record in containers.attachments_of(db, handle):
        live = core.networks.get(record.network)
        if record.leaving or not takes_garden(live):
            continue
        default = ("default_policy", live.record.default_policy)
        origin, document = containers.policies_of(db, handle).get(record.network, default)
        return Target(container, live, record, document, origin)
    raise Invalid(f'container "{handle}" is on no network whose driver has the capability garden')


def prepare(core: Core, handle: str, edit: Edit) -> Prepared:
    """Make and check the new document. Changes nothing; may run beside the lane."""
    target = find(core, handle)
    return Prepared(target, *parse(core, target.live, edit(target), ""))


def with_net_in(core: Core, asked: NetIn) -> Edit:
    """Adds a port mapping at the end; one that stands already, of the same two ports, is left as it is."""

    def edit(target: Target) -> JSON:
        entry = net_in_entry(asked)
        if _standing(core, target, asked) is not None:
            return target.document
        return {**target.document, "net_in": [*target.document.get("net_in", ()), entry]}

    return edit


def with_net_out(rules: Sequence[NetOutRule], *, bulk: bool) -> Edit:
    """Adds rules before those that stand."""

    def edit(target: Target) -> JSON:
        ipv6 = has_ipv6(target.record.lease)
        entries = net_out_entries(rules, ipv6=ipv6, path="" if bulk else None)
        return {**target.document, "net_out": [*entries, *target.document.get("net_out", ())]}

    return edit


def net_in(core: Core, handle: str, asked: NetIn, prepared: Prepared, call: str | None) -> JSON:
    """Publish a port; returns host and container port once the kernel holds the mapping.

    `call` names the request for a caller who asks again when its answer got lost: it gets the same answer. Raises
    Conflict naming who holds the port, Exhausted when the pool is empty, and DriverError: then all is as before.
    """
    db = core.database.reader()
    prepared = fresh(core, handle, prepared, with_net_in(core, asked))
    answered = containers.garden_answer(db, handle, call) if call is not None else None
    if answered is not None:
        _make_sure(core, prepared.target)
        return net_in_response(**answered)  # the store sorts an object's names
    standing = _standing(core, prepared.target, asked)
    if standing is not None and prepared.target.origin == _ORIGIN:
        _make_sure(core, prepared.target)
        return net_in_response(standing.port.host_port, standing.port.container_port)

    def answer(change: Change) -> JSON:
        if standing is None and not change.ports:
            who = change.live.loaded
            raise DriverError(f"driver {who.type} ({who.distribution} {who.version}) publishes nothing for net_in")
        port = (standing or change.ports[-1]).port  # the entry that was added is the last
        return net_in_response(port.host_port, port.container_port)

    return _carry_out(core, "net in", prepared, answer, call)


def net_out(core: Core, handle: str, rules: Sequence[NetOutRule], prepared: Prepared, *, bulk: bool) -> None:
    """Let the container send what the rules say; returns once the kernel does. Raises DriverError, and then all is
    as before.
    """
    edit = with_net_out(rules, bulk=bulk)
    prepared = fresh(core, handle, prepared, edit)
    before, after = (one.get("net_out", []) for one in (prepared.target.document, prepared.normalised))
    added = len(after) - len(before)
    if added == 0:
        return
    if prepared.target.origin == _ORIGIN and after[:added] == before[:added]:
        _make_sure(core, prepared.target)
        return
    _carry_out(core, "net out", prepared, lambda change: {}, None)


def _make_sure(core: Core, target: Target) -> None:
    """Have the kernel hold what stands in the store, where an earlier try was cut off. Raises DriverError."""
    if target.record.rev == target.record.applied_rev and target.record.error is None:
        return
    db = core.database.reader()
    change = new_change(core, db, target.container, target.live, target.record, target.document)
    commit(core, [change], lambda db: write_changes(db, [change]))
    for error in apply(core, [change]).values():
        raise error


def fresh(core: Core, handle: str, prepared: Prepared, edit: Edit) -> Prepared:
    """What was prepared, unless the policy has become another since, or the container has gone down.

    In a container's turn the one comes of a new default policy, the other of the recovery at a start.
    """
    was = prepared.target.record
    for now in containers.attachments_of(core.database.reader(), handle):
        if (now.network, now.rev, now.leaving) == (was.network, was.rev, False):
            return prepared
    return prepare(core, handle, edit)


def _standing(core: Core, target: Target, asked: NetIn) -> HostPortRecord | None:
    """The mapping that is asked for, if it stands. Raises Conflict when the container's host port leads elsewhere."""
    if not asked.host_port:
        return None
    wanted = PortRequest(TCP, asked.host_port, asked.container_port or asked.host_port)
    for one in containers.host_ports(core.database.reader(), target.record.handle, target.record.network):
        if one.port.host_ip is None and wanted.container_port == one.port.container_port and overlaps(one.port, wanted):
            return one
        if overlaps(one.port, wanted):
            name = f"{asked.host_port}/{PROTOCOL_NAMES[TCP]}"
            raise Conflict(f'host port {name} is held by container "{target.record.handle}"')
    return None


def _carry_out(core: Core, event: str, prepared: Prepared, answer: Callable[[Change], JSON], call: str | None) -> JSON:
    started = time.monotonic()
    target = prepared.target
    handle, network = target.record.handle, target.record.network
    change = _wish(core, prepared)
    try:
        told = answer(change)
    except BaseException:
        take_back(core, [change])
        raise

    def write(db: sqlite3.Connection) -> None:
        containers.put_policy(db, handle, network, _ORIGIN, prepared.normalised)
        write_changes(db, [change])
        if call is not None:
            containers.put_garden_answer(db, handle, call, told)

    commit(core, [change], write)
    failures = apply(core, [change])
    for error in failures.values():
        _undo(core, target, change.record, call)
        raise error
    took_ms = round((time.monotonic() - started) * 1000, 1)
    log.info(event, extra={"handle": handle, "network": network, **told, "ms": took_ms})
    return told


def _wish(core: Core, prepared: Prepared) -> Change:
    """The change, its ports settled. Errors about ports come as they are: Garden's caller wrote no document."""
    target, db = prepared.target, core.database.reader()
    document, policy = prepared.normalised, prepared.policy
    try:
        return new_change(core, db, target.container, target.live, target.record, document, policy)
    except Exhausted as err:
        raise Exhausted("port pool is exhausted") from err
    except (Conflict, Invalid) as err:
        raise type(err)(next(iter(err.fields.values()), err.message), fields=err.fields) from err


def _undo(core: Core, target: Target, record: AttachmentRecord, call: str | None) -> None:
    """Wish for what was before a change that the kernel refused, so that nothing is left of it and its port is free.

    If the kernel refuses that as well, the patrol goes on trying; the port is free once the old policy holds.
    """
    handle, network = record.handle, record.network
    try:
        back = new_change(core, core.database.reader(), target.container, target.live, record, target.document)

        def write(db: sqlite3.Connection) -> None:
            if target.origin == _ORIGIN:
                containers.put_policy(db, handle, network, _ORIGIN, target.document)
            else:
                containers.delete_policy(db, handle, network, _ORIGIN)
            write_changes(db, [back])
            if call is not None:
                containers.delete_garden_answer(db, handle, call)

        commit(core, [back], write)
        apply(core, [back])
    except ConetError as err:
        log.error("undoing a change failed", extra={"handle": handle, "network": network, "error": err.message})
