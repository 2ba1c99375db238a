"""How many works are made real at once: the filter has been confirmed, the links come in a few shared exchanges.

Nothing is listed, forked or looked up twice here. A work that meets something that exists already is left for
`repair`, which compares; one that fails leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from conetd.driver import Namespace
from conetd.errors import ConetError
from conetd.kernel import links, ready, routes, sysctls
from conetd.kernel.namespaces import inside
from conetd.kernel.netlink import Netlink
from conetd.kernel.work import Failures, Requests, Work, index_of, open_rtnetlink
from conetd.plan import Plan, Side, Sysctl, Veth

_LO = 1  # lo is the first link of every namespace


@dataclass(slots=True)
class _Target:
    netns: Namespace
    members: list[int] = field(default_factory=list)
    socket: Netlink | None = None


def make(host: Netlink, works: Sequence[Work], failures: Failures) -> None:
    """Make the links, addresses and routes of all works that `failures` calls good, and note what goes wrong."""
    good = [number for number in range(len(works)) if failures.good(number)]
    for members in rounds(works, good):
        _Round(host, works, failures, members).run()


def rounds(works: Sequence[Work], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Split works into rounds, such that those of one round agree on the early sysctls of each namespace."""
    found: list[tuple[dict[int, tuple[Sysctl, ...]], list[int]]] = []
    for number in numbers:
        work = works[number]
        early = {0: _early(work.plan, Side.HOST)}
        if work.netns is not None:
            early[work.netns.inode] = _early(work.plan, Side.CONTAINER)
        for agreed, members in found:
            if all(agreed.get(inode, wanted) == wanted for inode, wanted in early.items()):
                agreed.update(early)
                members.append(number)
                break
        else:
            found.append((early, [number]))
    return iter([members for _, members in found])


def _early(plan: Plan, side: Side) -> tuple[Sysctl, ...]:
    return tuple(sysctl for sysctl in plan.sysctls if sysctl.early and sysctl.side is side)


class _Round:
    def __init__(self, host: Netlink, works: Sequence[Work], failures: Failures, members: Sequence[int]) -> None:
        self._host = host
        self._works = works
        self._failures = failures
        self._members = members
        self._targets: dict[int, _Target] = {}
        self._indexes: dict[str, int] = {}

    def run(self) -> None:
        with ExitStack() as sockets:
            self._enter(sockets)
            self._create()
            self._settle()
            for target in self._targets.values():
                self._furnish(target)
            self._wait()

    def _enter(self, sockets: ExitStack) -> None:
        for number in self._members:
            work = self._works[number]
            self._write(number, Side.HOST, early=True)
            try:
                netns = work.namespace()
            except ConetError as err:
                self._failures(number, err)
                continue
            if netns is not None:
                self._targets.setdefault(netns.inode, _Target(netns)).members.append(number)
        for target in self._targets.values():
            try:
                with inside(target.netns):
                    for number in target.members:
                        self._write(number, Side.CONTAINER, early=True)
                    target.socket = sockets.enter_context(open_rtnetlink())
            except ConetError as err:
                self._fail(target.members, err)

    def _create(self) -> None:
        # A veth may be a port of a bridge of the same batch, so bridges and VTEPs come first.
        for veths in (False, True):
            requests = Requests(self._host)
            for number in self._good():
                work = self._works[number]
                for link in work.plan.links:
                    if isinstance(link, Veth) is not veths:
                        continue
                    try:
                        master = self._index(link.bridge) if isinstance(link, Veth) and link.bridge else 0
                    except ConetError as err:
                        self._failures(number, err)
                        break
                    fd = work.netns.fd if work.netns is not None else -1
                    requests.add(number, "create", link, links.create_link(link, fd, master))
            requests.run(self._failures)

    def _settle(self) -> None:
        ipv6 = sysctls.has_ipv6()
        requests = Requests(self._host)
        for number in self._good():
            work = self._works[number]
            plan = work.plan
            self._write(number, Side.HOST, early=False)
            if not self._failures.good(number):
                continue
            for destination in plan.unreachable:
                requests.add(number, "add", destination, routes.add_unreachable(destination))
            try:
                add_before_up(requests, number, plan, Side.HOST, self._index)
                for link in plan.links:
                    index = self._index(link.name)
                    if isinstance(link, Veth) and link.bridge is not None:
                        requests.add(number, "pin the MAC of", link, routes.put_port_mac(link.mac, index))
                    requests.add(number, "settle", link, links.settle_link(link, index, work.alias, ipv6=ipv6))
                add_routes(requests, number, plan, Side.HOST, self._index)
            except ConetError as err:
                self._failures(number, err)
        requests.run(self._failures)

    def _furnish(self, target: _Target) -> None:
        members = [number for number in target.members if self._failures.good(number)]
        if not members or target.socket is None:
            return
        socket = target.socket
        if any(_has_late(self._works[number].plan) for number in members):
            try:
                with inside(target.netns):
                    for number in members:
                        self._write(number, Side.CONTAINER, early=False)
            except ConetError as err:
                self._fail(members, err)
                return
        requests = Requests(socket)
        requests.add(members[0], "bring up", "lo", links.bring_up(_LO))
        for number in members:
            if not self._failures.good(number):
                continue
            plan = self._works[number].plan
            indexes: dict[str, int] = {}

            def index(name: str, indexes: dict[str, int] = indexes) -> int:
                if name not in indexes:
                    indexes[name] = index_of(socket, name)
                return indexes[name]

            try:
                add_before_up(requests, number, plan, Side.CONTAINER, index)
                for link in plan.links:
                    if isinstance(link, Veth):
                        requests.add(number, "bring up", link.peer, links.bring_up(index(link.peer)))
                add_routes(requests, number, plan, Side.CONTAINER, index)
            except ConetError as err:
                self._failures(number, err)
        requests.run(self._failures)

    def _wait(self) -> None:
        made = [
            (target.socket, [self._works[number].plan for number in target.members if self._failures.good(number)])
            for target in self._targets.values()
            if target.socket is not None
        ]
        ready.wait(self._host, made)

    def _good(self) -> list[int]:
        return [number for number in self._members if self._failures.good(number)]

    def _index(self, name: str) -> int:
        if name not in self._indexes:
            self._indexes[name] = index_of(self._host, name)
        return self._indexes[name]

    def _fail(self, numbers: Sequence[int], error: ConetError) -> None:
        for number in numbers:
            self._failures(number, error)

    def _write(self, number: int, side: Side, *, early: bool) -> None:
        try:
            for sysctl in self._works[number].plan.sysctls:
                if sysctl.early is early and sysctl.side is side:
                    sysctls.write(sysctl.path, sysctl.value)
        except ConetError as err:
            self._failures(number, err)


def _has_late(plan: Plan) -> bool:
    return any(not sysctl.early and sysctl.side is Side.CONTAINER for sysctl in plan.sysctls)


def add_before_up(requests: Requests, owner: int, plan: Plan, side: Side, index: Callable[[str], int]) -> None:
    """Queue what a link of that side has before it is up: addresses, forwarding entries, neighbours."""
    for address in plan.addresses:
        if address.side is side:
            requests.add(owner, "add", address, routes.add_address(address, index(address.link)))
    if side is Side.HOST:
        for entry in plan.fdb:
            requests.add(owner, "put", entry, routes.put_fdb(entry, index(entry.link)))
    for neighbour in plan.neighbours:
        if neighbour.side is side:
            requests.add(owner, "put", neighbour, routes.put_neighbour(neighbour, index(neighbour.link)))


def add_routes(requests: Requests, owner: int, plan: Plan, side: Side, index: Callable[[str], int]) -> None:
    """Queue the routes of that side, which need their links up."""
    for route in plan.routes:
        if route.side is side:
            requests.add(owner, "add", route, routes.add_route(route, index(route.link)))
