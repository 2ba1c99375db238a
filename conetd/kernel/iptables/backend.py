"""The packet filter in legacy iptables tables, through python-iptables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from conetd.errors import DriverError, KernelError
from conetd.kernel.iptables import adopt
from conetd.kernel.iptables.client import Worker
from conetd.kernel.iptables.drift import drifts
from conetd.kernel.iptables.layout import FAMILIES, TABLES, Identity, Layout, Opened, Wanted, WantedTable
from conetd.kernel.iptables.protocol import Glance, Tables
from conetd.plan import Drift, Endpoint, EndpointPolicy, FilterObject, NetworkFilter, TunnelPeer, identity

_WHOLE_LOOK_SECONDS = 30  # a change that keeps the number and sizes of all rules is noticed after so long


class IptablesBackend:
    """Keeps `FilterBackend`. Works in the network namespace of the thread that constructs it.

    Every call compares all our chains with the kernel's and writes the tables that differ: each table of each family
    in one commit. Across tables what closes is committed before what opens, and an `apply` that fails puts the tables
    back that it had changed; where that fails too, `disturbed` says so until the next `sync`.

    What an earlier life of the daemon left stays in force beside what is applied until the first `sync`.

    An accept of ours is the kernel's: rules of others behind our jump in FORWARD do not see that packet, rules before
    it judge first. What the host's INPUT chain keeps out stays out also with `host_access`.

    Frames that stay inside a bridge come by only with bridge-nf-call-iptables = 1. Without, this backend can neither
    isolate the containers of one bridge from each other (it does so for what goes through the host), nor hold a
    source address against its owner between them, nor silence an endpoint that is gone before its link is. ARP, other
    protocols than IP, and neighbour discovery that lies about somebody else's address never come by. What the host
    itself sends to a container is not judged.

    Tunnels and rules for what stays inside a network need nftables: whatever asks for them is refused with DriverError,
    and nothing is changed.
    """

    name = "iptables"
    fast_path: None = None

    def __init__(self) -> None:
        """Start the worker. Raises DriverError when python-iptables is not installed, KernelError without tables."""
        self._worker = Worker()
        try:
            self._left: adopt.Left = self._worker.call("left")
        except BaseException:
            self._worker.close()
            raise
        self._layout = Layout()
        self._objects: dict[Identity, FilterObject] = {}
        self._opened: Opened = adopt.opened(self._left)
        self._shut: frozenset[str] = adopt.shut(self._left)
        self._glance: Glance | None = None
        self._suspect = False
        self._next_whole_look = 0.0

    @property
    def worker_pid(self) -> int | None:
        """The process that touches the tables, for those who look after processes."""
        return self._worker.pid

    def apply(self, put: Sequence[FilterObject] = (), drop: Sequence[Identity] = ()) -> None:
        """See FilterBackend.apply."""
        _refuse_what_needs_nftables(put)
        objects = dict(self._objects)
        for one in drop:
            objects.pop(one, None)
        for wanted in put:
            objects[identity(wanted)] = wanted
        shut = self._shut | _left_behind(self._objects, objects)
        names = sorted({" ".join(one) for one in (*drop, *map(identity, put))})
        self._commit(objects, self._opened, self._still_there(shut), " for " + ", ".join(names))

    def held(self, kind: str, key: str) -> FilterObject | None:
        """See FilterBackend.held."""
        return self._objects.get((kind, key))

    def sync(self, wanted: Sequence[FilterObject]) -> Sequence[Drift]:
        """See FilterBackend.sync."""
        _refuse_what_needs_nftables(wanted)
        objects = {identity(one): one for one in wanted}
        shut = self._still_there(self._shut | _left_behind(self._objects, objects))
        tables = self._layout.build(objects, self._opened, shut)
        differences, self._glance = self._worker.call("apply", _plain(tables))
        self._objects, self._left, self._shut, self._suspect = objects, {}, shut, False
        return drifts(tables, differences)

    def check(self, wanted: Sequence[FilterObject]) -> Sequence[Drift]:
        """See FilterBackend.check."""
        _refuse_what_needs_nftables(wanted)
        asked = {identity(one): one for one in wanted}
        tables = self._layout.build({**self._objects, **asked}, self._opened, self._shut)
        differences, _glance = self._worker.call("check", _plain(tables))
        return drifts(tables, differences, only=asked)

    def disturbed(self) -> bool:
        """See FilterBackend.disturbed.

        Legacy tables count no changes. Each call compares the number and sizes of each table's rules, a system call a
        table; only where they differ, and every 30 s, our rules are read. Foreign changes do not count. A call also
        removes what kept the links of endpoints shut that are gone.
        """
        if self._shut:
            remaining = self._still_there(self._shut)
            if remaining != self._shut:
                self._commit(self._objects, self._opened, remaining, "")
        glance: Glance = self._worker.call("glance")
        now = time.monotonic()
        if glance != self._glance or now >= self._next_whole_look:
            tables = self._layout.build(self._objects, self._opened, self._shut)
            differences, self._glance = self._worker.call("check", adopt.beside(self._left, _plain(tables)))
            self._next_whole_look = now + _WHOLE_LOOK_SECONDS
            self._suspect |= bool(differences)
        return self._suspect

    def set_opened(self, version: int, uplinks: Sequence[str]) -> None:
        """See FilterBackend.set_opened."""
        others = {one for one in self._opened if one[0] != version}
        opened = tuple(sorted({*others, *((version, link) for link in uplinks)}))
        if opened != self._opened:
            self._commit(self._objects, opened, self._shut, "")

    def remove_all(self) -> None:
        """See FilterBackend.remove_all."""
        self._left = {}
        # nothing is closed first: another backend judges from now on, and what it lets pass must pass here
        _differences, self._glance = self._worker.call("apply", _plain(self._layout.build({})), False)
        self._objects, self._opened, self._shut = {}, (), frozenset()

    def close(self) -> None:
        """See FilterBackend.close."""
        self._worker.close()

    def _commit(
        self, objects: dict[Identity, FilterObject], opened: Opened, shut: frozenset[str], what_for: str
    ) -> None:
        try:
            self._write(self._layout.build(objects, opened, shut))
        except KernelError as err:
            failure = KernelError(err.operation, err.object + what_for, err.errno, err.detail)
            try:
                self._write(self._layout.build(self._objects, self._opened, self._shut))
            except KernelError as again:
                self._suspect = True
                failure.add_note(f"and could not put back what was there: {again}")
            raise failure from err
        self._objects, self._opened, self._shut = objects, opened, shut

    def _write(self, tables: Wanted) -> None:
        _differences, self._glance = self._worker.call("apply", adopt.beside(self._left, _plain(tables)))

    def _still_there(self, links: frozenset[str]) -> frozenset[str]:
        return links & self._worker.call("links") if links else links


def _refuse_what_needs_nftables(wanted: Iterable[FilterObject]) -> None:
    for one in wanted:
        needed = None
        if isinstance(one, NetworkFilter) and one.tunnel is not None:
            needed = f"network {one.name or one.key}: its tunnel to other hosts"
        elif isinstance(one, TunnelPeer):
            needed = f"host at {one.underlay}: the tunnel {one.interface} to it"
        elif isinstance(one, EndpointPolicy) and one.inside is not None:
            needed = f"policy of {one.key}: its rules for what stays inside the network"
        if needed is not None:
            raise DriverError(f'{needed} can be filtered by nftables alone, so set filter = "nftables"')


def _left_behind(before: Mapping[Identity, FilterObject], after: Mapping[Identity, FilterObject]) -> set[str]:
    """The links of their own of endpoints that are gone: until the link is gone too, nothing may pass by it."""
    bridges = {one.interface for one in before.values() if isinstance(one, NetworkFilter)}

    def links(objects: Iterable[FilterObject]) -> set[str]:
        return {one.interface for one in objects if isinstance(one, Endpoint)} - bridges

    return links(before.values()) - links(after.values())


def _plain(wanted: Mapping[tuple[int, str], WantedTable]) -> Tables:
    return {(family, name): _table(wanted[family, name]) for family in FAMILIES for name in TABLES}


def _table(wanted: WantedTable) -> tuple[dict[str, list[bytes]], dict[str, bytes]]:
    return wanted.chains, wanted.jumps
