"""How what other hosts decided gets from etcd into the store, the kernel and the policies of this host.

Everything is said as events: what a listing has is put, and what is known here and not in the listing is deleted.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial

from conetd.cluster.etcd import Etcd
from conetd.cluster.keys import Key, Keys, Kind
from conetd.cluster.messages import Event, KeyValue, read
from conetd.errors import ConetError
from conetd.model import JSON, Identity, label_set
from conetd.reconcile.cluster import Turns
from conetd.reconcile.core import Core
from conetd.reconcile.etcd.decisions import Decisions
from conetd.reconcile.identities import change_addresses, change_identities, know_asks
from conetd.reconcile.members import change_members
from conetd.reconcile.policies import replace_default, replace_policy_of
from conetd.reconcile.state import LiveNetwork, is_clustered, shared_definition
from conetd.store import cluster, containers, encode
from conetd.store.networks import meta, put_meta

log = logging.getLogger(__name__)
_READS_AT_ONCE = 100  # etcd takes 128 operations in a transaction
_ORIGIN = "etcd_origin"
_AWAITED_S = 60.0
_LISTED = (Kind.LEASE, Kind.IDENTITY, Kind.ASK, Kind.ADDRESSES)


class Copies:
    """What is known of the other hosts. `apply` and `snapshot` are for one thread at a time."""

    def __init__(
        self,
        core: Core,
        turns: Turns,
        etcd: Etcd,
        keys: Keys,
        decisions: Decisions,
        lost: Callable[[str], None],
        told_at: Callable[[str], int],
        grace_s: float,
    ) -> None:
        """`lost` is told the name of a network on which somebody took away what this host has.

        `told_at` says of a key at which revision this host told it last. A host that is not listed is taken for gone
        only `grace_s` later: etcd may have been away for longer than its lease was good for.
        """
        self._core = core
        self._turns = turns
        self._etcd = etcd
        self._keys = keys
        self._decisions = decisions
        self._lost = lost
        self._host = core.cluster.host
        self._alive: set[str] = set()
        self._leases: defaultdict[str, dict[str, JSON]] = defaultdict(dict)
        self._told_at = told_at
        self._grace_s = grace_s
        self._doubtful: dict[str, float] = {}  # hosts that a listing did not have, until when they are waited for
        self._awaited: dict[str, float] = {}  # containers that are about to be known here, since when

    def snapshot(self) -> int:
        """Make known here what etcd has; returns the revision at which it was listed. Raises EtcdDown."""
        networks = [live for live in self._core.networks.all() if is_clustered(live)]
        origin, was = self._decisions.origin(), meta(self._core.database.reader(), _ORIGIN)
        another = was != origin
        if another:
            if was is not None:
                log.warning("etcd is another one, or has lost its data: it is told what this host has")
            self._put_back(networks)
        revision, hosts = self._etcd.list(self._keys.below(Kind.HOST))
        found = list(hosts)
        known = {self._keys.host(host) for host in self._alive}
        for live in networks:
            found += self._listed(live.record.name, revision)
            known |= self._known(live)
        found += self._read([self._keys.network(live.record.name) for live in networks])
        policies = self._policy_keys([live.record.name for live in networks])
        found += self._read(policies)
        known -= self._doubt({key.host for one in hosts if (key := self._keys.parse(one.key)) is not None})
        self.apply(_events(found, known if another else known | set(policies)))
        self._tell_what_is_missing(networks, policies if another else (), {one.key for one in found})
        self._abandon([live.record.name for live in networks])
        if origin != was:
            self._core.database.write(lambda db: put_meta(db, _ORIGIN, origin))
        return revision

    def expire(self) -> None:
        """Take the hosts for gone that were not listed and have not come back since."""
        now = time.monotonic()
        gone = [host for host, until in self._doubtful.items() if until <= now]
        for host in gone:
            del self._doubtful[host]
        if gone:
            self.apply([Event(self._keys.host(host), None, 0) for host in gone])

    def _doubt(self, listed: set[str]) -> set[str]:
        """Wait for the hosts that are known to live and not listed; returns their keys."""
        members = {host for live in self._core.networks.all() for host in live.network.members}
        missing = (self._alive | members) - listed - {self._host}
        until = time.monotonic() + self._grace_s
        self._doubtful = {host: self._doubtful.get(host, until) for host in missing}
        self._alive |= missing
        return {self._keys.host(host) for host in missing}

    def _abandon(self, here: Sequence[str]) -> None:
        """Leave the networks that this host was about to make when it ended, and does not know of."""
        defined = [self._keys.parse(one.key) for one in self._etcd.list(self._keys.below(Kind.NETWORK))[1]]
        strange = {key.network for key in defined if key is not None} - set(here)
        told: dict[Key, str | None] = {}
        for one in self._read([self._keys.lease(name, self._host) for name in sorted(strange)]):
            key = self._keys.parse(one.key)
            assert key is not None
            told[key] = None
            told |= {Key(Kind.CLAIM, key.network, claim): None for claim in json.loads(one.value)["claims"]}
        if told:
            log.warning("leaving what was begun and not made", extra={"networks": ",".join(sorted(strange))})
            self._core.database.write(lambda db: self._core.cluster.post(db, told))

    def _put_back(self, networks: Sequence[LiveNetwork]) -> None:
        """Have etcd know again which numbers mean what, before anybody gives them out to others."""
        for live in networks:
            name = live.record.name
            known = self._core.networks.get(name).network.identities.by_number
            if live.network.lease is not None:
                uses = cluster.uses(self._core.database.reader(), name)
                self._decisions.put_back(name, [known[number] for number in sorted(known)], uses)

    def load(self, name: str) -> None:
        """Make known here what etcd has about one network. Raises EtcdDown."""
        revision, hosts = self._etcd.list(self._keys.below(Kind.HOST))
        live = self._core.networks.get(name)
        found = [*hosts, *self._listed(name, revision)]
        found += self._read([self._keys.network(name), *self._policy_keys([name])])
        known = self._known(live) - {self._keys.host(host) for host in self._doubtful}
        self.apply(_events(found, known))

    def policies_of(self, handle: str, networks: Iterable[str]) -> None:
        """Make known here the policies of a container on these networks. Raises EtcdDown. In the container's turn."""
        self._awaited[handle] = time.monotonic()
        db = self._core.database.reader()
        keys = [self._keys.policy(name, handle) for name in networks]
        for one in self._read([key for key in keys if not cluster.in_outbox(db, key)]):
            key = self._keys.parse(one.key)
            if key is not None and key.network in self._core.networks:
                replace = partial(replace_policy_of, self._core, handle, key.network, json.loads(one.value))
                self._core.on_lane(replace)

    def apply(self, events: Sequence[Event]) -> None:
        """Make known here what changed; of several changes of a key the last."""
        latest = {event.key: event for event in events}
        by_kind: defaultdict[Kind, list[tuple[Key, str | None]]] = defaultdict(list)
        for event in latest.values():
            key = self._keys.parse(event.key)
            if key is not None and not self._is_overtaken(event):
                by_kind[key.kind].append((key, event.value))
        self._apply_identities(by_kind[Kind.IDENTITY])
        self._apply_addresses(by_kind[Kind.ADDRESSES])
        self._apply_hosts(by_kind[Kind.HOST], by_kind[Kind.LEASE])
        self._apply_asks(by_kind[Kind.ASK])
        for key, value in by_kind[Kind.CLAIM]:
            self._apply_claim(key, value)
        for key, value in by_kind[Kind.NETWORK]:
            self._apply_network(key, value)
        for key, value in by_kind[Kind.POLICY]:
            self._apply_policy(key, value)

    def _is_overtaken(self, event: Event) -> bool:
        """Whether this host has told something else since: events come late."""
        return 0 < event.mod_revision < self._told_at(event.key)

    def _apply_hosts(self, hosts: list[tuple[Key, str | None]], leases: list[tuple[Key, str | None]]) -> None:
        changed = {key.host for key, _ in hosts}
        self._alive |= {key.host for key, value in hosts if value is not None}
        for key, _ in hosts:
            self._doubtful.pop(key.host, None)
        self._alive -= {key.host for key, value in hosts if value is None}
        affected: defaultdict[str, set[str]] = defaultdict(set)
        for key, value in leases:
            if value is None:
                self._leases[key.network].pop(key.host, None)
                if key.host == self._host and self._is_mine(key.network):
                    self._lost(key.network)
            else:
                self._leases[key.network][key.host] = json.loads(value)["data"]
            affected[key.network].add(key.host)
        for name, members in self._leases.items():
            affected[name] |= changed & (members.keys() | self._members(name))
        for name, some in affected.items():
            members = self._leases[name]
            put = {host: members[host] for host in some if host in self._alive and host in members}
            self._core.on_lane(change_members, self._core, name, put, [host for host in some if host not in put])

    def _apply_identities(self, found: list[tuple[Key, str | None]]) -> None:
        put: defaultdict[str, list[Identity]] = defaultdict(list)
        drop: defaultdict[str, list[int]] = defaultdict(list)
        for key, value in found:
            if value is None:
                drop[key.network].append(key.number)
            else:
                document = json.loads(value)
                one = Identity(key.number, label_set(document["labels"]), document.get("handle"))
                put[key.network].append(one)
        for name in put.keys() | drop.keys():
            self._core.on_lane(change_identities, self._core, name, put[name], drop[name])

    def _apply_addresses(self, found: list[tuple[Key, str | None]]) -> None:
        by_host: defaultdict[tuple[str, str], dict[int, list[str]]] = defaultdict(dict)
        for key, value in found:
            if key.host != self._host:
                by_host[key.network, key.host][key.number] = [] if value is None else json.loads(value)
        for (name, host), addresses in by_host.items():
            self._core.on_lane(change_addresses, self._core, name, host, addresses)

    def _apply_asks(self, found: list[tuple[Key, str | None]]) -> None:
        others = [(key, value) for key, value in found if key.host != self._host and self._is_known(key.network)]
        if not others:
            return

        def write(db: sqlite3.Connection) -> None:
            for key, value in others:
                selectors = [] if value is None else cluster.selectors_of(json.loads(value))
                cluster.put_asks(db, key.network, key.host, selectors)

        self._core.database.write(write)
        db = self._core.database.reader()
        for name in {key.network for key, _ in others}:
            know_asks(self._core, name, cluster.asks(db, name))
        self._core.wake_tender()

    def _apply_claim(self, key: Key, value: str | None) -> None:
        if not self._is_mine(key.network):
            return
        lease = self._core.networks.get(key.network).network.lease
        if lease is not None and key.name in lease.claims and (value is None or not _is_of(value, self._host)):
            self._lost(key.network)

    def _apply_network(self, key: Key, value: str | None) -> None:
        if value is None or not self._is_mine(key.network):
            return
        if cluster.in_outbox(self._core.database.reader(), self._keys.key(key)):
            return  # this host has a later wish
        document = json.loads(value)["default_policy"]
        if self._core.networks.get(key.network).record.default_policy != document:
            still = partial(self._still_wanted, self._keys.key(key), self._told_at(self._keys.key(key)))
            work = partial(_replace_default, name=key.network, document=document, still=still)
            _log_failure(self._turns.network(key.network, work), {"network": key.network})

    def _apply_policy(self, key: Key, value: str | None) -> None:
        db = self._core.database.reader()
        handle, name = key.name, key.network
        if not self._is_known(name) or not (self._is_awaited(handle) or containers.container(db, handle) is not None):
            return
        if cluster.in_outbox(db, self._keys.key(key)):
            return  # this host has a later wish
        document = None if value is None else json.loads(value)
        own = containers.policies_of(db, handle).get(name)
        if (own[1] if own is not None else None) != document:
            still = partial(self._still_wanted, self._keys.key(key), self._told_at(self._keys.key(key)))
            work = partial(_replace_policy, handle=handle, name=name, document=document, still=still)
            _log_failure(self._turns.container(handle, work), {"handle": handle, "network": name})

    def _still_wanted(self, key: str, told_at: int) -> bool:
        """Whether this host has wished nothing else since, now that it is the other's turn."""
        return self._told_at(key) == told_at and not cluster.in_outbox(self._core.database.reader(), key)

    def _is_awaited(self, handle: str) -> bool:
        """Whether it has just been asked for: it may be stored only now, and what came between must not be lost."""
        for one, since in list(self._awaited.items()):
            if time.monotonic() - since < _AWAITED_S:
                break
            self._awaited.pop(one, None)
        return handle in self._awaited

    def _listed(self, name: str, revision: int) -> list[KeyValue]:
        found: list[KeyValue] = []
        for kind in _LISTED:
            found += self._etcd.list(self._keys.below(kind, name), revision)[1]
        lease = self._core.networks.get(name).network.lease
        if lease is not None:
            found += self._read([self._keys.claim(name, claim) for claim in lease.claims])
        return found

    def _known(self, live: LiveNetwork) -> set[str]:
        """The keys about a network that this host goes by."""
        name, network = live.record.name, live.network
        db = self._core.database.reader()
        hosts = {*network.members, *self._leases[name]}
        known = {self._keys.lease(name, host) for host in hosts}
        known |= {self._keys.host(host) for host in network.members}
        known |= {self._keys.identity(name, number) for number in network.identities.by_number}
        asking = cluster.asks(db, name)
        known |= {self._keys.ask(name, host) for host in asking}
        known |= {
            self._keys.addresses(name, number, host)
            for host in {*hosts, *asking}
            for number in cluster.addresses_at(db, name, host)
        }
        if network.lease is not None:
            known.add(self._keys.lease(name, self._host))
            known |= {self._keys.claim(name, claim) for claim in network.lease.claims}
        return known

    def _policy_keys(self, names: Sequence[str]) -> list[str]:
        db = self._core.database.reader()
        handles = [one.handle for one in containers.containers(db)]
        return [self._keys.policy(name, handle) for name in names for handle in handles]

    def _read(self, keys: Sequence[str]) -> list[KeyValue]:
        found: list[KeyValue] = []
        for start in range(0, len(keys), _READS_AT_ONCE):
            done = self._etcd.commit([], [read(key) for key in keys[start : start + _READS_AT_ONCE]])
            found += [one for answer in done.answers for one in answer]
        return found

    def _tell_what_is_missing(self, networks: Sequence[LiveNetwork], policies: Sequence[str], there: set[str]) -> None:
        """Have etcd told what it does not know of this host's containers: it was away, new, or has lost it."""
        db = self._core.database.reader()
        told: dict[Key, str | None] = {}
        own = containers.all_policies(db)
        for key in policies:
            parsed = self._keys.parse(key)
            assert parsed is not None
            document = own.get(parsed.name, {}).get(parsed.network)
            if key not in there and document is not None and not cluster.in_outbox(db, key):
                told[parsed] = encode(document[1])
        for live in networks:
            name = live.record.name
            if live.network.lease is not None and self._keys.network(name) not in there:
                told[Key(Kind.NETWORK, name)] = encode(shared_definition(live))
            mine = cluster.asks(db, name).get(self._host)
            if mine and self._keys.ask(name, self._host) not in there:
                told[Key(Kind.ASK, name, host=self._host)] = encode(cluster.selector_documents(mine))
            for number, some in cluster.addresses_at(db, name, self._host).items():
                if self._keys.addresses(name, number, self._host) not in there:
                    told[Key(Kind.ADDRESSES, name, host=self._host, number=number)] = encode(some)
        if told:
            self._core.database.write(lambda db: self._core.cluster.post(db, told))

    def _members(self, name: str) -> set[str]:
        return set(self._core.networks.get(name).network.members) if name in self._core.networks else set()

    def _is_known(self, name: str) -> bool:
        return name in self._core.networks and is_clustered(self._core.networks.get(name))

    def _is_mine(self, name: str) -> bool:
        """Whether this host is on the network, and has not just left it."""
        if not self._is_known(name) or self._core.networks.get(name).network.lease is None:
            return False
        return not cluster.in_outbox(self._core.database.reader(), self._keys.lease(name, self._host))


def _events(found: Sequence[KeyValue], known: set[str]) -> list[Event]:
    gone = known - {one.key for one in found}
    return [
        *(Event(one.key, one.value, one.mod_revision) for one in found),
        *(Event(key, None, 0) for key in sorted(gone)),
    ]


def _is_of(value: str, host: str) -> bool:
    return bool(json.loads(value).get("host") == host)


def _replace_default(core: Core, *, name: str, document: JSON, still: Callable[[], bool]) -> None:
    if name in core.networks and still():
        replace_default(core, core.networks.get(name), document, tell=False)


def _replace_policy(core: Core, *, handle: str, name: str, document: JSON | None, still: Callable[[], bool]) -> None:
    if still() and containers.container(core.database.reader(), handle) is not None:
        replace_policy_of(core, handle, name, document)


def _log_failure(future: Future[None], about: JSON) -> None:
    def done(done: Future[None]) -> None:
        error = done.exception()
        if isinstance(error, ConetError):
            log.error("a wish of another host failed", extra=about | {"error": error.message})
        elif error is not None:
            log.error("a wish of another host failed", extra=about, exc_info=error)

    future.add_done_callback(done)
