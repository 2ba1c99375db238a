"""The kernel as the core acts on it: works made real, told apart from what is there, and undone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import TracebackType

from conetd.driver import Namespace
from conetd.errors import ConetError
from conetd.kernel import batch, host, reaping, routes, seen
from conetd.kernel.filter import FilterBackend
from conetd.kernel.holdings import our_unreachable
from conetd.kernel.repair import differences, lies_on_other_links, made_links, repair, repair_together
from conetd.kernel.sides import Sides
from conetd.kernel.tunnel_test import rp_filter_fault
from conetd.kernel.work import GONE, Failures, Requests, Work, entries, open_rtnetlink, side_of
from conetd.model import Interface, IPAddress, IPNetwork
from conetd.plan import Drift, Plan, Side, Veth, identity


class Kernel:
    """Links, addresses, routes and the filter of one host, for one thread that lives in the host's namespace.

    Construct it in that thread. Every link it makes carries the alias of its work and a link group of ours; a link
    without either is never touched. What carries our mark on a link belongs to the plan that makes that link; of a
    VTEP all permanent neighbours and forwarding entries do.
    """

    def __init__(self, filter: FilterBackend) -> None:
        self._filter = filter
        self._netlink = open_rtnetlink()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets, those of the filter backend included. The kernel keeps everything."""
        self._netlink.close()
        self._filter.close()

    @property
    def filter(self) -> FilterBackend:
        """The backend that works are put into."""
        return self._filter

    def ensure_many(self, works: Sequence[Work]) -> list[ConetError | None]:
        """Make the kernel hold all plans, and return of each its first error or None.

        The filter of all is confirmed in one transaction before any link is made. A work that fails leaves the others
        alone; what was made of it stays, for `remove`. What is as planned already stays untouched.
        """
        failures = Failures(len(works))
        self._put_filters(works, failures)
        batch.make(self._netlink, works, failures)
        taken = {number: works[number] for number in sorted(failures.taken) if failures.errors[number] is None}
        together = {number: work for number, work in taken.items() if lies_on_other_links(work)}
        for number, work in taken.items():
            if number not in together:
                try:
                    repair(self._netlink, work)
                except ConetError as err:
                    failures.errors[number] = err
        repair_together(self._netlink, together, failures.fail)
        return failures.errors

    def _put_filters(self, works: Sequence[Work], failures: Failures) -> None:
        together = [item for work in works for item in work.plan.filter]
        if not together:
            return
        try:
            self._filter.apply(put=together)
        except ConetError as err:
            if len(works) == 1:
                failures.errors[0] = err
                return
            for number, work in enumerate(works):
                try:
                    self._filter.apply(put=work.plan.filter)
                except ConetError as own:
                    failures.errors[number] = own

    def ensure(self, plan: Plan, alias: str = "", netns: Namespace | None = None) -> None:
        """Make the kernel hold one plan. Raises what stood in the way; what was made by then stays, for `remove`."""
        (error,) = self.ensure_many([Work(plan, alias, netns)])
        if error is not None:
            raise error

    def diff(self, plan: Plan, netns: Namespace | None = None, alias: str = "") -> list[Drift]:
        """Tell where the kernel is not as the plan says. Changes nothing.

        Without a namespace only the host's side is looked at, without an alias the links' aliases are not.
        """
        drifts = differences(self._netlink, Work(plan, alias, netns))
        return [*drifts, *(self._filter.check(plan.filter) if plan.filter else ())]

    def remove(self, plan: Plan, netns: Namespace | None = None) -> None:
        """Make the kernel hold nothing of the plan; its links are gone when this returns. Gone already is success.

        The filter goes first. What lies in the container on links of other plans goes too when `netns` is given.
        Goes on past failures and raises the first one at the end.
        """
        errors: list[ConetError] = []
        try:
            self._filter.apply(drop=[identity(item) for item in plan.filter])
        except ConetError as err:
            errors.append(err)
        with Sides(self._netlink, None) as sides:
            errors += _remove_entries(sides, plan, Side.HOST)
        if netns is not None:
            try:
                with Sides(self._netlink, netns) as sides:
                    errors += _remove_entries(sides, plan, Side.CONTAINER)
            except ConetError as err:
                errors.append(err)
        # Ports go before their bridge.
        for link in sorted(plan.links, key=lambda link: not isinstance(link, Veth)):
            label = seen.label(self._netlink, link.name)
            if label is not None and label.ours:
                errors += reaping.delete_links(self._netlink, [label])
        if errors:
            raise errors[0]

    def close_many(self, plans: Sequence[Plan]) -> list[ConetError | None]:
        """Let no packet of these plans pass any more, and return of each its first error or None.

        Their filter objects and what they have on links of other plans are gone; their own veths are only marked, for
        `reaping.reap`, and a plan that is made again before that gets new ones.
        """
        failures = Failures(len(plans))
        self._drop_filters(plans, failures)
        requests = Requests(self._netlink)
        with Sides(self._netlink, None) as sides:
            for number, plan in enumerate(plans):
                for link in plan.links:
                    if isinstance(link, Veth):
                        reaping.mark_closed(requests, number, link.name)
                _queue_removals(requests, number, sides, plan, Side.HOST)
        requests.run(lambda number, error: None if error.errno in GONE else failures(number, error))
        return failures.errors

    def _drop_filters(self, plans: Sequence[Plan], failures: Failures) -> None:
        drops = [[identity(item) for item in plan.filter] for plan in plans]
        try:
            self._filter.apply(drop=[one for some in drops for one in some])
        except ConetError as err:
            if len(plans) == 1:
                failures.errors[0] = err
                return
            for number, some in enumerate(drops):
                try:
                    self._filter.apply(drop=some)
                except ConetError as own:
                    failures.errors[number] = own

    def reap(self, names: Sequence[str]) -> None:
        """Delete the links of those names that conetd made, marked or not, in groups. Gone already is success.

        Goes on past failures and raises the first one at the end.
        """
        reaping.reap(self._netlink, names, closed_only=False)

    def unreachable(self) -> frozenset[IPNetwork]:
        """The destinations that routes of ours refuse."""
        return our_unreachable(self._netlink)

    def drop_unreachable(self, destinations: Collection[IPNetwork]) -> None:
        """Refuse these destinations no more. Gone already is success. Raises the first error at the end."""
        requests = Requests(self._netlink)
        for one in destinations:
            requests.add(0, "delete", one, routes.delete_unreachable(one))
        errors = reaping.failures(requests, gone=GONE)
        if errors:
            raise errors[0]

    def links(self) -> frozenset[str]:
        """The names of all links in the host's namespace."""
        return seen.names()

    def owned_links(self) -> dict[str, str]:
        """The links conetd made, by name, each with its alias ("" for one that has lost it)."""
        return {label.name: label.alias for label in seen.labels(self._netlink) if label.ours}

    def rp_filter_fault(self, interface: str, source: IPAddress) -> str | None:
        """Why packets from `source` that come in by `interface` would be dropped by rp_filter; None: they would not."""
        return rp_filter_fault(self._netlink, interface, source)

    def default_route_mtu(self) -> int:
        """The MTU of the interface with the IPv4 default route, else IPv6's, else 1500."""
        return host.default_route_mtu(self._netlink)

    def default_route_source(self) -> IPAddress | None:
        """The address from which this host speaks to the rest of the world; None without a default route."""
        return host.default_route_source(self._netlink)

    def interfaces(self) -> tuple[Interface, ...]:
        """The host's own interfaces, those of conetd and lo aside, in the order of their making."""
        return host.interfaces(self._netlink)

    def sources(self) -> tuple[IPAddress, ...]:
        """The addresses from which this host speaks to the world, at most one of each IP version, IPv4 first."""
        return host.sources(self._netlink)

    def handle(self, alias: str, netns: Namespace | None) -> BoundKernel:
        """The kernel bound to one network or attachment, for drivers that act themselves."""
        return BoundKernel(self, alias, netns)


@dataclass(frozen=True, slots=True)
class BoundKernel:
    """The KernelHandle of the driver contract."""

    kernel: Kernel
    alias: str
    netns: Namespace | None

    def ensure(self, plan: Plan) -> None:
        """Make the kernel hold what the plan says; what is so already stays untouched."""
        self.kernel.ensure(plan, self.alias, self.netns)

    def remove(self, plan: Plan) -> None:
        """Make the kernel hold nothing of what the plan says."""
        self.kernel.remove(plan, self.netns)

    def diff(self, plan: Plan) -> Sequence[Drift]:
        """Tell where the kernel is not as the plan says. Changes nothing."""
        return self.kernel.diff(plan, self.netns, self.alias)


def _remove_entries(sides: Sides, plan: Plan, side: Side) -> Sequence[ConetError]:
    socket = sides.socket(side)
    if socket is None:
        return ()
    requests = Requests(socket)
    _queue_removals(requests, 0, sides, plan, side)
    return reaping.failures(requests, gone=GONE)


def _queue_removals(requests: Requests, owner: int, sides: Sides, plan: Plan, side: Side) -> None:
    # What lies on the plan's own links goes with them.
    own = {name for where, name in made_links(plan) if where is side}
    for entry in reversed(entries(plan)):
        if side_of(entry) is side and entry.link not in own:
            index = sides.find(side, entry.link)
            if index:
                requests.add(owner, "delete", entry, routes.delete_entry(entry, index))
    if side is Side.HOST:
        for destination in plan.unreachable:
            requests.add(owner, "delete", destination, routes.delete_unreachable(destination))
