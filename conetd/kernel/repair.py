"""How one work is compared with what is there, told, and brought into line: slowly, and touching only what differs.

Addresses and routes that carry our mark on a link belong to the plan that makes the link: what that plan does not
have goes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence

from conetd.errors import KernelError
from conetd.kernel import links, routes, seen, sysctls
from conetd.kernel.compare import Cure
from conetd.kernel.netlink import Netlink
from conetd.kernel.routes import Entry
from conetd.kernel.sides import Sides
from conetd.kernel.work import Requests, Work, describe, entries, side_of
from conetd.plan import Address, Drift, FdbEntry, Link, Neighbour, Plan, Route, Side, Sysctl, Veth

Place = tuple[Entry, Netlink, int]
"""An entry, the socket of its namespace and the index of its link."""


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
        drifts += [Drift(describe(entry), "is not wanted") for entry, _, _ in _surplus(sides, plan, (Address, Route))]
        for sysctl in _wrong(sides, plan):
            drifts.append(Drift(f"sysctl net/{sysctl.path}", f"is {sides.read(sysctl)}, not {sysctl.value}"))
    return drifts


def repair(host: Netlink, work: Work) -> None:
    """Make the kernel hold the plan, whatever part of it is there. Raises the first error."""
    plan = work.plan
    with Sides(host, work.namespace()) as sides:
        changed = _repair_links(sides, work)
        for sysctl in _wrong(sides, plan):
            sides.write(sysctl)
        _act(_surplus(sides, plan, (Address,)), "delete", routes.delete_entry)
        _act(_missing(sides, plan, (Address, Neighbour, FdbEntry)), "add", routes.add_entry)
        for link in changed:
            _settle(sides, link, work.alias)
        container = sides.socket(Side.CONTAINER)
        if container is not None:
            requests = Requests(container)
            requests.add(0, "bring up", "lo", links.bring_up(1))
            _run(requests)
        _act(_surplus(sides, plan, (Route,)), "delete", routes.delete_entry)
        missing = _missing(sides, plan, (Route,))
        _act(_in_the_way(missing), "delete", routes.delete_entry)
        _act(missing, "add", routes.add_entry)


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
        requests = Requests(sides.host)
        there = seen.label(sides.host, link.name)
        if link in replaced or there is None:
            if there is not None:
                requests.add(0, "delete", link, links.delete_link(there.index))
            elif isinstance(link, Veth) and sides.find(Side.CONTAINER, link.peer):
                raise KernelError("create", describe(link), errno.EEXIST, f"the container has a link {link.peer}")
            fd = work.netns.fd if work.netns is not None else -1
            requests.add(0, "create", link, links.create_link(link, fd, master))
        else:
            requests.add(0, "correct", link, links.correct_link(link, there.index, master))
        _run(requests)
    return [link for link, faults in found if faults]


def _settle(sides: Sides, link: Link, alias: str) -> None:
    index = sides.index(Side.HOST, link.name)
    requests = Requests(sides.host)
    if isinstance(link, Veth) and link.bridge is not None:
        requests.add(0, "pin the MAC of", link, routes.put_port_mac(link.mac, index))
    requests.add(0, "settle", link, links.settle_link(link, index, alias, ipv6=sysctls.has_ipv6()))
    _run(requests)
    container = sides.socket(Side.CONTAINER)
    if isinstance(link, Veth) and container is not None:
        requests = Requests(container)
        requests.add(0, "bring up", link.peer, links.bring_up(sides.index(Side.CONTAINER, link.peer)))
        _run(requests)


def _missing(sides: Sides, plan: Plan, kinds: tuple[type, ...]) -> list[Place]:
    places: list[Place] = []
    for entry in entries(plan):
        socket = sides.socket(side_of(entry))
        if isinstance(entry, kinds) and socket is not None and not sides.holds(entry):
            places.append((entry, socket, sides.index(side_of(entry), entry.link)))
    return places


def _surplus(sides: Sides, plan: Plan, kinds: tuple[type, ...]) -> list[Place]:
    wanted = set(entries(plan))
    places: list[Place] = []
    for side, name in made_links(plan):
        socket, index = sides.socket(side), sides.find(side, name)
        if socket is None or not index:
            continue
        found: list[tuple[Entry, bool]] = []
        if Address in kinds:
            found += seen.addresses(socket, index, name, side).items()
        if Route in kinds:
            found += sides.routes(index, name, side).items()
        places += [(entry, socket, index) for entry, ours in found if ours and entry not in wanted]
    return places


def _in_the_way(missing: Sequence[Place]) -> Iterator[Place]:
    """Routes of ours by other links that hold the destination of one that is to be added."""
    for entry, socket, index in missing:
        if isinstance(entry, Route):
            for route, oif in seen.routes_of_ours(socket, entry.destination.version, entry.side):
                if route.destination == entry.destination and oif != index:
                    yield route, socket, oif


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
            if value is None and sysctl.path.startswith("ipv6/") and not sysctls.has_ipv6():
                continue
            if value != " ".join(sysctl.value.split()):
                yield sysctl


def _act(places: Iterator[Place] | Sequence[Place], operation: str, encode: Callable[[Entry, int], bytes]) -> None:
    for entry, socket, index in places:
        requests = Requests(socket)
        requests.add(0, operation, entry, encode(entry, index))
        _run(requests)


def _run(requests: Requests) -> None:
    errors: list[KernelError] = []
    requests.run(lambda _, error: errors.append(error))
    if errors:
        raise errors[0]
