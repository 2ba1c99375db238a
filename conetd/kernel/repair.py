"""How works are compared with what is there, told, and brought into line, touching only what differs.

Addresses and routes that carry our mark on a link belong to the plan that makes the link: what that plan does not
have goes. To the plan that makes a VTEP belong all its permanent neighbours and forwarding entries.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from conetd.errors import ConetError, KernelError
from conetd.kernel import links, routes, seen, sysctls
from conetd.kernel.compare import Cure
from conetd.kernel.holdings import Holdings, route_key, route_of
from conetd.kernel.netlink import Netlink
from conetd.kernel.routes import Entry
from conetd.kernel.sides import Sides
from conetd.kernel.work import GONE, Item, Requests, Work, describe, entries, reaches_container, side_of
from conetd.plan import Address, Drift, FdbEntry, Link, Neighbour, Plan, Route, Side, Sysctl, Veth, Vxlan

Place = tuple[Side, Entry, int]
"""An entry, where it lies, and the index of its link."""

Request = tuple[str, Item, bytes]
"""What is done, to what, and the message for it."""


def differences(host: Netlink, work: Work) -> list[Drift]:
    """Where the kernel is not as the plan says, the filter aside. Without a namespace only the host is looked at."""
    plan = work.plan
    drifts: list[Drift] = []
    with Sides(host, work.netns) as sides:
        absent: set[tuple[Side, str]] = set()
        for link in plan.links:
            for fault in sides.faults(link, work.alias):
                drifts.append(Drift(describe(link), fault.reason))
                if fault.cure is not Cure.CORRECT:
                    absent |= {(Side.HOST, link.name), (Side.CONTAINER, link.peer if isinstance(link, Veth) else "")}
        for entry in entries(plan):
            if (side_of(entry), entry.link) not in absent and not sides.holds(entry):
                drifts.append(Drift(describe(entry), "is missing"))
        for surplus in (_surplus_addresses, _surplus_routes, _surplus_hosts):
            drifts += [Drift(describe(entry), "is not wanted") for _, entry, _ in surplus(sides, plan)]
        drifts += [Drift(describe(one), "is missing") for one in plan.unreachable if one not in sides.unreachable()]
        for sysctl in _wrong(sides, plan):
            drifts.append(Drift(f"sysctl net/{sysctl.path}", f"is {sides.read(sysctl)}, not {sysctl.value}"))
    return drifts


def repair(host: Netlink, work: Work) -> None:
    """Make the kernel hold the plan, whatever part of it is there. Raises the first error."""
    plan = work.plan
    with Sides(host, work.namespace()) as sides:
        _run(sides, Side.HOST, _add_unreachable(sides, plan))
        changed = _repair_links(sides, work)
        for sysctl in _wrong(sides, plan):
            sides.write(sysctl)
        _delete(sides, _surplus_addresses(sides, plan))
        for side in Side:
            if sides.socket(side) is not None:
                _run(sides, side, _add_missing(sides, plan, side, (Address, FdbEntry, Neighbour)))
        for link in changed:
            _settle(sides, link, work.alias)
        if sides.socket(Side.CONTAINER) is not None:
            _run(sides, Side.CONTAINER, [("bring up", "lo", links.bring_up(1))])
        _delete(sides, _surplus_routes(sides, plan))
        _delete(sides, _surplus_hosts(sides, plan))
        for side in Side:
            if sides.socket(side) is not None:
                _run(sides, side, _add_missing(sides, plan, side, (Route,)))


def lies_on_other_links(work: Work) -> bool:
    """Whether the plan is nothing but entries on links of the host that other plans make, and unreachable routes."""
    return not work.plan.links and not work.plan.sysctls and not reaches_container(work.plan)


def repair_together(host: Netlink, works: Mapping[int, Work], failed: Callable[[int, ConetError], None]) -> None:
    """Make the kernel hold the plans of many works that lie on other links, in one exchange.

    `failed` is called with the number of each work that has an error, for each error it has.
    """
    requests = Requests(host)
    with Sides(host, None) as sides:
        for number, work in works.items():
            try:
                found = [
                    *_add_unreachable(sides, work.plan),
                    *_add_missing(sides, work.plan, Side.HOST, (Address, FdbEntry, Neighbour, Route)),
                ]
            except ConetError as err:
                failed(number, err)
                continue
            for request in found:
                requests.add(number, *request)
    requests.run(lambda number, error: None if _gone(error) else failed(number, error))


def _repair_links(sides: Sides, work: Work) -> list[Link]:
    """Make the links that are missing or beyond correction, correct the others; the ones to settle are returned."""
    ordered = sorted(work.plan.links, key=lambda link: isinstance(link, Veth))
    found = [(link, sides.faults(link, work.alias)) for link in ordered]
    for link, faults in found:
        for fault in faults:
            if fault.cure is Cure.REFUSE:
                raise KernelError("create", describe(link), errno.EEXIST, f"it {fault.reason}")
    replaced = [link for link, faults in found if any(fault.cure is Cure.REPLACE for fault in faults)]
    if replaced:
        for sysctl in work.plan.sysctls:
            if sysctl.early:
                sides.write(sysctl)
    for link, faults in found:
        if not faults:
            continue
        master = sides.index(Side.HOST, link.bridge) if isinstance(link, Veth) and link.bridge else 0
        requests: list[Request] = []
        there = seen.label(sides.host, link.name)
        if link in replaced or there is None:
            if there is not None:
                requests.append(("delete", link, links.delete_link(there.index)))
            elif isinstance(link, Veth) and sides.find(Side.CONTAINER, link.peer):
                raise KernelError("create", describe(link), errno.EEXIST, f"the container has a link {link.peer}")
            fd = work.netns.fd if work.netns is not None else -1
            requests.append(("create", link, links.create_link(link, fd, master)))
        else:
            requests.append(("correct", link, links.correct_link(link, there.index, master)))
        _run(sides, Side.HOST, requests)
    return [link for link, faults in found if faults]


def _settle(sides: Sides, link: Link, alias: str) -> None:
    index = sides.index(Side.HOST, link.name)
    requests: list[Request] = []
    if isinstance(link, Veth) and link.bridge is not None:
        requests.append(("pin the MAC of", link, routes.put_port_mac(link.mac, index)))
    requests.append(("settle", link, links.settle_link(link, index, alias, ipv6=sysctls.has_ipv6())))
    _run(sides, Side.HOST, requests)
    if isinstance(link, Veth) and sides.socket(Side.CONTAINER) is not None:
        up = links.bring_up(sides.index(Side.CONTAINER, link.peer))
        _run(sides, Side.CONTAINER, [("bring up", link.peer, up)])


def _add_unreachable(sides: Sides, plan: Plan) -> list[Request]:
    if not plan.unreachable:
        return []
    there = sides.unreachable()
    return [("add", one, routes.add_unreachable(one)) for one in plan.unreachable if one not in there]


def _add_missing(sides: Sides, plan: Plan, side: Side, kinds: tuple[type, ...]) -> list[Request]:
    """What adds the missing entries of these kinds, and before that deletes routes of ours that are in their way."""
    found: list[Request] = []
    for entry in entries(plan):
        if isinstance(entry, kinds) and side_of(entry) is side and not sides.holds(entry):
            index = sides.index(side, entry.link)
            if isinstance(entry, Route):
                found += _in_the_way(sides, entry, index)
            found.append(("add", entry, routes.add_entry(entry, index)))
    return found


def _in_the_way(sides: Sides, wanted: Route, index: int) -> Iterator[Request]:
    """What deletes the routes of ours that hold the destination of one that is to be added."""
    key = route_key(wanted)
    ours = sides.our_routes(wanted.side, wanted.destination.version)
    for there in ours.get((key.destination, key.length), ()):
        if there != (key, index):
            route = route_of(there.key, wanted.link, wanted.side)
            yield "delete", route, routes.delete_route(route, there.oif)


def _surplus_addresses(sides: Sides, plan: Plan) -> Iterator[Place]:
    for side, name, held, wanted in _made(sides, plan):
        yield from ((side, entry, held.index) for entry in held.surplus_addresses(name, side, wanted))


def _surplus_routes(sides: Sides, plan: Plan) -> Iterator[Place]:
    for side, name, held, wanted in _made(sides, plan):
        yield from ((side, entry, held.index) for entry in held.surplus_routes(name, side, wanted))


def _surplus_hosts(sides: Sides, plan: Plan) -> Iterator[Place]:
    vteps = {link.name for link in plan.links if isinstance(link, Vxlan)}
    for side, name, held, wanted in _made(sides, plan):
        if side is Side.HOST and name in vteps:
            yield from ((side, entry, held.index) for entry in held.surplus_hosts(name, wanted))


def _made(sides: Sides, plan: Plan) -> Iterator[tuple[Side, str, Holdings, Collection[Entry]]]:
    """The ends of links that the plan makes, as far as they are there: what they hold, and what the plan wants."""
    wanted: dict[tuple[Side, str], list[Entry]] = {end: [] for end in made_links(plan)}
    for entry in entries(plan):
        end = side_of(entry), entry.link
        if end in wanted:
            wanted[end].append(entry)
    for (side, name), some in wanted.items():
        held = sides.holdings(side, name)
        if held is not None:
            yield side, name, held, some


def made_links(plan: Plan) -> Iterator[tuple[Side, str]]:
    """The ends of links that the plan makes, and on which side."""
    for link in plan.links:
        yield Side.HOST, link.name
        if isinstance(link, Veth):
            yield Side.CONTAINER, link.peer


def _wrong(sides: Sides, plan: Plan) -> Iterator[Sysctl]:
    # The early ones are for links yet to be born; afterwards their values are nobody's business.
    for sysctl in plan.sysctls:
        if not sysctl.early and (sysctl.side is Side.HOST or sides.socket(Side.CONTAINER) is not None):
            value = sides.read(sysctl)
            if value is None and sysctls.lacks(sysctl.path):
                continue
            if value != " ".join(sysctl.value.split()):
                yield sysctl


def _delete(sides: Sides, places: Iterator[Place]) -> None:
    found = list(places)
    for side in Side:
        requests = [("delete", entry, routes.delete_entry(entry, index)) for at, entry, index in found if at is side]
        _run(sides, side, requests)


def _gone(error: KernelError) -> bool:
    """Whether what was to be deleted is gone already."""
    return error.operation == "delete" and error.errno in GONE


def _run(sides: Sides, side: Side, found: Sequence[Request]) -> None:
    """Exchange these requests at once, look anew afterwards, and raise the first error."""
    if not found:
        return
    socket = sides.socket(side)
    assert socket is not None, "changes of a container without a container"
    requests = Requests(socket)
    for request in found:
        requests.add(0, *request)
    errors: list[KernelError] = []
    requests.run(lambda _, error: None if _gone(error) else errors.append(error))
    sides.forget()
    if errors:
        raise errors[0]
