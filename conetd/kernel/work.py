"""What the kernel layer is asked to do for one owner, and how a refused message finds the one to blame."""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from conetd.driver import Namespace
from conetd.errors import ConetError, KernelError, NotFound
from conetd.kernel.netlink import NETLINK_ROUTE, Answer, Netlink
from conetd.kernel.routes import Entry
from conetd.kernel.vteps import in_the_way
from conetd.model import IPNetwork
from conetd.plan import Address, FdbEntry, Link, Neighbour, Plan, Route, Side, Veth, Vxlan

Item = Link | Entry | IPNetwork | str
"""What messages are about; a network is the unreachable route to it."""

GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})
"""What the kernel says of a deletion when there is nothing (any more) to delete."""

_SIOCGIFINDEX = 0x8933  # linux/sockios.h
_IFREQ = struct.Struct("=16si20x")


@dataclass(frozen=True, slots=True)
class Work:
    """A plan to be made real. `alias` marks its links as the owner's; at most 255 bytes of it are kept.

    `netns` is the container's namespace; None where the plan has nothing there.
    """

    plan: Plan
    alias: str = ""
    netns: Namespace | None = None

    def namespace(self) -> Namespace | None:
        """The namespace the plan needs, None when it needs none. Raises NotFound when it has none to give."""
        if not reaches_container(self.plan):
            return None
        if self.netns is None:
            what = ", ".join(describe(link) for link in self.plan.links) or "what is planned inside the container"
            raise NotFound(f"cannot make {what}: the container has no network namespace any more")
        return self.netns


def reaches_container(plan: Plan) -> bool:
    """Whether some of the plan lies in the container's namespace."""
    return (
        any(isinstance(link, Veth) for link in plan.links)
        or any(address.side is Side.CONTAINER for address in plan.addresses)
        or any(route.side is Side.CONTAINER for route in plan.routes)
        or any(sysctl.side is Side.CONTAINER for sysctl in plan.sysctls)
        or any(neighbour.side is Side.CONTAINER for neighbour in plan.neighbours)
    )


def entries(plan: Plan) -> tuple[Entry, ...]:
    """Everything of a plan that lies on links."""
    return (*plan.addresses, *plan.neighbours, *plan.fdb, *plan.routes)


def side_of(entry: Entry) -> Side:
    """Where an entry lies."""
    return Side.HOST if isinstance(entry, FdbEntry) else entry.side


def describe(item: Item) -> str:
    """How an item is called in messages."""
    if isinstance(item, str):
        return f"link {item}"
    if isinstance(item, IPv4Network | IPv6Network):
        return f"unreachable route to {item}"
    if isinstance(item, Address):
        return f"address {item.interface} on {item.link}"
    if isinstance(item, Route):
        return f"route to {item.destination} on {item.link}"
    if isinstance(item, Neighbour):
        return f"neighbour {item.address} on {item.link}"
    if isinstance(item, FdbEntry):
        return f"forwarding entry {item.mac} on {item.link}"
    return f"link {item.name}"


def open_rtnetlink() -> Netlink:
    """A socket for links and routes in the calling thread's namespace. Raises KernelError."""
    try:
        return Netlink(NETLINK_ROUTE)
    except OSError as err:
        raise KernelError("open", "a netlink socket", err.errno or 0) from err


def index_of(socket: Netlink, name: str) -> int:
    """The index of a link in the socket's namespace. Raises KernelError (ENODEV) when there is none of that name."""
    try:
        answer = fcntl.ioctl(socket.fileno(), _SIOCGIFINDEX, _IFREQ.pack(name.encode(), 0))
    except OSError as err:
        raise KernelError("find", f"link {name}", err.errno or 0) from err
    index: int = _IFREQ.unpack(answer)[1]
    return index


class Requests:
    """Messages that go to the kernel in one exchange, each with its owner and what it is about."""

    def __init__(self, socket: Netlink) -> None:
        self._socket = socket
        self._messages: list[bytes] = []
        self._about: list[tuple[int, str, Item]] = []

    def add(self, owner: int, operation: str, item: Item, message: bytes) -> None:
        """Queue a message; `operation` is a verb such as "create"."""
        self._messages.append(message)
        self._about.append((owner, operation, item))

    def run(self, failed: Callable[[int, KernelError], None]) -> None:
        """Exchange the queued messages and call `failed` with the owner of each that was refused."""
        if not self._messages:
            return
        try:
            answers = self._socket.exchange(self._messages)
        except OSError as err:
            for owner, operation, item in self._about:
                failed(owner, KernelError(operation, describe(item), err.errno or 0))
            return
        for answer, (owner, operation, item) in zip(answers, self._about, strict=True):
            if answer.errno:
                failed(owner, KernelError(operation, describe(item), answer.errno, self._detail(answer, item)))

    def _detail(self, answer: Answer, item: Item) -> str:
        if answer.errno == errno.EXFULL and isinstance(item, Veth):
            return f"a bridge takes 1023 ports, and {item.bridge} has them all"
        if answer.errno == errno.EEXIST and isinstance(item, Route | IPv4Network | IPv6Network):
            return "there is a route to it that is not conetd's"
        if isinstance(item, Vxlan):
            return in_the_way(self._socket, item, answer.errno) or answer.detail
        return answer.detail


class Failures:
    """Errors of works that go on past them; the first of each counts."""

    def __init__(self, count: int) -> None:
        self.errors: list[ConetError | None] = [None] * count
        self.taken: set[int] = set()
        """Works that met something that exists already, and have to be compared with it."""

    def __call__(self, owner: int, error: ConetError) -> None:
        if isinstance(error, KernelError) and error.errno == errno.EEXIST:
            self.taken.add(owner)
        else:
            self.fail(owner, error)

    def fail(self, owner: int, error: ConetError) -> None:
        """Note an error, also one of something that exists."""
        if self.errors[owner] is None:
            self.errors[owner] = error

    def good(self, owner: int) -> bool:
        """Whether the work can go on its way: nothing failed, nothing was there before."""
        return self.errors[owner] is None and owner not in self.taken
