"""What other hosts of a network, and this host's own lease, come to: stored, planned, made. In the kernel lane."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from conetd.cluster.keys import Key, Kind
from conetd.errors import ConetError
from conetd.kernel.work import Work
from conetd.model import JSON, Lease, Network
from conetd.plan import Plan, Vxlan
from conetd.reconcile.cluster import lease_value, this_host
from conetd.reconcile.core import Core, member_plan, network_alias, network_plan, subnets_by_network, waits
from conetd.reconcile.identities import renew_addresses, replan
from conetd.reconcile.networks import ensure_network
from conetd.reconcile.state import LiveNetwork, is_clustered
from conetd.store import cluster, networks

log = logging.getLogger(__name__)


def change_members(core: Core, name: str, put: Mapping[str, JSON], drop: Iterable[str]) -> None:
    """Bring other hosts into a network and take some out. What is so already costs nothing.

    What the kernel refuses is noted with the network, and tried again by the patrol.
    """
    if name not in core.networks:
        return
    live = core.networks.get(name)
    before = live.network.members
    come = {host: data for host, data in put.items() if before.get(host) != data and host != core.cluster.host}
    gone = [host for host in drop if host in before and host not in come]
    if not (come or gone):
        return

    def write(db: sqlite3.Connection) -> None:
        for host in gone:
            cluster.delete_member(db, name, host)
        for host, data in come.items():
            cluster.put_member(db, name, host, data)

    core.database.write(write)
    members = {host: data for host, data in before.items() if host not in gone} | come
    core.networks.renew(name, lambda network: replace(network, members=members))
    _renew_addresses(core, name, [*gone, *(host for host in come if host not in before)])
    for host in gone:
        log.info("host left", extra={"network": name, "host": host})
    for host in come:
        log.info("host joined" if host not in before else "host changed", extra={"network": name, "host": host})
    if waits(live):
        return
    try:
        wanted = {host: member_plan(live, host, data) for host, data in come.items()}
        left = {host: member_plan(live, host, before[host]) for host in (*gone, *come) if host in before}
        stale = [plan.without(wanted[host]) if host in wanted else plan for host, plan in left.items()]
        standing = _move(core, live, wanted, left)
        if stale:
            # What a host had may be another's now, whose plan stands already or comes at once.
            core.kernel.remove(Plan.of(stale).without(standing), None)
        works = [Work(plan, network_alias(name), None) for plan in wanted.values()]
        for error in core.kernel.ensure_many(works):
            if error is not None:
                raise error
        _warn_of_rp_filter(core, live, wanted)
    except ConetError as err:
        log.error("hosts of a network failed", extra={"network": name, "error": err.message})
        core.places.pop(name, None)
        core.problems["", name] = message = err.message
        core.database.write(lambda db: networks.network_applied(db, name, live.record.rev, message), durable=False)


def _warn_of_rp_filter(core: Core, live: LiveNetwork, come: Mapping[str, Plan]) -> None:
    """Say so when this host would drop what others send it: a route of its own leads back to them by another way."""
    local = [link.local for link in network_plan(live).links if isinstance(link, Vxlan)]
    interfaces = [one.name for one in this_host(core.cluster.host).interfaces if set(one.addresses) & set(local)]
    for host, plan in come.items():
        for fault in (core.kernel.rp_filter_fault(name, entry.to) for name in interfaces for entry in plan.fdb):
            if fault is not None:
                log.warning("a host may not be heard", extra={"network": live.record.name, "host": host, "why": fault})


def forget_others(core: Core, name: str) -> None:
    """Take all other hosts out of a network, with what their policies name: this host is alone now."""
    if not is_clustered(core.networks.get(name)):
        return
    change_members(core, name, {}, list(core.networks.get(name).network.members))
    others = set(cluster.asks(core.database.reader(), name)) - {core.cluster.host}

    def write(db: sqlite3.Connection) -> None:
        for host in others:
            cluster.put_asks(db, name, host, ())

    if others:
        core.database.write(write)


def _renew_addresses(core: Core, name: str, hosts: Iterable[str]) -> None:
    """Have policies send to the containers on these hosts if these live, and no longer if they are gone."""
    db = core.database.reader()
    numbers = {number for host in hosts for number in cluster.addresses_at(db, name, host)}
    if numbers:
        renew_addresses(core, name, numbers)


def _move(core: Core, live: LiveNetwork, come: Mapping[str, Plan], gone: Mapping[str, Plan]) -> Plan:
    """Note who is behind which route now; returns the plans of the hosts that have what those that are gone had."""
    members = core.networks.get(live.record.name).network.members
    places = core.places.get(live.record.name)
    if places is None:
        plans = {host: member_plan(live, host, data) for host, data in members.items()}
        places = core.places[live.record.name] = {}
    else:
        plans = dict(come)
    places |= {route.destination: host for host, plan in plans.items() for route in plan.routes}
    heirs: set[str] = set()
    for host, plan in gone.items():
        for route in plan.routes:
            heir = places.get(route.destination)
            if heir == host and host not in come:
                del places[route.destination]
            elif heir is not None and heir != host:
                heirs.add(heir)
    return Plan.of([member_plan(live, heir, members[heir]) for heir in heirs if heir in members])


def change_own_lease(core: Core, name: str, lease: Lease) -> None:
    """Make this what the host has on a network that stands, and have the others told.

    Its address may have changed, its claims have not.
    """
    if name not in core.networks or core.networks.get(name).network.lease == lease:
        return
    log.warning("this host's place in a network changed", extra={"network": name, "lease": str(lease.data)})

    def write(db: sqlite3.Connection) -> None:
        cluster.put_own_lease(db, name, core.cluster.host, lease)
        core.cluster.post(db, {Key(Kind.LEASE, name, host=core.cluster.host): lease_value(lease)})

    core.database.write(write)
    core.networks.renew(name, lambda network: replace(network, lease=lease))
    try:
        ensure_network(core, core.networks.get(name))
    except ConetError as err:
        log.error("network failed", extra={"network": name, "error": err.message})


def tell_subnets(core: Core) -> None:
    """Have drivers see the subnets of the networks there are now, and plan the policies anew that may name them."""
    subnets = subnets_by_network(core)
    for live in core.networks.all():
        if is_clustered(live) and live.network.subnets != subnets:
            core.networks.renew(live.record.name, lambda network: _with_subnets(network, subnets))
            replan(core, live.record.name, lambda selectors: True, closing=True)


def _with_subnets(network: Network[Any], subnets: Mapping[str, Any]) -> Network[Any]:
    return replace(network, subnets=subnets)
