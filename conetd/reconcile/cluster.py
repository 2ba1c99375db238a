"""What the reconciler asks of whoever decides among hosts: leases, identities, and what others should know."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from conetd.cluster.keys import Key
from conetd.errors import Exhausted, NotFound
from conetd.kernel import host as kernel_host
from conetd.kernel.netlink import NETLINK_ROUTE, Netlink
from conetd.model import IDENTITY_MAX, JSON, Host, Identity, Labels, Lease
from conetd.reconcile.state import LiveNetwork
from conetd.store import encode

if TYPE_CHECKING:
    from conetd.reconcile.core import Core


Work = Callable[["Core"], None]


@dataclass(frozen=True, slots=True)
class Turns:
    """How work is done when nobody else works on the same container, or network: by handle, or by name.

    The work runs in the kernel lane if all it touches is of planned types.
    """

    container: Callable[[str, Work], Future[None]]
    network: Callable[[str, Work], Future[None]]


class Cluster(Protocol):
    """Who decides what belongs to which host. What is decided is in the store before it is used."""

    host: str
    """This host's name."""
    agreed: bool
    """Whether the numbers of identities are the same on all hosts."""

    def start(self, core: Core, turns: Turns) -> None:
        """Begin to work."""

    def stop(self) -> None:
        """End. What is decided stays so."""

    def join(self, core: Core, live: LiveNetwork) -> Lease | None:
        """Decide what this host has on a network that it is about to make; None: nothing.

        Twice is once. Raises Conflict when the network is defined otherwise, Exhausted, Invalid, Unavailable.
        """

    def joined(self, core: Core, name: str) -> None:
        """Have what others did on the network known here, now that it is made."""

    def allocate(self, core: Core, live: LiveNetwork, labels: Labels, handle: str | None) -> Identity:
        """Decide on the number of a label set (and handle), and have it known here. Raises Exhausted, Unavailable."""

    def held(self, core: Core, live: LiveNetwork) -> set[int]:
        """The numbers of the identities that are not let go because of this host."""

    def use(self, core: Core, live: LiveNetwork, numbers: Collection[int]) -> None:
        """Keep others from letting go of these identities, which containers here have."""

    def release(self, core: Core, live: LiveNetwork, numbers: Collection[int]) -> None:
        """Let go of identities that nothing on this host needs any more."""

    def know(self, core: Core, handle: str, networks: Collection[str]) -> None:
        """Have known here what other hosts were told of a container, as far as they can be asked."""

    def post(self, db: sqlite3.Connection, told: Mapping[Key, str | None]) -> None:
        """Have other hosts be told, in a transaction of the store: value by key; None: there is none any more."""

    def hurry(self) -> None:
        """Have other hosts be told at once, rather than soon."""

    def leave(self, db: sqlite3.Connection, name: str) -> None:
        """Have other hosts be told, in a transaction of the store, that this one leaves a network."""

    def give_up(self, db: sqlite3.Connection, live: LiveNetwork) -> None:
        """Have other hosts be told that this one has no part in a network it joined and then could not make."""

    def forget_host(self, host: str) -> None:
        """Give back what a host that will not return has. Raises NotFound, Conflict while it lives, Unavailable."""

    def posted(self, keys: Collection[Key]) -> Future[JSON | None]:
        """What the answer to a client says of how far the others have been told; None: nothing. Done within seconds."""

    def frozen(self, name: str) -> str | None:
        """Why nothing may be attached to the network now, if so."""

    def describe(self, core: Core) -> JSON | None:
        """What `GET /status` says of it; `problem` is there when something is wrong."""


class Alone:
    """No other hosts, or none that can be asked: whatever is free in the store is this host's."""

    agreed = False

    def __init__(self, host: str) -> None:
        self.host = host
        self._last: dict[str, int] = {}
        self._deciding = threading.Lock()

    def start(self, core: Core, turns: Turns) -> None:
        """See Cluster. What is left of a cluster that the settings no longer have goes."""
        from conetd.reconcile.members import forget_others

        for live in core.networks.all():
            core.on_lane(forget_others, core, live.record.name)

    def stop(self) -> None:
        """See Cluster."""

    def join(self, core: Core, live: LiveNetwork) -> Lease | None:
        """See Cluster."""
        driver, network = live.loaded.driver, live.network
        return core.ask(
            live.loaded,
            "allocate_host",
            lambda: driver.allocate_host(network, this_host(self.host), network.lease, frozenset()),
        )

    def joined(self, core: Core, name: str) -> None:
        """See Cluster."""

    def allocate(self, core: Core, live: LiveNetwork, labels: Labels, handle: str | None) -> Identity:
        """See Cluster."""
        from conetd.reconcile.identities import change_identities

        name = live.record.name
        with self._deciding:  # two that need the same number at once must not get one each
            known = core.networks.get(name).network.identities
            number = known.number(labels, handle)
            if not number:
                last = self._last.get(name, max(known.by_number, default=0))
                number = self._last[name] = free_number(name, known.by_number, last)
                core.on_lane(change_identities, core, name, (Identity(number, labels, handle),), ())
            return Identity(number, labels, handle)

    def held(self, core: Core, live: LiveNetwork) -> set[int]:
        """See Cluster."""
        return set(core.networks.get(live.record.name).network.identities.by_number)

    def use(self, core: Core, live: LiveNetwork, numbers: Collection[int]) -> None:
        """See Cluster."""

    def release(self, core: Core, live: LiveNetwork, numbers: Collection[int]) -> None:
        """See Cluster."""
        from conetd.reconcile.identities import change_identities

        core.on_lane(change_identities, core, live.record.name, (), tuple(numbers))

    def know(self, core: Core, handle: str, networks: Collection[str]) -> None:
        """See Cluster."""

    def post(self, db: sqlite3.Connection, told: Mapping[Key, str | None]) -> None:
        """See Cluster."""

    def hurry(self) -> None:
        """See Cluster."""

    def leave(self, db: sqlite3.Connection, name: str) -> None:
        """See Cluster."""

    def give_up(self, db: sqlite3.Connection, live: LiveNetwork) -> None:
        """See Cluster."""

    def forget_host(self, host: str) -> None:
        """See Cluster."""
        raise NotFound("there are no other hosts: this one has no cluster, see the setting of that name")

    def posted(self, keys: Collection[Key]) -> Future[JSON | None]:
        """See Cluster."""
        done: Future[JSON | None] = Future()
        done.set_result(None)
        return done

    def frozen(self, name: str) -> str | None:
        """See Cluster."""
        return None

    def describe(self, core: Core) -> JSON | None:
        """See Cluster."""
        return None


def lease_value(lease: Lease) -> str:
    """A host's lease as the others are told of it."""
    return encode({"data": lease.data, "claims": sorted(lease.claims)})


def this_host(name: str) -> Host:
    """This host as drivers see it, as it is now."""
    with Netlink(NETLINK_ROUTE) as netlink:
        return Host(name, kernel_host.interfaces(netlink), kernel_host.sources(netlink))


def free_number(network: str, taken: Collection[int], last: int) -> int:
    """The first identity number behind `last` that is not taken, from the beginning again after the end.

    So a number that was let go is used again as late as can be. Raises Exhausted.
    """
    for number in itertools.chain(range(last + 1, IDENTITY_MAX + 1), range(1, last + 1)):
        if number not in taken:
            return number
    raise Exhausted(
        f'network "{network}" has no identity left: {IDENTITY_MAX} label sets and named handles have all there are'
    )
