"""How policies change while containers live: check all, commit the wish, one kernel transaction each, end flows."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conetd.cluster.keys import Key, Kind
from conetd.driver import PlannedDriver
from conetd.errors import ConetError, DriverError, Invalid
from conetd.model import JSON, Attachment
from conetd.plan import Endpoint, EndpointPolicy, NetworkFilter, Plan
from conetd.reconcile.core import Core, attachment_context, guard, is_planned
from conetd.reconcile.down import note_failure
from conetd.reconcile.namespace import container_netns
from conetd.reconcile.state import LiveNetwork, attachment_value, is_clustered, parse_policy, shared_definition
from conetd.store import AttachmentRecord, ContainerRecord, HostPortRecord, containers, encode, networks

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Change:
    """The policy of one attachment on its way into the kernel."""

    live: LiveNetwork
    record: AttachmentRecord
    policy: Any
    ports: tuple[HostPortRecord, ...]
    old_ports: tuple[HostPortRecord, ...]
    value: Attachment

    @property
    def key(self) -> tuple[str, str]:
        """Handle and network."""
        return self.record.handle, self.record.network


def check_documents(core: Core, documents: Mapping[str, JSON]) -> dict[str, JSON]:
    """The documents as their drivers' schemas dump them. Raises Invalid with every complaint, under its path."""
    normalised: dict[str, JSON] = {}
    fields: dict[str, str] = {}
    for name, document in documents.items():
        path = f"networks.{name}"
        if name not in core.networks:
            fields[path] = f'there is no network "{name}"'
            continue
        live = core.networks.get(name)
        try:
            normalised[name] = normalise(core, live, document, path)
        except Invalid as err:
            fields |= err.fields or {path: err.message}
    if fields:
        path, complaint = next(iter(fields.items()))
        raise Invalid(f"policy: {path}: {complaint}", fields=fields)
    return normalised


def normalise(core: Core, live: LiveNetwork, document: JSON, path: str) -> JSON:
    """One policy document as its driver's schema dumps it. Raises Invalid with complaints under `path`."""
    return parse(core, live, document, path)[0]


def parse(core: Core, live: LiveNetwork, document: JSON, path: str) -> tuple[JSON, Any]:
    """The same, and what the schema loads it to, for those who go on with it at once."""

    def check() -> tuple[JSON, Any]:
        parsed = parse_policy(live, document, path)
        dumped: JSON = live.loaded.driver.policy_schema().dump(parsed)
        core.networks.keep_policy(live, dumped, parsed)
        return dumped, parsed

    return core.ask(live.loaded, "policy_schema", check)


def replace_policies(core: Core, handle: str, normalised: Mapping[str, JSON]) -> None:
    """Make these the container's policies, the whole truth; returns when the kernel holds them.

    The documents are as `check_documents` returned them. Raises Invalid and Conflict with nothing changed, and
    DriverError when a driver or the kernel refused one: then the wish stays and is tried again. Runs in the lane, or
    elsewhere when a network is of a foreign type.
    """
    started = time.monotonic()
    for name in normalised:
        if name not in core.networks:
            raise Invalid(f'there is no network "{name}" any more', fields={f"networks.{name}": "deleted meanwhile"})
    db = core.database.reader()
    container = containers.container(db, handle) or ContainerRecord(handle)
    own = containers.policies_of(db, handle)
    changes: list[Change] = []
    try:
        for record in containers.attachments_of(db, handle):
            if record.leaving:
                continue
            live = core.networks.get(record.network)
            before = own[record.network][1] if record.network in own else live.record.default_policy
            after = normalised.get(record.network, live.record.default_policy)
            if before != after or record.rev != record.applied_rev:
                changes.append(new_change(core, db, container, live, record, after))
    except BaseException:
        take_back(core, changes)
        raise

    told = policies_told(core, handle, own, normalised)

    def write(db: sqlite3.Connection) -> None:
        containers.put_container(db, container)
        containers.replace_policies(db, handle, normalised)
        containers.delete_if_unwanted(db, handle)
        write_changes(db, changes)
        core.cluster.post(db, told)

    commit(core, changes, write)
    core.wake_tender()
    failures = apply(core, changes)
    took_ms = round((time.monotonic() - started) * 1000, 1)
    log.info("policy", extra={"handle": handle, "network": ",".join(normalised), "ms": took_ms})
    if failures:
        first = next(iter(failures.values()))
        raise DriverError(f"the policy is not in force everywhere, it will be tried again: {first.message}")


def policies_told(
    core: Core, handle: str, before: Mapping[str, tuple[str, JSON]], after: Mapping[str, JSON]
) -> dict[Key, str | None]:
    """What other hosts have to know of a container's policies, on the networks that span hosts."""
    return {
        Key(Kind.POLICY, name, handle): encode(after[name]) if name in after else None
        for name in {*before, *after}
        if name in core.networks and is_clustered(core.networks.get(name))
    }


def replace_policy_of(core: Core, handle: str, name: str, document: JSON | None) -> None:
    """Make this the container's policy on one network, None its default, as another host was asked. In its turn.

    Raises as `replace_policies` does.
    """
    db = core.database.reader()
    own = containers.policies_of(db, handle)
    if name not in core.networks or (own[name][1] if name in own else None) == document:
        return
    live = core.networks.get(name)
    container = containers.container(db, handle) or ContainerRecord(handle)
    after = live.record.default_policy if document is None else normalise(core, live, document, f"networks.{name}")
    standing = [one for one in containers.attachments_of(db, handle) if one.network == name and not one.leaving]
    changes = [new_change(core, db, container, live, record, after) for record in standing]

    def write(db: sqlite3.Connection) -> None:
        containers.put_container(db, container)
        if document is None:
            containers.delete_policy(db, handle, name, "client")
        else:
            containers.put_policy(db, handle, name, "client", after)
        containers.delete_if_unwanted(db, handle)
        write_changes(db, changes)

    commit(core, changes, write)
    core.wake_tender()
    apply(core, changes)
    log.info("policy of another host", extra={"handle": handle, "network": name})


def replace_default(core: Core, live: LiveNetwork, document: JSON, *, tell: bool = True) -> LiveNetwork:
    """Make this the network's default policy, for every attachment without a policy of its own.

    With `tell` the other hosts of a network that spans hosts follow. Raises as `replace_policies` does. Returns the
    network as it is from now on.
    """
    started = time.monotonic()
    normalised = normalise(core, live, document, "")
    if normalised == live.record.default_policy:
        return live
    record = replace(live.record, default_policy=normalised)
    after = LiveNetwork(record, live.loaded, live.network)
    db = core.database.reader()
    own = containers.all_policies(db)
    changes: list[Change] = []
    try:
        for attachment in containers.attachments_on(db, live.record.name):
            if attachment.leaving or live.record.name in own.get(attachment.handle, {}):
                continue
            container = containers.container(db, attachment.handle) or ContainerRecord(attachment.handle)
            changes.append(new_change(core, db, container, after, attachment, normalised))
    except BaseException:
        take_back(core, changes)
        raise

    def write(db: sqlite3.Connection) -> None:
        networks.put_network(db, record)
        write_changes(db, changes)
        if tell and is_clustered(after):
            core.cluster.post(db, {Key(Kind.NETWORK, record.name): encode(shared_definition(after))})

    commit(core, changes, write)
    core.networks.put(after)
    core.wake_tender()
    failures = apply(core, changes)
    took_ms = round((time.monotonic() - started) * 1000, 1)
    log.info("default policy", extra={"network": live.record.name, "attachments": len(changes), "ms": took_ms})
    if failures:
        (handle, _), first = next(iter(failures.items()))
        raise DriverError(
            f"the default policy is not in force for {len(failures)} of {len(changes)} attachments, it will be "
            f'tried again; first container "{handle}": {first.message}'
        )
    return after


def replace_new_defaults(core: Core, *, foreign: bool) -> None:
    """Bring the default policies that the settings changed into force, of planned or of foreign types.

    What fails is logged; the old one stays in force then, and the next start tries again.
    """
    for name, document in list(core.new_defaults.items()):
        live = core.networks.get(name)
        if is_planned(live) is foreign:
            continue
        del core.new_defaults[name]
        try:
            replace_default(core, live, document)
        except ConetError as err:
            log.error("default policy of the settings refused", extra={"network": name, "error": err.message})


def new_change(
    core: Core,
    db: sqlite3.Connection,
    container: ContainerRecord,
    live: LiveNetwork,
    record: AttachmentRecord,
    document: JSON,
    policy: Any = None,
) -> Change:
    """The document as the wish for one attachment, its ports bound beside those that are held already.

    `policy` is what the document was parsed to, if that is known.
    Raises Invalid, and Conflict and Exhausted for a port; then nothing is held that was not before.
    """
    if policy is None:
        policy = core.networks.policy(live, document, f"networks.{record.network}")
    requests = core.ask(live.loaded, "port_requests", lambda: live.loaded.driver.port_requests(policy))
    old = containers.host_ports(db, record.handle, record.network)
    ports = core.ports.settle(record.handle, record.network, requests, old)
    wished = replace(record, rev=core.revisions.next())
    return Change(live, wished, policy, ports, old, attachment_value(wished, ports, container.labels))


def take_back(core: Core, changes: Sequence[Change]) -> None:
    """Give back the ports that were bound for changes which were not committed."""
    for one in changes:
        core.ports.keep_only(*one.key, [port.port for port in one.old_ports])


def commit(core: Core, changes: Sequence[Change], write: Callable[[sqlite3.Connection], None]) -> None:
    """Commit the wishes durably. If that fails, the ports that were bound for them are given back."""
    try:
        core.database.write(write)
    except BaseException:
        take_back(core, changes)
        raise


def write_changes(db: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Store what is wanted of the attachments."""
    for one in changes:
        containers.wish_attachment(db, one.record.handle, one.record.network, one.record.rev)
        containers.put_host_ports(db, one.record.handle, one.record.network, one.ports)


def apply(core: Core, changes: Sequence[Change]) -> dict[tuple[str, str], ConetError]:
    """Bring the policies into the kernel and record it. Returns what failed, by handle and network."""
    failures: dict[tuple[str, str], ConetError] = {}
    done = []
    for one in changes:
        try:
            if is_planned(one.live):
                core.on_lane(_apply_planned, core, one)
            else:
                _apply_foreign(core, one)
        except ConetError as err:
            failures[one.key] = err
            note_failure(core, one.record, err)
            log.error("policy refused", extra={"handle": one.key[0], "network": one.key[1], "error": str(err)})
            continue
        core.ports.keep_only(*one.key, [port.port for port in one.ports])
        core.problems.pop(one.key, None)
        done.append((one.record.rev, one.record.answer, *one.key))
    if done:
        try:
            core.database.write(lambda db: containers.attachments_applied(db, done), durable=False)
        except ConetError as err:  # the kernel holds it all the same; the patrol looks at it again
            log.error("what is in force could not be recorded", extra={"error": err.message})
    return failures


def _apply_planned(core: Core, one: Change) -> None:
    driver = one.live.loaded.driver
    assert isinstance(driver, PlannedDriver)
    plan: Plan = guard(
        one.live.loaded, "plan_policy", lambda: driver.plan_policy(one.live.network, one.value, one.policy)
    )
    held = core.kernel.filter.held
    befores = {wanted.key: held("EndpointPolicy", wanted.key) for wanted in plan.filter}
    core.kernel.ensure(plan)
    for wanted in plan.filter:
        if not isinstance(wanted, EndpointPolicy):
            continue
        before, endpoint = befores[wanted.key], held("Endpoint", wanted.key)
        network = held("NetworkFilter", one.live.network.key)
        core.flows.settle(
            before if isinstance(before, EndpointPolicy) else None,
            wanted,
            endpoint.addresses if isinstance(endpoint, Endpoint) else (),
            network if isinstance(network, NetworkFilter) else None,
        )


def _apply_foreign(core: Core, one: Change) -> None:
    container = containers.container(core.database.reader(), one.record.handle)
    with container_netns(container) as netns:
        ctx = attachment_context(core, one.live, one.value, one.policy, netns)
        core.ask(one.live.loaded, "apply_policy", lambda: one.live.loaded.driver.apply_policy(ctx))
