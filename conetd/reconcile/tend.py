"""What the containers and policies of this host ask of the whole network, found out by looking, not by counting.

Which containers policies name, wherever these run; which identities containers here should have; where those can be
reached that policies somewhere want to send to; and which identities nothing here needs any more.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from conetd.cluster.keys import Key, Kind
from conetd.errors import ConetError, Exhausted
from conetd.model import JSON, Identities, Selector
from conetd.reconcile.cluster import Turns, this_host
from conetd.reconcile.core import Core
from conetd.reconcile.identities import change_addresses, decide_identities, know_asks, wanted_identity
from conetd.reconcile.members import change_own_lease
from conetd.reconcile.repair import repair
from conetd.reconcile.state import LiveNetwork, is_clustered
from conetd.store import AttachmentRecord, ContainerRecord, cluster, containers, encode

log = logging.getLogger(__name__)
_EVERY_S = 2.0
_GATHER_S = 0.02  # changes come in company
_LEASES_EVERY = 5  # rounds
_SPREAD_S = 0.2  # in which other hosts get to know a number, before packets come with it
_UNUSED_FOR_S = 600.0  # so long an identity is kept: a container that comes again finds its number


class Tender:
    """A thread that looks after what spans hosts, now and then and whenever it is woken."""

    def __init__(self, core: Core, turns: Turns) -> None:
        self._core = core
        self._turns = turns
        self._unused: dict[tuple[str, int], float] = {}
        self._said: dict[str, str] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tender", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round at hand."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Look again, soon."""
        self._wake.set()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            self._wake.wait(_EVERY_S)
            self._stop.wait(_GATHER_S)
            self._wake.clear()
            if self._stop.is_set():
                return
            for live in [one for one in self._core.networks.all() if is_clustered(one)]:
                try:
                    self._tend(live)
                    if number % _LEASES_EVERY == 0:
                        tend_own_lease(self._core, live)
                except ConetError as err:
                    self._say(live, err)
                except Exception:  # one that breaks must not end the rounds
                    log.exception("could not be tended, it will be tried again")
            number += 1

    def _say(self, live: LiveNetwork, err: ConetError) -> None:
        if self._said.get(live.record.name) != err.message:
            self._said[live.record.name] = err.message
            log.error("could not be tended, it will be tried again", extra=_about(live, err))

    def _tend(self, live: LiveNetwork) -> None:
        core, name = self._core, live.record.name
        if live.network.lease is None:
            return
        records = [one for one in containers.attachments_on(core.database.reader(), name) if not one.leaving]
        tell_asks(core, live, records)
        self._give(live, records)
        tell_addresses(core, live)
        self._release(live)

    def _give(self, live: LiveNetwork, records: list[AttachmentRecord]) -> None:
        """See that every container has the identity it should have."""
        core, name = self._core, live.record.name
        known = {one.handle: one for one in containers.containers(core.database.reader()) if one.life is not None}
        identities = core.networks.get(name).network.identities
        changing: list[str] = []
        fresh = False
        for record in records:
            if record.handle not in known:
                continue
            wanted = wanted_identity(core, name, record.handle, known[record.handle].labels)
            number = identities.number(*wanted)
            if number == record.identity and number:
                continue
            if not number:
                try:
                    decide_identities(core, [(live, wanted)])
                except Exhausted as err:  # it keeps what it has, and the others are looked after
                    self._say(live, err)
                    continue
                fresh = True
            changing.append(record.handle)
        if fresh:
            self._stop.wait(_SPREAD_S)
        for handle in changing:
            self._turns.container(handle, partial(_give, handle=handle)).result()

    def _release(self, live: LiveNetwork) -> None:
        """Let go of what nothing here has needed for a while."""
        core, name = self._core, live.record.name
        used = cluster.identities_in_use(core.database.reader(), name)
        known = core.cluster.held(core, live)
        now = time.monotonic()
        self._unused = {key: since for key, since in self._unused.items() if key[0] != name or key[1] in known - used}
        for number in known - used:
            self._unused.setdefault((name, number), now)
        core.cluster.use(core, live, used)
        gone = [number for number in known - used if now - self._unused[name, number] >= _UNUSED_FOR_S]
        if gone:
            core.cluster.release(core, live, gone)


def _give(core: Core, handle: str) -> None:
    core.on_lane(give_identities, core, handle)


def give_identities(core: Core, handle: str) -> None:
    """Give a container's attachments the identities they should have now, as far as these are known.

    Runs in the container's turn and in the kernel lane; what the kernel refuses is noted, and tried again.
    """
    db = core.database.reader()
    container = containers.container(db, handle)
    if container is None or container.life is None:
        return
    changed = _with_identities(core, container, containers.attachments_of(db, handle))
    if not changed:
        return

    def write(db: sqlite3.Connection) -> None:
        for record in changed:
            containers.put_attachment(db, record)

    core.database.write(write)
    repair(core, handle)


def _with_identities(
    core: Core, container: ContainerRecord, records: Sequence[AttachmentRecord]
) -> list[AttachmentRecord]:
    """The records that get another identity, with it."""
    changed = []
    for record in records:
        if record.leaving or record.network not in core.networks:
            continue
        live = core.networks.get(record.network)
        if not is_clustered(live):
            continue
        wanted = wanted_identity(core, record.network, container.handle, container.labels)
        number = live.network.identities.number(*wanted)
        if number and number != record.identity:
            changed.append(replace(record, identity=number, rev=core.revisions.next()))
    return changed


def _about(live: LiveNetwork, err: ConetError) -> JSON:
    return {"network": live.record.name, "error": err.message}


def selectors_in_force(core: Core, live: LiveNetwork, records: list[AttachmentRecord]) -> frozenset[Selector]:
    """The containers that the policies of these attachments name."""
    own = containers.all_policies(core.database.reader())
    driver = live.loaded.driver
    documents = {encode(doc): doc for doc in _documents(live, own, records)}
    found = {selector for one in documents.values() for selector in driver.selectors(core.networks.policy(live, one))}
    coming = [some for (name, _), some in list(core.expected_selectors.items()) if name == live.record.name]
    return frozenset(found.union(*coming))


def _documents(
    live: LiveNetwork, own: dict[str, dict[str, tuple[str, JSON]]], records: list[AttachmentRecord]
) -> list[JSON]:
    name = live.record.name
    mine = [own[one.handle][name][1] for one in records if name in own.get(one.handle, {})]
    return [*mine, live.record.default_policy] if len(mine) < len(records) else mine


def ask_ahead(core: Core, name: str, handle: str, document: JSON) -> bool:
    """Ask for what a policy needs to know that is about to come into force, for a container or (handle "") by default.

    Returns whether other hosts may have to answer. Without it the policy would forbid, for the moment until they have,
    connections that it allows, and they would end. `asked_ahead` is to be called once it is in force, or refused.
    """
    live = core.networks.get(name)
    outbound = {one for one in live.loaded.driver.selectors(core.networks.policy(live, document)) if one.outbound}
    known = cluster.asks(core.database.reader(), name).get(core.cluster.host, frozenset())
    if not outbound - known:
        return False
    core.expected_selectors[name, handle] = frozenset(outbound)
    records = [one for one in containers.attachments_on(core.database.reader(), name) if not one.leaving]
    tell_asks(core, live, records)
    tell_addresses(core, live)
    return core.cluster.agreed


def asked_ahead(core: Core, name: str, handle: str) -> None:
    """The policy is in force, or is not going to be."""
    core.expected_selectors.pop((name, handle), None)


def tell_asks(core: Core, live: LiveNetwork, records: list[AttachmentRecord]) -> None:
    """Store, and have others told, which containers the policies here name; know the handles that any policy names."""
    name, host = live.record.name, core.cluster.host
    wanted = selectors_in_force(core, live, records)
    asks = cluster.asks(core.database.reader(), name)
    if asks.get(host, frozenset()) != wanted:
        value = encode(cluster.selector_documents(wanted)) if wanted else None

        def write(db: sqlite3.Connection) -> None:
            cluster.put_asks(db, name, host, wanted)
            core.cluster.post(db, {Key(Kind.ASK, name, host=host): value})

        core.database.write(write)
        core.cluster.hurry()
        asks[host] = wanted
    know_asks(core, name, asks)


def tell_addresses(core: Core, live: LiveNetwork) -> None:
    """Know, and have others told, where the containers here can be reached that some policy wants to send to."""
    name, host = live.record.name, core.cluster.host
    db = core.database.reader()
    outbound = [one for some in cluster.asks(db, name).values() for one in some if one.outbound]
    before = cluster.addresses_at(db, name, host)
    if not outbound and not before:
        return
    wanted = _addresses(db, core.networks.get(name).network.identities, name, outbound)
    changed = {number: wanted.get(number, []) for number in {*before, *wanted}}
    changed = {number: some for number, some in changed.items() if before.get(number, []) != some}
    if not changed:
        return
    core.on_lane(change_addresses, core, name, host, changed)
    core.cluster.hurry()


def _addresses(
    db: sqlite3.Connection, identities: Identities, name: str, outbound: list[Selector]
) -> dict[int, list[str]]:
    found: defaultdict[int, list[str]] = defaultdict(list)
    meant: dict[int, bool] = {}
    for record in containers.attachments_on(db, name):
        number = record.identity
        if record.leaving or number not in identities.by_number:
            continue
        if number not in meant:
            meant[number] = any(identities.by_number[number].matches(one) for one in outbound)
        if meant[number]:
            found[number] += [claim[3:] for claim in sorted(record.lease.claims) if claim.startswith("ip:")]
    return {number: sorted(some) for number, some in found.items()}


def tend_own_lease(core: Core, live: LiveNetwork) -> None:
    """See that what the others know of this host is still so: its addresses may have changed. Raises Invalid."""
    name, current = live.record.name, live.network.lease
    if current is None or core.cluster.frozen(name) is not None:
        return  # which part it has is not decided here
    host = this_host(core.cluster.host)
    driver, network = live.loaded.driver, live.network
    lease = core.ask(live.loaded, "allocate_host", lambda: driver.allocate_host(network, host, current, frozenset()))
    if lease is None or lease == current:
        return
    core.on_lane(change_own_lease, core, name, lease)
