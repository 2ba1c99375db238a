"""What is wanted of a container's attachments: their leases, names, ports and policies, before anything is done."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conetd.errors import Conflict, Invalid, Unavailable
from conetd.garden.rules import net_in_entries, net_out_entries
from conetd.garden.wire import NetIn, NetOutRule
from conetd.model import JSON, Attachment, Lease, Requested
from conetd.plan import PortMapping
from conetd.reconcile.core import Core, waits
from conetd.reconcile.identities import identity_number
from conetd.reconcile.joins import choose_default_routes, name_interfaces
from conetd.reconcile.policies import parse
from conetd.reconcile.state import LiveNetwork, attachment_value, has_ipv6, takes_garden
from conetd.store import AttachmentRecord, ContainerRecord, HostPortRecord, Join, containers

_ALLOCATE_TRIES = 100  # another attachment can be quicker that often before we give up


@dataclass(slots=True)
class Wish:
    """One attachment on its way into the kernel."""

    live: LiveNetwork
    record: AttachmentRecord
    policy: Any
    ports: tuple[HostPortRecord, ...]
    value: Attachment
    links: tuple[str, ...] = ()
    """Its links in the host namespace, once planned."""
    mappings: tuple[PortMapping, ...] = ()
    """Its published ports, once planned."""
    new: bool = True
    """Not in the store before: after a failure it is given back whole."""


@dataclass(slots=True)
class Garden:
    """What the engine brings along in Garden's words for this life alone, and on which network it was placed."""

    net_in: Sequence[NetIn] = ()
    net_out: Sequence[NetOutRule] = ()
    placed: tuple[str, JSON] | None = None

    def place(self, core: Core, live: LiveNetwork, lease: Lease, document: JSON) -> Any:
        """The policy of the document with what was brought along, on the first network that can hold it; else None.

        Raises Invalid.
        """
        if not (self.net_in or self.net_out) or self.placed is not None or not takes_garden(live):
            return None
        net_out = net_out_entries(self.net_out, ipv6=has_ipv6(lease), path="netout_rules")
        grown = {
            **document,
            "net_in": net_in_entries(self.net_in, document.get("net_in", ()), "netin"),
            "net_out": [*net_out, *document.get("net_out", ())],
        }
        normalised, policy = parse(core, live, grown, "")
        self.placed = (live.record.name, normalised)
        return policy


def new_wishes(
    core: Core,
    db: sqlite3.Connection,
    container: ContainerRecord,
    joins: Sequence[Join],
    standing: Sequence[AttachmentRecord],
    *,
    garden: Garden | None = None,
) -> list[Wish]:
    """Leases, names, ports and policies for the joins that are not `standing`, in the order of the joins.

    The default routes are chosen over all of them; a standing one that gains or loses one is in the result, too.
    """
    lives = [core.networks.get(join.network) for join in joins]
    kept = {record.network: record for record in standing}
    names = name_interfaces(joins, {record.network: record.ifname for record in standing})
    made: list[Wish] = []
    leased: list[AttachmentRecord] = []
    try:
        records = []
        for live in lives:
            _refuse_frozen(core, live, kept)
        for position, (join, live) in enumerate(zip(joins, lives, strict=True)):
            if join.network in kept:
                records.append(replace(kept[join.network], position=position))
                continue
            record = _lease(core, live, container, join, names[join.network], position)
            leased.append(record)
            records.append(record)
        own = containers.policies_of(db, container.handle)
        for record, live in zip(choose_default_routes(records), lives, strict=True):
            old = kept.get(record.network)
            if old is not None and old.default_route == record.default_route and old.position == record.position:
                continue
            document = own[record.network][1] if record.network in own else live.record.default_policy
            policy = None if garden is None else garden.place(core, live, record.lease, document)
            if policy is None:
                policy = core.networks.policy(live, document)
            made.append(_wish(core, db, container, live, replace(record, rev=core.revisions.next()), policy, old))
    except BaseException:
        for wish in made:
            give_back(core, wish)
        for record in leased:
            core.claims.give_back(record.network, record.handle, record.lease.claims)
        raise
    if garden is not None and (garden.net_in or garden.net_out) and garden.placed is None:
        for wish in made:
            give_back(core, wish)
        raise Invalid("netin or netout_rules were given, but the container joins no network whose policy can hold them")
    return made


def _refuse_frozen(core: Core, live: LiveNetwork, kept: Mapping[str, AttachmentRecord]) -> None:
    reason = core.cluster.frozen(live.record.name)
    if reason is not None and live.record.name not in kept:
        raise Unavailable(f'network "{live.record.name}" is frozen, nothing new is attached to it: {reason}')
    if waits(live):
        raise Unavailable(
            f'network "{live.record.name}" waits for this host\'s part of it, which the cluster has to give'
        )


def _wish(
    core: Core,
    db: sqlite3.Connection,
    container: ContainerRecord,
    live: LiveNetwork,
    record: AttachmentRecord,
    policy: Any,
    old: AttachmentRecord | None,
) -> Wish:
    requests = core.ask(live.loaded, "port_requests", lambda: live.loaded.driver.port_requests(policy))
    held = containers.host_ports(db, record.handle, record.network) if old is not None else ()
    ports = core.ports.settle(record.handle, record.network, requests, held)
    return Wish(live, record, policy, ports, attachment_value(record, ports, container.labels), new=old is None)


def standing_wishes(core: Core, container: ContainerRecord) -> list[Wish]:
    """The wishes for a container's attachments as the store has them, for completing or repairing them."""
    db = core.database.reader()
    own = containers.policies_of(db, container.handle)
    wishes = []
    for record in containers.attachments_of(db, container.handle):
        if record.leaving:
            continue
        live = core.networks.get(record.network)
        document = own[record.network][1] if record.network in own else live.record.default_policy
        ports = containers.host_ports(db, record.handle, record.network)
        policy = core.networks.policy(live, document)
        wishes.append(Wish(live, record, policy, ports, attachment_value(record, ports, container.labels), new=False))
    return wishes


def _lease(
    core: Core, live: LiveNetwork, container: ContainerRecord, join: Join, ifname: str, position: int
) -> AttachmentRecord:
    blank = AttachmentRecord(join.network, container.handle, position, ifname, join.requested, Lease({}, frozenset()))
    blank = replace(blank, identity=identity_number(core, live, container.handle, container.labels))
    value = replace(attachment_value(blank, (), container.labels), lease=None)
    held = core.claims.held(join.network)
    for _ in range(_ALLOCATE_TRIES):
        try:
            lease = core.ask(live.loaded, "allocate", lambda: live.loaded.driver.allocate(live.network, value, held))
        except (Invalid, Conflict) as err:
            raise _placed(err, join.requested, position, held) from err
        try:
            core.claims.take(join.network, container.handle, lease.claims)
        except Conflict as err:
            quicker = err
            continue
        return replace(blank, lease=lease)
    raise quicker


def _placed(
    err: Invalid | Conflict, requested: Requested, position: int, held: Mapping[str, str]
) -> Invalid | Conflict:
    """The driver's refusal with its fields' paths in the container's config and the handle of who is in the way."""
    message = err.message
    for field in err.fields:
        value = getattr(requested, field, None)
        holder = held.get(f"{'mac' if field == 'mac' else 'ip'}:{value}")
        if isinstance(err, Conflict) and holder is not None:
            message += f', by container "{holder}"'
    return type(err)(message, fields={f"attach_to[{position}].{path}": text for path, text in err.fields.items()})


def write_wishes(db: sqlite3.Connection, wishes: Sequence[Wish]) -> None:
    """Store attachments with their claims and host ports."""
    for wish in wishes:
        containers.put_attachment(db, wish.record)
        containers.put_host_ports(db, wish.record.handle, wish.record.network, wish.ports)


def give_back(core: Core, wish: Wish) -> None:
    """Release the ports and the lease of a wish that was never committed."""
    if wish.new:
        core.ports.keep_only(wish.record.handle, wish.record.network, ())
        core.claims.give_back(wish.record.network, wish.record.handle, wish.record.lease.claims)
