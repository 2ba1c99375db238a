"""How the two namespaces of one work are looked into while it is compared and repaired."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from conetd.driver import Namespace
from conetd.errors import KernelError
from conetd.kernel import seen, sysctls
from conetd.kernel.compare import Cure, Fault, link_faults, peer_faults
from conetd.kernel.namespaces import inside
from conetd.kernel.netlink import Netlink
from conetd.kernel.routes import Entry
from conetd.kernel.work import index_of, open_rtnetlink, side_of
from conetd.plan import Address, Link, Neighbour, Route, Side, Sysctl, Veth


class Sides:
    """The host's namespace and, when `netns` is given, the container's. A context manager."""

    def __init__(self, host: Netlink, netns: Namespace | None) -> None:
        self.host = host
        self._netns = netns
        self._stack = ExitStack()
        self._container: Netlink | None = None

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

    def index(self, side: Side, name: str) -> int:
        """The index of a link. Raises KernelError (ENODEV) when there is none."""
        socket = self.socket(side)
        assert socket is not None, "asked for a container's link without a container"
        return index_of(socket, name)

    def find(self, side: Side, name: str) -> int:
        """The index of a link, 0 when there is none."""
        try:
            return self.index(side, name) if self.socket(side) is not None else 0
        except KernelError:
            return 0

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
        socket = self.socket(side)
        if socket is None:
            return True
        index = self.find(side, entry.link)
        if not index:
            return False
        if isinstance(entry, Address):
            return entry in seen.addresses(socket, index, entry.link, side)
        if isinstance(entry, Route):
            return entry in seen.link_routes(socket, index, entry.link, side, entry.destination.version)
        if isinstance(entry, Neighbour):
            return seen.has_neighbour(socket, entry, index)
        return seen.has_fdb(socket, entry, index)

    def routes(self, index: int, name: str, side: Side) -> dict[Route, bool]:
        """The routes by one link, of all IP versions the kernel speaks, and of each whether it is ours."""
        socket = self.socket(side)
        assert socket is not None, "asked for a container's routes without a container"
        versions = (4, 6) if sysctls.has_ipv6() else (4,)
        return {
            route: ours
            for version in versions
            for route, ours in seen.link_routes(socket, index, name, side, version).items()
        }

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
