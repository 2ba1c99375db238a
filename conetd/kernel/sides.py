"""How the two namespaces of one work are looked into while it is compared and repaired."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from conetd.driver import Namespace
from conetd.errors import KernelError
from conetd.kernel import seen, sysctls
from conetd.kernel.compare import Cure, Fault, link_faults, peer_faults
from conetd.kernel.holdings import Holdings, OurRoute, our_routes, our_unreachable
from conetd.kernel.namespaces import inside
from conetd.kernel.netlink import Netlink
from conetd.kernel.routes import Entry
from conetd.kernel.work import index_of, open_rtnetlink, side_of
from conetd.model import IPNetwork
from conetd.plan import Link, Side, Sysctl, Veth


class Sides:
    """The host's namespace and, when `netns` is given, the container's. A context manager.

    Indexes and what links hold are looked up once and remembered until `forget`.
    """

    def __init__(self, host: Netlink, netns: Namespace | None) -> None:
        self.host = host
        self._netns = netns
        self._stack = ExitStack()
        self._container: Netlink | None = None
        self._seen = _Seen()

    def __enter__(self) -> Sides:
        if self._netns is not None:
            with inside(self._netns):
                self._container = self._stack.enter_context(open_rtnetlink())
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def socket(self, side: Side) -> Netlink | None:
        """The socket of a side; None for the container's when there is no container."""
        return self.host if side is Side.HOST else self._container

    def forget(self) -> None:
        """Look anew from now on: something was changed."""
        self._seen = _Seen()

    def index(self, side: Side, name: str) -> int:
        """The index of a link. Raises KernelError (ENODEV) when there is none."""
        held = self.holdings(side, name)
        if held is None:
            socket = self.socket(side)
            assert socket is not None, "asked for a container's link without a container"
            return index_of(socket, name)
        return held.index

    def find(self, side: Side, name: str) -> int:
        """The index of a link, 0 when there is none."""
        held = self.holdings(side, name)
        return 0 if held is None else held.index

    def holdings(self, side: Side, name: str) -> Holdings | None:
        """What a link holds; None when there is no such link, or no container to look into."""
        where = side, name
        if where not in self._seen.links:
            socket = self.socket(side)
            try:
                held = None if socket is None else Holdings(socket, index_of(socket, name))
            except KernelError:
                held = None
            self._seen.links[where] = held
        return self._seen.links[where]

    def faults(self, link: Link, alias: str) -> list[Fault]:
        """How a link differs from the plan's, its peer and its forwarding entry in the bridge included."""
        there = seen.link(self.host, link.name)
        if there is None:
            return [Fault("is missing", Cure.REPLACE)]
        master = self.find(Side.HOST, link.bridge) if isinstance(link, Veth) and link.bridge else 0
        faults = link_faults(link, there, alias, master)
        if isinstance(link, Veth) and all(fault.cure is Cure.CORRECT for fault in faults):
            if self._container is not None:
                faults += peer_faults(link, there, seen.link(self._container, link.peer))
            if master and there.master == master and not seen.has_port_mac(self.host, link.mac, there.label.index):
                faults.append(Fault(f"has no static forwarding entry for {link.mac}", Cure.CORRECT))
        return faults

    def holds(self, entry: Entry) -> bool:
        """Whether an address, route, neighbour or forwarding entry is there; True where nobody can look."""
        side = side_of(entry)
        held = self.holdings(side, entry.link)
        if held is None:
            return self.socket(side) is None
        return held.has(entry)

    def our_routes(self, side: Side, version: int) -> dict[tuple[bytes, int], list[OurRoute]]:
        """Our routes of one IP version by any link, by destination and prefix length."""
        socket = self.socket(side)
        assert socket is not None, "asked for a container's routes without a container"
        where = side, version
        if where not in self._seen.routes:
            self._seen.routes[where] = our_routes(socket, version)
        return self._seen.routes[where]

    def unreachable(self) -> frozenset[IPNetwork]:
        """The destinations of our unreachable routes in the host's namespace."""
        if self._seen.unreachable is None:
            self._seen.unreachable = our_unreachable(self.host)
        return self._seen.unreachable

    def read(self, sysctl: Sysctl) -> str | None:
        """The value of a sysctl where it lies; None when there is no such."""
        if sysctl.side is Side.HOST or self._netns is None:
            return sysctls.read(sysctl.path)
        with inside(self._netns):
            return sysctls.read(sysctl.path)

    def write(self, sysctl: Sysctl) -> None:
        """Set a sysctl where it lies."""
        if sysctl.side is Side.HOST or self._netns is None:
            sysctls.write(sysctl.path, sysctl.value)
        else:
            with inside(self._netns):
                sysctls.write(sysctl.path, sysctl.value)


class _Seen:
    """What was looked up since the last change."""

    def __init__(self) -> None:
        self.links: dict[tuple[Side, str], Holdings | None] = {}
        self.routes: dict[tuple[Side, int], dict[tuple[bytes, int], list[OurRoute]]] = {}
        self.unreachable: frozenset[IPNetwork] | None = None
