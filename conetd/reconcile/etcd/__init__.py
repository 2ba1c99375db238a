"""A cluster on etcd: this host's wishes go there, those of the others come from there, and the store has both.

While etcd is away everything that is known here goes on as it is; what only etcd can decide is refused until it is
back.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from conetd.cluster.errors import Compacted, EtcdDown, LeaseGone
from conetd.cluster.etcd import Etcd
from conetd.cluster.keys import Key, Keys, Kind
from conetd.cluster.messages import absent, put, read, value_is
from conetd.cluster.watch import Watch, gathered
from conetd.errors import ConetError, Conflict, Unavailable
from conetd.model import JSON, Identity, Labels, Lease
from conetd.reconcile.cluster import Turns
from conetd.reconcile.core import Core, waits
from conetd.reconcile.etcd.copies import Copies
from conetd.reconcile.etcd.decisions import Decisions
from conetd.reconcile.etcd.outbox import Outbox
from conetd.reconcile.identities import change_identities
from conetd.reconcile.members import change_own_lease
from conetd.reconcile.state import LiveNetwork, is_clustered
from conetd.settings import ClusterSettings
from conetd.store import Database, cluster, encode

log = logging.getLogger(__name__)
_RETRY_S = 0.5
_FIRST_S = 2.0  # for so long a request waits for the first answer of etcd after a start


class EtcdCluster:
    """See Cluster. `instance` tells this host from another that calls itself the same."""

    agreed = True

    def __init__(self, settings: ClusterSettings, etcd: Etcd, database: Database, instance: str) -> None:
        self.host = settings.host
        self._settings = settings
        self._keys = Keys(settings.prefix)
        self._etcd = etcd
        self._database = database
        self._me = encode({"instance": instance})
        self._decisions = Decisions(etcd, self._keys, self.host)
        self._outbox = Outbox(database, etcd, self._keys, self.host, self._decisions, lambda: self._problem is None)
        self._problem: str | None = "not connected yet"
        self._tried = threading.Event()  # whether there is more to say than that
        self._since = time.time()
        self._frozen: dict[str, str] = {}
        self._lease = 0
        self._revision = 0
        self._watch: Watch | None = None
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="cluster", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="keep-alive", daemon=True)

    def start(self, core: Core, turns: Turns) -> None:
        """See Cluster."""
        self._core = core
        self._copies = Copies(
            core,
            turns,
            self._etcd,
            self._keys,
            self._decisions,
            self._lost,
            lambda key: self._outbox.told_at.get(key, 0),
            self._settings.ttl,
        )
        self._follower.start()
        self._keeper.start()
        self._outbox.start()

    def stop(self) -> None:
        """See Cluster. The other hosts go on sending to this one until the time of its lease is over."""
        self._stop.set()
        self._end_watch()
        for thread in (self._follower, self._keeper):
            if thread.is_alive():
                thread.join()
        self._outbox.stop()
        self._etcd.close()

    # What other hosts have a say in

    def join(self, core: Core, live: LiveNetwork) -> Lease | None:
        """See Cluster."""
        self._check_reachable()
        with self._asking():
            self._outbox.flush()
            self._outbox.rejoined(live.record.name)
            self._decisions.define(live)
            try:
                return self._decisions.lease(core, live)
            except ConetError:
                self._decisions.sweep(live.record.name)  # nobody may be on it yet
                raise

    def joined(self, core: Core, name: str) -> None:
        """See Cluster."""
        with self._outbox.working:
            try:
                self._copies.load(name)
            except EtcdDown as err:
                self._away(err.message)
                self._end_watch()

    def allocate(self, core: Core, live: LiveNetwork, labels: Labels, handle: str | None) -> Identity:
        """See Cluster."""
        name = live.record.name
        taken = core.networks.get(name).network.identities.by_number
        self._check_reachable()
        with self._asking():  # no listing in between, which would not have it yet
            one = self._decisions.identity(name, labels, handle, taken)
            self._database.write(lambda db: cluster.put_uses(db, name, (one.number,)))
            core.on_lane(change_identities, core, name, (one,), ())
        return one

    def held(self, core: Core, live: LiveNetwork) -> set[int]:
        """See Cluster."""
        return cluster.uses(self._database.reader(), live.record.name)

    def use(self, core: Core, live: LiveNetwork, numbers: Collection[int]) -> None:
        """See Cluster."""
        name = live.record.name
        fresh = set(numbers) - self.held(core, live)
        if not fresh:
            return

        def write(db: sqlite3.Connection) -> None:
            cluster.put_uses(db, name, fresh)
            self.post(db, {Key(Kind.USE, name, host=self.host, number=number): "" for number in fresh})

        self._database.write(write)

    def release(self, core: Core, live: LiveNetwork, numbers: Collection[int]) -> None:
        """See Cluster."""
        name = live.record.name
        with self._asking():
            for number in numbers:
                self._decisions.release(name, number)
            self._database.write(lambda db: cluster.delete_uses(db, name, numbers))

    def know(self, core: Core, handle: str, networks: Collection[str]) -> None:
        """See Cluster."""
        if self._problem is not None:
            return
        try:
            self._copies.policies_of(handle, networks)
        except EtcdDown as err:
            log.warning("what other hosts know of a container could not be asked", extra={"error": err.message})

    def forget_host(self, host: str) -> None:
        """See Cluster."""
        self._check_reachable()
        if host == self.host:
            raise Conflict(f'host "{host}" is this one, which lives; to leave a network, delete it here')
        self._decisions.forget_host(host)
        log.warning("host forgotten", extra={"host": host})

    # What others are told

    def post(self, db: sqlite3.Connection, told: Mapping[Key, str | None]) -> None:
        """See Cluster."""
        cluster.post(db, {self._keys.key(key): value for key, value in told.items()})

    def hurry(self) -> None:
        """See Cluster."""
        self._outbox.hurry()

    def leave(self, db: sqlite3.Connection, name: str) -> None:
        """See Cluster."""
        lease, _ = cluster.host_leases(db, name)
        if lease is not None:
            self._leave(db, name, lease)

    def give_up(self, db: sqlite3.Connection, live: LiveNetwork) -> None:
        """See Cluster."""
        if live.network.lease is not None:
            self._leave(db, live.record.name, live.network.lease)

    def _leave(self, db: sqlite3.Connection, name: str, lease: Lease) -> None:
        # What was still to be told of the network means nothing any more, and must not come after its end.
        cluster.drop_outbox(db, cluster.outbox_of(db, [self._keys.below(kind, name) for kind in Kind]))
        cluster.drop_outbox(db, [self._keys.network(name)])
        numbers = set(cluster.addresses_at(db, name, self.host))
        told: dict[Key, str | None] = {Key(Kind.LEASE, name, host=self.host): None}
        told |= {Key(Kind.CLAIM, name, claim): None for claim in lease.claims}
        told |= {Key(Kind.ASK, name, host=self.host): None}
        told |= {Key(Kind.ADDRESSES, name, host=self.host, number=number): None for number in numbers}
        told |= {Key(Kind.USE, name, host=self.host, number=one): None for one in cluster.uses(db, name)}
        self.post(db, told)
        self._frozen.pop(name, None)

    def posted(self, keys: Collection[Key]) -> Future[JSON | None]:
        """See Cluster."""
        return self._outbox.wait_for([self._keys.key(key) for key in keys])

    # How it stands

    def frozen(self, name: str) -> str | None:
        """See Cluster."""
        return self._frozen.get(name)

    def describe(self, core: Core) -> JSON | None:
        """See Cluster."""
        problem = self._problem or next(iter(self._frozen.values()), None) or self._outbox.problem
        told: JSON = {
            "host": self.host,
            "etcd": list(self._settings.etcd),
            "state": "connected" if self._problem is None else "away",
            "since": round(self._since),
            "revision": self._revision,
            "pending": cluster.outbox_size(core.database.reader()),
            "networks": {live.record.name: self._network(live) for live in core.networks.all() if is_clustered(live)},
        }
        return told | ({} if problem is None else {"problem": problem})

    def _network(self, live: LiveNetwork) -> JSON:
        network = live.network
        told: JSON = {
            "lease": None if network.lease is None else network.lease.data,
            "hosts": sorted({*network.members, *([self.host] if network.lease is not None else [])}),
            "identities": len(network.identities.by_number),
        }
        frozen = self._frozen.get(live.record.name)
        return told if frozen is None else told | {"frozen": frozen}

    # Following etcd

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._register()
                with self._outbox.working:
                    self._revision = self._copies.snapshot()
                self._settle_networks()
                self._connected()
                self._watch_on()
            except Compacted as err:
                log.info("etcd has forgotten what happened meanwhile, listing anew", extra={"reason": err.message})
            except ConetError as err:
                self._away(err.message)
                self._stop.wait(_RETRY_S)
            except Exception as err:  # whatever it is, the host must go on and say so
                log.exception("following etcd failed, it will be tried again")
                self._away(f"following etcd failed: {type(err).__name__}: {err}")
                self._stop.wait(_RETRY_S)

    def _watch_on(self) -> None:
        with self._etcd.watch(self._keys.all, self._revision + 1) as watch:
            self._watch = watch
            try:
                if self._stop.is_set() or self._problem is not None:
                    return
                for revision, events in gathered(watch):
                    if any(event.key == self._keys.host(self.host) and event.value is None for event in events):
                        self._lose("the lease of this host ended: others took it for dead")
                    with self._outbox.working:  # what lists meanwhile would not have it yet
                        self._copies.apply(events)
                    self._revision = max(self._revision, revision)
            except EtcdDown as err:
                if not self._lease:
                    raise
                # It was one member that ended. Whether the others answer is found out by asking them.
                log.info("etcd is watched anew", extra={"reason": err.message})
            finally:
                self._watch = None

    def _register(self) -> None:
        """Be alive for the others, under a lease that ends unless it is kept. Raises Conflict for a name in use."""
        if self._lease and self._etcd.keep_alive(self._lease) <= 0:
            self._lose("the lease of this host expired: others took it for dead")
        if not self._lease:
            self._lease = self._etcd.grant(self._settings.ttl)
        key = self._keys.host(self.host)
        mine = put(key, self._me, self._lease)
        try:
            done = self._etcd.commit([absent(key)], [mine], [read(key)])
            if not done.succeeded:
                done = self._etcd.commit([value_is(key, self._me)], [mine], [read(key)])
        except LeaseGone:
            self._lease = 0
            raise EtcdDown("the lease of this host expired while it was registered") from None
        if not done.succeeded:
            raise Conflict(
                f'another host calls itself "{self.host}" in the cluster (it may be this one before it lost its '
                f"state: then its lease ends within {self._settings.ttl} s); see the setting cluster.host"
            )

    def _settle_networks(self) -> None:
        """Make sure of what this host has on each network, and get it for those that wait for it."""
        for live in [one for one in self._core.networks.all() if is_clustered(one)]:
            self._secure(live.record.name)

    def _secure(self, name: str) -> None:
        """Get, or get back, what this host has on a network; freeze the network when another host has it."""
        try:
            live = self._core.networks.get(name)
            with self._outbox.working:
                self._outbox.flush()
                self._decisions.define(live, anew=waits(live))
                lease = self._decisions.lease(self._core, live)
        except EtcdDown:
            raise
        except ConetError as err:
            if name in self._core.networks:
                self._freeze(name, err.message)
            return
        if self._frozen.pop(name, None) is not None:
            log.warning("network is no longer frozen", extra={"network": name})
        if lease is not None:
            self._core.on_lane(change_own_lease, self._core, name, lease)

    def _lost(self, name: str) -> None:
        """Somebody took away what this host has on a network: get it back, or freeze."""
        self._freeze(name, f'what host "{self.host}" has on network "{name}" was taken from it')
        self._secure(name)

    def _freeze(self, name: str, reason: str) -> None:
        if self._frozen.get(name) != reason:
            log.error("network is frozen: nothing new is attached to it", extra={"network": name, "reason": reason})
            self._frozen[name] = reason

    def _keep(self) -> None:
        while not self._stop.wait(self._settings.ttl / 3):
            try:
                if self._problem is None and self._lease and self._etcd.keep_alive(self._lease) <= 0:
                    self._lose("the lease of this host expired: others took it for dead")
                if self._problem is None:
                    self._tend()
            except EtcdDown as err:
                self._away(err.message)
                self._end_watch()
            except ConetError as err:
                log.error("the lease could not be kept", extra={"error": err.message})
            except Exception:  # whatever it is, the lease has to be kept
                log.exception("the lease could not be kept, it will be tried again")
        if self._problem is None and self._lease:
            with suppress(ConetError):  # so a restart has all of the lease's time
                self._etcd.keep_alive(self._lease)

    def _tend(self) -> None:
        """What time brings: hosts that do not come back, and networks that may have room for this one now."""
        if not self._outbox.working.acquire(blocking=False):
            return  # the lease cannot wait
        try:
            self._copies.expire()
            for live in [one for one in self._core.networks.all() if is_clustered(one)]:
                if waits(live) or live.record.name in self._frozen:
                    self._secure(live.record.name)
        finally:
            self._outbox.working.release()

    def _lose(self, reason: str) -> None:
        log.error("this host was taken for dead", extra={"reason": reason})
        self._lease = 0
        raise EtcdDown(reason)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """While nobody else tells etcd or lists it.

        Raises Unavailable when etcd does not answer, and at once while it is known not to: those who wait behind the
        first to find that out must not try each for itself.
        """
        while not self._outbox.working.acquire(timeout=_FIRST_S):
            self._check_reachable()
        try:
            self._check_reachable()
            yield
        except EtcdDown as err:
            self._away(err.message)
            self._end_watch()
            raise
        finally:
            self._outbox.working.release()

    def _check_reachable(self) -> None:
        self._tried.wait(_FIRST_S)
        if self._stop.is_set():
            raise Unavailable("conetd is stopping")
        if self._problem is not None:
            raise Unavailable(f"the cluster cannot be asked now: {self._problem}")

    def _connected(self) -> None:
        if self._problem is not None:
            self._problem = None
            self._since = time.time()
            log.info("connected to the cluster", extra={"host": self.host, "revision": self._revision})
            self._core.wake_tender()
        self._tried.set()

    def _away(self, reason: str) -> None:
        if self._problem is None:
            log.error("the cluster is away", extra={"host": self.host, "reason": reason})
            self._since = time.time()
        self._problem = reason
        self._tried.set()

    def _end_watch(self) -> None:
        watch = self._watch
        if watch is not None:
            watch.close()
