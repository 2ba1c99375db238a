"""Which packets a rule means, and what becomes of them: the vocabulary both filter backends speak."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

# IANA protocol numbers, https://www.iana.org/assignments/protocol-numbers
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
PROTOCOL_NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmpv6"}


class Verdict(Enum):
    """What becomes of a packet. REJECT answers with ICMP port-unreachable, for every protocol."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Addresses `first` to `last`, both included, of one family. A reversed range matches nothing."""

    first: IPAddress
    last: IPAddress

    @classmethod
    def of(cls, network: IPNetwork) -> AddressRange:
        """All addresses of a network, its first and its broadcast address included."""
        return cls(network.network_address, network.broadcast_address)

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.first.version

    def __contains__(self, address: IPAddress) -> bool:
        return address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports `first` to `last`, both included, 0 to 65535."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class MarkRange:
    """Packet marks whose low 16 bits are `first` to `last`, both included, 0 to 65535."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Icmp:
    """An ICMP or ICMPv6 type and code, 0 to 255 each; `code` None is any code of the type."""

    type: int
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of an ordered list. All given fields must match; an empty or None field matches anything.

    `destinations` and `sources` may mix families: a range of one family never matches a packet of the other.
    `ports` are destination ports and stand only with `protocol` TCP or UDP; `icmp` only with ICMP or ICMPV6.
    `marks` match the low 16 bits of the packet mark. `log` announces each new connection that the rule
    decides; it never changes the verdict. `origin` is where the rule stands in its document (`net_out[3]`).
    Judged are the addresses and ports after destination NAT, and only the first packet of a connection.
    """

    verdict: Verdict
    protocol: int | None = None
    destinations: tuple[AddressRange, ...] = ()
    sources: tuple[AddressRange, ...] = ()
    ports: tuple[PortRange, ...] = ()
    icmp: Icmp | None = None
    marks: tuple[MarkRange, ...] = ()
    log: bool = False
    origin: str = ""
