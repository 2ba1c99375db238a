"""How networks come and go: check against the others, commit the wish, make it, record it."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Collection
from dataclasses import replace
from functools import partial

from conetd.documents import load
from conetd.errors import ConetError, Conflict, DriverError, Invalid, Unavailable
from conetd.kernel.tunnel_test import tunnel_fault
from conetd.kernel.work import Work
from conetd.model import JSON, Lease, Network
from conetd.plan import Plan, Vxlan
from conetd.reconcile.core import (
    Core,
    is_planned,
    network_alias,
    network_context,
    network_plan,
    subnets_by_network,
    subnets_of,
    waits,
    whole_network_plan,
)
from conetd.reconcile.forwarding import adjust_forwarding
from conetd.reconcile.namespace import lives
from conetd.reconcile.state import LiveNetwork, check_policy, is_clustered, with_cluster
from conetd.store import NetworkRecord, cluster, containers, encode, networks

log = logging.getLogger(__name__)


def parse_network(core: Core, document: JSON, uplink_mtu: int) -> LiveNetwork:
    """A network from its document, its config and default policy checked and normalised. Raises Invalid."""
    name, type_, config, default_policy = (document[key] for key in ("name", "type", "config", "default_policy"))
    loaded = core.drivers.get(type_)
    if loaded is None:
        enabled = ", ".join(sorted(core.drivers))
        raise Invalid(
            f'network "{name}": type "{type_}" is not enabled (enabled: {enabled})',
            fields={"type": f'"{type_}" is not enabled'},
        )

    def check() -> LiveNetwork:
        driver = loaded.driver
        parsed = load(driver.config_schema(), config, "config", what=f'network "{name}"')
        network = Network(name, type_, parsed, uplink_mtu, subnets=subnets_by_network(core), agreed=core.cluster.agreed)
        policy = load(driver.policy_schema(), default_policy, "default_policy", what=f'network "{name}"')
        check_policy(driver, network, policy, "default_policy", f'network "{name}"')
        record = NetworkRecord(
            name, type_, driver.config_schema().dump(parsed), driver.policy_schema().dump(policy), uplink_mtu
        )
        return LiveNetwork(record, loaded, network)

    return core.ask(loaded, "config_schema", check)


def same_document(one: NetworkRecord, other: NetworkRecord) -> bool:
    """Whether two networks are the same document, normalised."""
    return (one.type, encode(one.config), encode(one.default_policy)) == (
        other.type,
        encode(other.config),
        encode(other.default_policy),
    )


def join_network(core: Core, wanted: LiveNetwork) -> LiveNetwork:
    """The network with what this host has on it, decided on if it spans hosts and is not here yet. May wait.

    Raises what `create_network` does, and Exhausted, Invalid and Unavailable when this host cannot take part.
    """
    name = wanted.record.name
    if not is_clustered(wanted) or name in core.networks:
        return wanted
    check_beside(core, wanted)
    return replace(wanted, network=replace(wanted.network, lease=core.cluster.join(core, wanted)))


def create_network(core: Core, wanted: LiveNetwork) -> tuple[bool, LiveNetwork]:
    """Make the network; False and the one there is when the same stands already.

    Raises Conflict when another has its name or its driver says it cannot stand beside the others; DriverError when
    it cannot be made, and then nothing of it is left.
    """
    started = time.monotonic()
    name = wanted.record.name
    if name in core.networks:
        there = core.networks.get(name)
        if same_document(there.record, wanted.record):
            return False, there
        raise Conflict(f'there is another network "{name}" already: {difference(there.record, wanted.record)}')
    check_beside(core, wanted, but={name})
    _refuse_overlap(core, wanted)
    record = replace(wanted.record, rev=core.revisions.next())
    live = LiveNetwork(record, wanted.loaded, wanted.network)
    core.networks.add(live)
    try:
        core.database.write(partial(_put_new, record=record, lease=wanted.network.lease, host=core.cluster.host))
    except BaseException:
        core.networks.drop(name)
        raise
    try:
        ensure_network(core, live)
    except ConetError as err:
        log.error("network failed", extra={"network": name, "error": str(err)})
        try:
            remove_network(core, live)
        except ConetError as again:
            log.error("undoing a network failed, it will be retried", extra={"network": name, "error": str(again)})
        raise
    took_ms = round((time.monotonic() - started) * 1000, 1)
    log.info("network created", extra={"network": name, "type": record.type, "ms": took_ms})
    return True, core.networks.get(name)


def _put_new(db: sqlite3.Connection, *, record: NetworkRecord, lease: Lease | None, host: str) -> None:
    networks.put_network(db, record)
    if lease is not None:
        cluster.put_own_lease(db, record.name, host, lease)


def _refuse_overlap(core: Core, wanted: LiveNetwork) -> None:
    """Raise Conflict when a network of another type has some of this one's addresses: drivers see their own type."""
    if not is_planned(wanted):
        return
    mine = subnets_of(network_plan(wanted))
    for other, theirs in subnets_by_network(core).items():
        for one in mine:
            for another in theirs:
                if one.version == another.version and one.overlaps(another):
                    raise Conflict(
                        f'network "{wanted.record.name}": its subnet {one} overlaps {another} of network "{other}"',
                        fields={"config": f'subnet {one} overlaps {another} of network "{other}"'},
                    )


def check_beside(core: Core, wanted: LiveNetwork, but: Collection[str] = ()) -> None:
    """Raise Conflict when the network cannot stand beside those of its type (other than `but`)."""
    others = [
        one.network
        for one in core.networks.all()
        if one.record.type == wanted.record.type and one.record.name not in but
    ]
    driver = wanted.loaded.driver
    core.ask(wanted.loaded, "check_network", lambda: driver.check_network(wanted.network, others))


def ensure_network(core: Core, live: LiveNetwork) -> None:
    """Make what the network needs on this host, and record that it is so. Raises DriverError."""
    try:
        if is_planned(live):
            core.on_lane(_ensure_planned, core, live)
        else:
            driver = live.loaded.driver
            core.ask(live.loaded, "ensure_network", lambda: driver.ensure_network(network_context(core, live)))
    except ConetError as err:
        message = err.message
        core.problems["", live.record.name] = message
        core.database.write(
            lambda db: networks.network_applied(db, live.record.name, live.record.rev, message), durable=False
        )
        raise
    record = replace(live.record, applied_rev=live.record.rev, error=None)
    core.database.write(lambda db: networks.network_applied(db, record.name, record.rev, None), durable=False)
    core.networks.put(LiveNetwork(record, live.loaded, live.network))
    core.problems.pop(("", live.record.name), None)


def _ensure_planned(core: Core, live: LiveNetwork) -> None:
    if waits(live):
        raise Unavailable(
            f'network "{live.record.name}" waits for this host\'s part of it, which the cluster has to give'
        )
    plan = whole_network_plan(live)
    if not live.record.applied_rev:
        _try_tunnels(live.record.name, plan)
    [error] = core.kernel.ensure_many([Work(plan, network_alias(live.record.name), None)])
    if error is not None:
        raise error
    adjust_forwarding(core)


def _try_tunnels(name: str, plan: Plan) -> None:
    """Before a tunnel is made for the first time, see that this kernel carries packets through one of its kind."""
    for link in plan.links:
        if not isinstance(link, Vxlan):
            continue
        try:
            fault = tunnel_fault(link)
        except ConetError as err:
            log.warning("the tunnel could not be tested", extra={"network": name, "reason": err.message})
            continue
        if fault is not None:
            raise DriverError(f'network "{name}" would not work, tried with a packet of its own: {fault}')


def delete_network(core: Core, name: str) -> None:
    """Remove the network. Raises Conflict naming who holds it, DriverError when its driver cannot remove it."""
    live = core.networks.get(name)
    db = core.database.reader()
    holders = []
    for attachment in containers.attachments_on(db, name):
        if attachment.leaving:
            core.reaper.finish(attachment.handle)
        else:
            holders.append(f'container "{attachment.handle}" is attached to it')
    attached = {attachment.handle for attachment in containers.attachments_on(db, name)}
    holders += [
        f'the config of container "{handle}" names it'
        for handle in containers.configured_on(db, name)
        if handle not in attached
    ]
    if live.record.declared:
        holders.append("it stands in the settings")
    if name in core.settings.default_attach_to:
        holders.append("the setting default_attach_to names it")
    if holders:
        more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
        raise Conflict(f'network "{name}" cannot be deleted: {"; ".join(holders[:3])}{more}')
    remove_network(core, live)
    log.info("network deleted", extra={"network": name})


def remove_network(core: Core, live: LiveNetwork) -> None:
    """Take the network out of the kernel and then out of the store. Raises DriverError, and then it stays wanted."""
    if is_planned(live):
        core.on_lane(core.kernel.remove, whole_network_plan(live), None)
    else:
        driver = live.loaded.driver
        core.ask(live.loaded, "remove_network", lambda: driver.remove_network(network_context(core, live)))
    name = live.record.name

    def write(db: sqlite3.Connection) -> None:
        networks.put_meta(db, "revision", str(networks.last_revision(db)))
        core.cluster.leave(db, name)
        containers.delete_policies_naming(db, name)
        networks.delete_network(db, name)

    try:
        core.database.write(write)
    except sqlite3.IntegrityError as err:
        core.on_lane(ensure_network, core, live)
        raise Conflict(f'network "{name}" cannot be deleted: a container has just been attached to it') from err
    core.networks.drop(name)
    core.places.pop(name, None)
    core.named.pop(name, None)
    core.sent_to.discard(name)
    core.problems.pop(("", name), None)
    core.on_lane(adjust_forwarding, core)


def difference(there: NetworkRecord, wanted: NetworkRecord, but: Collection[str] = ()) -> str:
    """Which field differs first, with both values; `but` are fields of `config` that may."""
    if there.type != wanted.type:
        return f"its type is {there.type}, not {wanted.type}"
    for field, has, wants in (
        ("config", there.config, wanted.config),
        ("default_policy", there.default_policy, wanted.default_policy),
    ):
        for key in sorted(_differing(has, wants) - set(but if field == "config" else ())):
            return f"its {field}.{key} is {_shown(has, key)}, not {_shown(wants, key)}"
    return "it differs"


def _differing(has: JSON, wants: JSON) -> set[str]:
    return {key for key in {*has, *wants} if has.get(key) != wants.get(key)}


def _shown(document: JSON, key: str) -> str:
    return encode(document[key]) if key in document else "left out"


def declare(core: Core, wanted: LiveNetwork) -> None:
    """Bring a network of the settings into the store, before anything is served.

    Raises Conflict naming the field when the stored one has another config and containers are attached to it, unless
    its driver says of every field that differs that it can change live.
    """
    name = wanted.record.name
    there = core.networks.get(name).record if name in core.networks else None
    check_beside(core, wanted, but={name})
    rev = core.revisions.next()
    differing = set() if there is None else _differing(there.config, wanted.record.config)
    if there is None or there.type != wanted.record.type or differing - wanted.loaded.driver.live_config:
        if there is not None:
            attached = _attached(core, there, wanted.record)
            if attached:
                count = "1 container is" if attached == 1 else f"{attached} containers are"
                raise Conflict(
                    f'network "{name}" of the settings cannot replace the stored one while {count} attached: '
                    f"{difference(there, wanted.record, wanted.loaded.driver.live_config)}"
                )
            core.replaced.append(core.networks.get(name))
        record = replace(wanted.record, declared=True, rev=rev)
    else:
        record = replace(there, declared=True)
        if differing:
            record = replace(record, config=wanted.record.config, rev=rev)
            log.info("network config changed", extra={"network": name, "fields": ",".join(sorted(differing))})
        if encode(there.default_policy) != encode(wanted.record.default_policy):
            # It has to reach the containers, with ports and flows: done once the old state is recovered.
            core.new_defaults[name] = wanted.record.default_policy
    core.database.write(lambda db: networks.put_network(db, record))
    live = LiveNetwork(record, wanted.loaded, replace(wanted.network, uplink_mtu=record.uplink_mtu))
    core.networks.put(with_cluster(core.database.reader(), live, agreed=core.cluster.agreed))


def _attached(core: Core, there: NetworkRecord, wanted: NetworkRecord) -> int:
    """How many attachments keep the network from being replaced.

    Those that were leaving, or whose container ended while the daemon was away (in a reboot, say), are taken down at
    the start by their names in the kernel, which are the same under another config, but not under another type.
    """
    db = core.database.reader()
    records = containers.attachments_on(db, there.name)
    if there.type != wanted.type:
        return len(records)
    living = {one.handle for one in containers.containers(db) if lives(core.boot_id, one)}
    return sum(not one.leaving and one.handle in living for one in records)


def undeclare_others(core: Core, names: Collection[str]) -> None:
    """Networks that the settings declare no longer become ordinary ones."""
    for live in core.networks.all():
        if live.record.declared and live.record.name not in names:
            record = replace(live.record, declared=False)
            core.database.write(partial(networks.put_network, record=record))
            core.networks.put(LiveNetwork(record, live.loaded, live.network))
