"""Finding the connections through tunnels that carry much, and putting them on the fast path."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import ip_address

from conetd.errors import KernelError
from conetd.kernel import routes
from conetd.kernel.conntrack import Conntrack, TcpEnds
from conetd.kernel.netlink import Netlink, attributes
from conetd.kernel.nft.fast_path import Direction, FastPath, Way

_ENOUGH = 64  # taken up at a time: asking the way of each takes 50 µs


class Busy:
    """Looks for busy connections for a moment, and takes them up. For the thread of the fast path."""

    def __init__(self, fast_path: FastPath, netlink: Netlink, conntrack: Conntrack) -> None:
        """`netlink` is rtnetlink."""
        self._fast_path = fast_path
        self._netlink = netlink
        self._conntrack = conntrack
        self._cleared = 0

    def close(self) -> None:
        """Close the sockets. The kernel keeps everything."""
        self._netlink.close()
        self._conntrack.close()

    def look(self, vteps: Iterable[str]) -> bool:
        """Begin to look at what passes these tunnels; whether any is there. Raises KernelError."""
        indexes = [index for index in map(_index, vteps) if index]
        if indexes:
            self._fast_path.sample(indexes)
            self._cleared = self._fast_path.cleared
        return bool(indexes)

    def take_up(self, at_least: int) -> int:
        """End looking, and put on the fast path what had `at_least` so many segments meanwhile; how many directions.

        It is none if anything in force has changed since: what was let through then may not be now. Raises KernelError.
        """
        seen = self._fast_path.sampled(at_least)[:_ENOUGH]
        if self._cleared != self._fast_path.cleared:
            return 0
        known = self._conntrack.follow_loosely([one.ends for one in seen])
        ways: dict[TcpEnds, tuple[Direction, str, Way]] = {}
        for one, tracked in zip(seen, known, strict=True):
            link, way = _name(one.inward), self._way(one)
            if tracked and link and way is not None:
                ways[one.ends] = (one, link, way)
        wanted = [way for ends, way in ways.items() if ends[2:] + ends[:2] in ways]  # both directions or none
        if wanted:
            self._fast_path.add(wanted)
            # again: segments may have come before they were on it
            self._conntrack.follow_loosely([one.ends for one, _, _ in wanted])
        return len(wanted)

    def _way(self, direction: Direction) -> Way | None:
        """Where the kernel sends its segments on to; None if nowhere, or to this host."""
        try:
            request = routes.get_way(direction.source, direction.destination, direction.inward)
            [(_, payload)] = self._netlink.dump(request)
        except (KernelError, ValueError):
            return None
        told = dict(attributes(payload, routes.ROUTE.size))
        kind = routes.ROUTE.unpack_from(payload)[7]
        if kind != routes.RTN_UNICAST or routes.RTA_OIF not in told:
            return None
        gateway = told.get(routes.RTA_GATEWAY)
        next_hop = ip_address(bytes(gateway)) if gateway is not None else direction.destination
        return Way(struct.unpack("=I", told[routes.RTA_OIF])[0], next_hop)


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
