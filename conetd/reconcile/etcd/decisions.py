"""How hosts decide together in etcd's transactions: what a network is, who has which part of it, which number is whose.

Every decision may be asked for again, also after an attempt whose answer was lost.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from functools import partial
from hashlib import blake2b

from conetd.cluster.etcd import Etcd
from conetd.cluster.keys import Key, Keys, Kind
from conetd.cluster.messages import (
    KeyValue,
    Operation,
    absent,
    delete,
    delete_below,
    exists,
    none_below,
    put,
    read,
    value_is,
)
from conetd.errors import Conflict, NotFound, Unavailable
from conetd.model import JSON, Identity, Labels, Lease
from conetd.reconcile.cluster import free_number, lease_value, this_host
from conetd.reconcile.core import Core
from conetd.reconcile.networks import difference
from conetd.reconcile.state import LiveNetwork, shared_definition
from conetd.store import NetworkRecord, encode

_AT_ONCE = 100  # keys; etcd takes 128 operations in a transaction
_TRIES = 1000  # other hosts can be quicker that often before we give up
_OF_A_NETWORK = (
    Kind.CLAIM, Kind.IDENTITY, Kind.IDENTITY_OF, Kind.USE, Kind.ASK, Kind.ADDRESSES, Kind.POLICY, Kind.LEASE
)  # fmt: skip


class Decisions:
    """Decides for one host. All methods may be called from any thread, and wait for etcd."""

    def __init__(self, etcd: Etcd, keys: Keys, host: str) -> None:
        self._etcd = etcd
        self._keys = keys
        self._host = host
        self._holder = encode({"host": host})

    def define(self, live: LiveNetwork, *, anew: bool = True) -> None:
        """Agree with the other hosts on what the network is; `anew`: this one was not on it so far.

        Then they have to agree on its default policy, too, and what an earlier network of that name left is forgotten.
        Raises Conflict naming the field that they have otherwise.
        """
        name, key = live.record.name, self._keys.network(live.record.name)
        wanted = shared_definition(live)
        for _ in range(_TRIES):
            fresh = [absent(key), none_below(self._keys.below(Kind.LEASE, name))]
            if anew and self._etcd.commit(fresh, [*self._forget(name), put(key, encode(wanted))]).succeeded:
                return
            done = self._etcd.commit([absent(key)], [put(key, encode(wanted))], [read(key)])
            if done.succeeded:
                return
            if not done.answers[0]:
                continue
            text = done.answers[0][0].value
            there = json.loads(text)
            if there == wanted or (not anew and there == wanted | {"default_policy": there["default_policy"]}):
                return
            # What no host is on is left over from hosts that could not say that they left.
            unused = [value_is(key, text), none_below(self._keys.below(Kind.LEASE, name))]
            if self._etcd.commit(unused, [*self._forget(name), put(key, encode(wanted))]).succeeded:
                return
            raise Conflict(
                f'network "{name}" is otherwise on the other hosts of the cluster: '
                + difference(_record(name, there), _record(name, wanted))
            )
        raise _too_many(f'what network "{name}" is')

    def lease(self, core: Core, live: LiveNetwork) -> Lease | None:
        """Decide what this host has on the network; what it had it keeps. None: nothing.

        Raises Conflict when another host has it meanwhile, Exhausted, and Invalid for a host that cannot take part.
        """
        name, driver = live.record.name, live.loaded.driver
        key = self._keys.lease(name, self._host)
        for _ in range(_TRIES):
            holders = self._holders(name)
            held = frozenset(claim for claim, holder in holders.items() if holder != self._host)
            current = live.network.lease
            if current is None:
                found = self._etcd.get(key)
                current = None if found is None else read_lease(found.value)
            if current is not None and current.claims & held:
                taken = sorted(current.claims & held)[0]
                raise Conflict(
                    f'host "{holders[taken]}" has "{taken}" of network "{name}" now, which host "{self._host}" has too'
                )
            host = this_host(self._host)
            allocate = partial(driver.allocate_host, live.network, host, current, held)
            lease: Lease | None = core.ask(live.loaded, "allocate_host", allocate)
            if lease is None:
                return None
            claims = {claim: self._keys.claim(name, claim) for claim in lease.claims}
            free = [
                value_is(claims[one], self._holder) if one in holders else absent(claims[one]) for one in sorted(claims)
            ]
            wanted = [put(one, self._holder) for one in claims.values()]
            defined = exists(self._keys.network(name))
            if self._etcd.commit([defined, *free], [*wanted, put(key, lease_value(lease))]).succeeded:
                return lease
            # The last of the others may have left meanwhile, so that all have forgotten the network.
            self.define(live, anew=live.network.lease is None)
        raise _too_many(f'the place of host "{self._host}" in network "{name}"')

    def identity(self, name: str, labels: Labels, handle: str | None, taken: Collection[int]) -> Identity:
        """Decide on the number of a label set (and handle). Raises Exhausted."""
        meant = self._keys.identity_of(name, identity_digest(labels, handle))
        document = identity_value(labels, handle)
        passed: set[int] = set(taken)
        for _ in range(_TRIES):
            known = self._etcd.commit([absent(meant)], [read(self._keys.next(name))], [read(meant)])
            [found] = known.answers
            if not known.succeeded:
                if not found:
                    continue
                number = int(found[0].value)
                same = [value_is(meant, found[0].value), value_is(self._keys.identity(name, number), document)]
                if self._etcd.commit(same, [put(self._keys.use(name, number, self._host), "")]).succeeded:
                    return Identity(number, labels, handle)
                continue
            number = free_number(name, passed, int(found[0].value) if found else 0)
            key = self._keys.identity(name, number)
            operations = [
                put(key, document),
                put(meant, str(number)),
                put(self._keys.next(name), str(number)),
                put(self._keys.use(name, number, self._host), ""),
            ]
            done = self._etcd.commit([absent(meant), absent(key)], operations, [read(key)])
            if done.succeeded:
                return Identity(number, labels, handle)
            if done.answers[0]:
                passed.add(number)
        raise _too_many(f'an identity on network "{name}"')

    def origin(self) -> str:
        """The text that this etcd was given when the first host came to it."""
        key = self._keys.key(Key(Kind.ORIGIN))
        fresh = uuid.uuid4().hex
        done = self._etcd.commit([absent(key)], [put(key, fresh)], [read(key)])
        return fresh if done.succeeded or not done.answers[0] else done.answers[0][0].value

    def put_back(self, name: str, identities: Collection[Identity], used: Collection[int]) -> None:
        """Give identities the numbers again which they had before etcd lost its data; those taken meanwhile stay so."""
        if not identities:
            return
        self._etcd.commit(
            [absent(self._keys.next(name))], [put(self._keys.next(name), str(max(one.number for one in identities)))]
        )
        for one in identities:
            key = self._keys.identity(name, one.number)
            meant = self._keys.identity_of(name, identity_digest(one.labels, one.handle))
            document = identity_value(one.labels, one.handle)
            use = [put(self._keys.use(name, one.number, self._host), "")] if one.number in used else []
            wanted = [put(key, document), put(meant, str(one.number)), *use]
            if not self._etcd.commit([absent(key), absent(meant)], wanted).succeeded and use:
                self._etcd.commit([value_is(key, document), value_is(meant, str(one.number))], use)

    def release(self, name: str, number: int) -> None:
        """Say that this host needs the identity no longer; it goes when no host does."""
        self._etcd.commit([], [delete(self._keys.use(name, number, self._host))])
        key = self._keys.identity(name, number)
        found = self._etcd.get(key)
        if found is not None:
            meant = self._keys.identity_of(name, digest_of_value(found.value))
            unused = [value_is(key, found.value), none_below(self._keys.below(Kind.USE, name, number))]
            self._etcd.commit(unused, [delete(key), delete(meant)])

    def forget_host(self, host: str) -> None:
        """Give back what a dead host has, on every network. Raises NotFound, and Conflict while it lives."""
        dead = absent(self._keys.host(host))
        found = [one for one in self._etcd.list(self._keys.all)[1] if self._belongs(one, host)]
        if not found:
            raise NotFound(f'no network has a host "{host}"')
        for start in range(0, len(found), _AT_ONCE):
            gone = found[start : start + _AT_ONCE]
            # another may have forgotten it meanwhile, and a third have what was its
            same = [value_is(one.key, one.value) for one in gone]
            done = self._etcd.commit([dead, *same], [delete(one.key) for one in gone], [read(self._keys.host(host))])
            if not done.succeeded and done.answers[0]:
                raise Conflict(f'host "{host}" lives')
            if not done.succeeded:
                self.forget_host(host)
                return
        for name in {key.network for one in found if (key := self._keys.parse(one.key)) is not None}:
            self.sweep(name)

    def _belongs(self, found: KeyValue, host: str) -> bool:
        key = self._keys.parse(found.key)
        if key is None or key.kind is Kind.HOST:
            return False
        return key.host == host or (key.kind is Kind.CLAIM and json.loads(found.value).get("host") == host)

    def sweep(self, name: str) -> None:
        """Forget everything about the network if no host is on it."""
        self._etcd.commit([none_below(self._keys.below(Kind.LEASE, name))], self._forget(name, definition_too=True))

    def _forget(self, name: str, *, definition_too: bool = False) -> list[Operation]:
        gone = [delete_below(self._keys.below(kind, name)) for kind in _OF_A_NETWORK]
        gone.append(delete(self._keys.next(name)))
        return [*gone, delete(self._keys.network(name))] if definition_too else gone

    def _holders(self, name: str) -> dict[str, str]:
        """Claim to the host that holds it."""
        _, found = self._etcd.list(self._keys.below(Kind.CLAIM, name))
        parsed = [(self._keys.parse(one.key), one.value) for one in found]
        return {key.name: json.loads(value)["host"] for key, value in parsed if key is not None}


def read_lease(value: str) -> Lease:
    """The lease that `lease_value` says so."""
    document = json.loads(value)
    return Lease(document["data"], frozenset(document["claims"]))


def identity_value(labels: Labels, handle: str | None) -> str:
    """An identity as etcd has it."""
    return encode({"labels": dict(labels)} | ({} if handle is None else {"handle": handle}))


def identity_digest(labels: Labels, handle: str | None) -> str:
    """32 characters that stand for a label set and handle."""
    return digest_of_value(identity_value(labels, handle))


def digest_of_value(value: str) -> str:
    """The same of an identity as etcd has it."""
    return blake2b(value.encode(), digest_size=16).hexdigest()


def _record(name: str, document: JSON) -> NetworkRecord:
    return NetworkRecord(name, document["type"], document["config"], document["default_policy"], 0)


def _too_many(what: str) -> Unavailable:
    return Unavailable(f"other hosts were quicker {_TRIES} times over in deciding {what}")
