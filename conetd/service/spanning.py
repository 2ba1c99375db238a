"""Requests about networks that span hosts: what has to be asked of others is asked before the kernel lane is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future

from conetd.cluster.keys import Key, Kind
from conetd.errors import ConetError
from conetd.model import JSON
from conetd.reconcile import tend
from conetd.reconcile.core import Core
from conetd.reconcile.identities import decide_identities, missing_identities
from conetd.reconcile.joins import choose_joins
from conetd.reconcile.members import tell_subnets
from conetd.reconcile.networks import create_network, join_network, parse_network
from conetd.reconcile.state import LiveNetwork, is_clustered
from conetd.reconcile.up import UpJob
from conetd.service.futures import mapped
from conetd.store import containers

_ANSWER_S = 0.3  # in which other hosts tell where those containers are that nobody has asked for so far


def type_spans(core: Core, type_: str) -> bool:
    """Whether networks of this type span hosts."""
    return type_ in core.drivers and "cluster" in core.drivers[type_].driver.capabilities


def spanning(core: Core, names: Iterable[str]) -> list[str]:
    """Those of the networks that span hosts."""
    return [name for name in names if name in core.networks and is_clustered(core.networks.get(name))]


def create(core: Core, document: JSON, mtu: int) -> tuple[bool, LiveNetwork]:
    """Make a network that spans hosts, this host's part of it first. Not in the kernel lane."""
    joined = join_network(core, parse_network(core, document, mtu))
    try:
        created, live = core.on_lane(create_network, core, joined)
    except BaseException:
        if document["name"] not in core.networks:
            core.database.write(lambda db: core.cluster.give_up(db, joined))
        raise
    core.on_lane(tell_subnets, core)
    if created:
        core.cluster.joined(core, live.record.name)
    return created, core.networks.get(live.record.name)


def ask_for_config(core: Core, handle: str, labels: Mapping[str, str], names: Collection[str]) -> None:
    """Have known what a container that gets this config needs of other hosts. Raises Unavailable, Exhausted."""
    core.cluster.know(core, handle, names)
    container = containers.container(core.database.reader(), handle)
    if container is not None and container.life is not None:
        decide_identities(core, missing_identities(core, handle, labels, names))


def needs_others(core: Core, job: UpJob) -> Callable[[], None] | None:
    """What has to be asked of other hosts before the job can begin; mostly nothing."""
    if not any(type_spans(core, type_) for type_ in core.drivers):
        return None
    container = containers.container(core.database.reader(), job.handle)
    try:
        joins = choose_joins(container, job.properties, core.settings.default_attach_to)
    except ConetError:
        return None  # which the job will say itself
    names = spanning(core, [join.network for join in joins])
    missing = missing_identities(core, job.handle, container.labels if container is not None else {}, names)
    if not names or (container is not None and not missing):
        return None

    def ask() -> None:
        if container is None:
            core.cluster.know(core, job.handle, names)
        decide_identities(core, missing)

    return ask


def ask_ahead(core: Core, handle: str, documents: Mapping[str, JSON]) -> None:
    """Have known here whom these policies allow to send to, before they come into force. Not in the kernel lane."""
    asked = [tend.ask_ahead(core, name, handle, documents[name]) for name in spanning(core, documents)]
    if any(asked):
        time.sleep(_ANSWER_S)


def asked_ahead(core: Core, handle: str, names: Iterable[str]) -> None:
    """The policies are in force, or refused."""
    for name in names:
        tend.asked_ahead(core, name, handle)


def policies_confirmed(core: Core, handle: str, names: Iterable[str], answer: JSON) -> Future[JSON]:
    """The answer to new policies, with what other hosts have been told of them once that is known."""
    return _confirmed(core, [Key(Kind.POLICY, name, handle) for name in spanning(core, names)], answer)


def default_confirmed(core: Core, name: str, answer: JSON) -> Future[JSON]:
    """The answer to a new default policy, likewise."""
    return _confirmed(core, [Key(Kind.NETWORK, one) for one in spanning(core, [name])], answer)


def _confirmed(core: Core, keys: list[Key], answer: JSON) -> Future[JSON]:
    if not keys:
        done: Future[JSON] = Future()
        done.set_result(answer)
        return done
    return mapped(core.cluster.posted(keys), lambda told: answer if told is None else answer | {"cluster": told})
