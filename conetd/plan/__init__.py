"""What should exist in the kernel, as a value: the vocabulary in which drivers plan.

A plan says nothing about order or history. The kernel layer confirms the filter first, makes links down, sets
sysctls, addresses, neighbours and forwarding entries, brings the links up and adds the routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Interface, IPv6Interface
from itertools import chain

from conetd.model import (
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    AddressRange,
    HostPort,
    Icmp,
    IPAddress,
    IPNetwork,
    MarkRange,
    PortRange,
    Rule,
    Verdict,
)
from conetd.plan.filter import (
    Endpoint,
    EndpointPolicy,
    FilterObject,
    NetworkFilter,
    PortMapping,
    Tunnel,
    TunnelPeer,
    identity,
)


class Side(Enum):
    """Which network namespace an item belongs to: the daemon's own, or the container's."""

    HOST = "host"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A Linux bridge in the host namespace, up, with this MAC and MTU for good; multicast snooping is off."""

    name: str
    mac: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Veth:
    """A pair: `name` in the host namespace, `peer` born in the container's. Both come up.

    `mac` is the peer's, `host_mac` the host end's (None: the kernel's choice). With `bridge` the host end is a port
    of that bridge: it learns nothing, is locked to `mac` by a static forwarding entry, and has hairpin on.
    """

    name: str
    peer: str
    mac: str
    mtu: int
    bridge: str | None = None
    host_mac: str | None = None


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VTEP in the host namespace, up, without learning. `local` is the underlay address packets leave from.

    Every route, neighbour and forwarding entry of ours on it belongs to the plan that makes it and those added to that
    for single hosts. `port` is the UDP destination port. With `gbp` the low 16 bits of the packet mark travel in the
    header.
    """

    name: str
    vni: int
    local: IPAddress
    port: int
    mac: str
    mtu: int
    gbp: bool = True


Link = Bridge | Veth | Vxlan


@dataclass(frozen=True, slots=True)
class Address:
    """An address with its prefix length on a link; usable at once (no duplicate address detection)."""

    link: str
    interface: IPv4Interface | IPv6Interface
    side: Side = Side.HOST


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table that carries our protocol number. `via` None is directly connected."""

    destination: IPNetwork
    link: str
    via: IPAddress | None = None
    source: IPAddress | None = None
    onlink: bool = False
    side: Side = Side.HOST


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour entry."""

    link: str
    address: IPAddress
    mac: str
    side: Side = Side.HOST


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A permanent forwarding entry of a VTEP: frames for `mac` go to the host `to`."""

    link: str
    mac: str
    to: IPAddress


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A sysctl below /proc/sys/net, such as `ipv6/conf/eth0/accept_ra`, set before the links come up.

    With `early` it is set before the links are made, for the `default` entries that a new link inherits.
    """

    path: str
    value: str
    side: Side = Side.HOST
    early: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that should exist for one network or attachment. Plans add up with `+`.

    `forward` are the IP versions the host has to forward for it, between our interfaces and its uplinks. What goes to
    `unreachable` and has no longer route is refused: the sender is told that the host is unreachable.
    """

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    fdb: tuple[FdbEntry, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    filter: tuple[FilterObject, ...] = ()
    forward: frozenset[int] = frozenset()
    unreachable: tuple[IPNetwork, ...] = ()

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> Plan:
        """All of these plans in one."""
        return cls(
            links=tuple(chain.from_iterable(one.links for one in plans)),
            addresses=tuple(chain.from_iterable(one.addresses for one in plans)),
            routes=tuple(chain.from_iterable(one.routes for one in plans)),
            neighbours=tuple(chain.from_iterable(one.neighbours for one in plans)),
            fdb=tuple(chain.from_iterable(one.fdb for one in plans)),
            sysctls=tuple(chain.from_iterable(one.sysctls for one in plans)),
            filter=tuple(chain.from_iterable(one.filter for one in plans)),
            forward=frozenset().union(*(one.forward for one in plans)),
            unreachable=tuple(chain.from_iterable(one.unreachable for one in plans)),
        )

    def __add__(self, other: Plan) -> Plan:
        return Plan.of((self, other))

    def without(self, other: Plan) -> Plan:
        """What of this plan, its links aside, the other does not put in the same place."""
        kept = {identity(one) for one in other.filter}
        macs = {(one.link, one.mac) for one in other.fdb}
        known = {(one.link, one.address, one.side) for one in other.neighbours}
        ways = {(one.destination, one.side) for one in other.routes}
        return Plan(
            routes=tuple(one for one in self.routes if (one.destination, one.side) not in ways),
            neighbours=tuple(one for one in self.neighbours if (one.link, one.address, one.side) not in known),
            fdb=tuple(one for one in self.fdb if (one.link, one.mac) not in macs),
            filter=tuple(one for one in self.filter if identity(one) not in kept),
        )


@dataclass(frozen=True, slots=True)
class Drift:
    """One way in which the kernel is not as wanted: on which object, and what is wrong, as a sentence's end."""

    object: str
    reason: str

    def __str__(self) -> str:
        return f"{self.object} {self.reason}"


__all__ = [
    "ICMP",
    "ICMPV6",
    "TCP",
    "UDP",
    "Address",
    "AddressRange",
    "Bridge",
    "Drift",
    "Endpoint",
    "EndpointPolicy",
    "FdbEntry",
    "FilterObject",
    "HostPort",
    "IPAddress",
    "IPNetwork",
    "Icmp",
    "Link",
    "MarkRange",
    "Neighbour",
    "NetworkFilter",
    "Plan",
    "PortMapping",
    "PortRange",
    "Route",
    "Rule",
    "Side",
    "Sysctl",
    "Tunnel",
    "TunnelPeer",
    "Verdict",
    "Veth",
    "Vxlan",
    "identity",
]
