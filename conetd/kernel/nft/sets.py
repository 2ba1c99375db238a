"""Which named sets stand fixed, and what an element of each means."""

from __future__ import annotations

from dataclasses import dataclass

from conetd.kernel.nft import wire

TABLE = "conetd"
CLOSED = ("closed", "closed_ports")  # links whose endpoint is gone
CLOSED_FOR_S = 3600  # for how long after its endpoint is gone a link stays shut; it goes within seconds


@dataclass(frozen=True, slots=True)
class Field:
    """A part of a key: nft's number for its type (its src/datatype.c) and its length in bytes."""

    type: int
    length: int


IFNAME, MAC, PROTOCOL, PORT = Field(41, 16), Field(9, 6), Field(12, 1), Field(13, 2)
ADDRESS = {4: Field(7, 4), 6: Field(8, 16)}
MARK, IFINDEX = Field(19, 4), Field(20, 4)
IP_VERSION = Field(2, 1)  # as the kernel numbers protocol families
# `nft list` cannot show a number that is not of a known type, so these are called marks
VNI, PORTS = Field(19, 4), Field(19, 4)  # the latter source and destination in one: nft counts five fields at most


def type_of(fields: tuple[Field, ...]) -> tuple[int, int]:
    """nft's type number and the length in bytes of a field or, each then in whole registers, of a concatenation."""
    if len(fields) == 1:
        return fields[0].type, fields[0].length  # the kernel makes a bitmap of a set whose keys have one byte or two
    number = 0
    for field in fields:
        number = number << 6 | field.type
    return number, sum(field.length + 3 & ~3 for field in fields)


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A named set; a map if it has `data` or leads to chains (`verdicts`).

    The key of one with `intervals` is its first and its last value, one behind the other. Those with a timeout forget
    by themselves, so they are never compared.
    """

    family: int
    name: str
    key: tuple[Field, ...]
    data: tuple[Field, ...] = ()
    verdicts: bool = False
    intervals: bool = False
    timeout_s: int = 0

    @property
    def flags(self) -> int:
        """As the kernel keeps them."""
        flags = wire.SET_MAP if self.data or self.verdicts else 0
        flags |= wire.SET_TIMEOUT if self.timeout_s else 0
        return flags | (wire.SET_INTERVAL | wire.SET_CONCAT if self.intervals else 0)

    def message(self, set_id: int) -> bytes:
        """The request that creates it."""
        data = (wire.DATA_VERDICT, 4) if self.verdicts else type_of(self.data) if self.data else None
        return wire.new_set(
            self.family,
            TABLE,
            self.name,
            self.flags,
            type_of(self.key),
            set_id,
            data=data,
            fields=tuple(field.length for field in self.key) if self.intervals else (),
            timeout_ms=self.timeout_s * 1000,
            host_order=self.key == (IFNAME,),
        )


def _all() -> tuple[SetSpec, ...]:
    inet, bridge = wire.INET, wire.BRIDGE
    found = [
        SetSpec(inet, "ours", (IFNAME,)),  # interfaces that containers' packets come in by
        SetSpec(inet, "bridges", (IFNAME,)),  # those of them that are bridges
        SetSpec(inet, "network", (IFNAME,), verdicts=True),  # the chain with the rules of their network
        SetSpec(inet, "host", (IFNAME,), verdicts=True),  # the chain with what their network opens of the host
        SetSpec(inet, "host_access", (IFNAME,)),  # those of them whose containers reach the host
        # uplinks on which only we switched forwarding on
        *(SetSpec(inet, f"opened{family}", (IFNAME,)) for family in (4, 6)),
        SetSpec(inet, "vteps", (IFNAME,)),  # interfaces that containers' packets come in by from other hosts
        # all of `ours` and `vteps`: the chain that says whose packets may come in by it
        SetSpec(inet, "entry", (IFNAME,), verdicts=True),
        SetSpec(inet, "vnis", (PORT, VNI)),  # what is decapsulated here for a network of ours
        SetSpec(inet, "overlaid", (IP_VERSION,)),  # whether `overlay` has anything of an IP version
        # links whose endpoint is gone; nothing passes them any more
        SetSpec(inet, "closed", (IFNAME,), timeout_s=CLOSED_FOR_S),
        SetSpec(bridge, "closed_ports", (IFNAME,), timeout_s=CLOSED_FOR_S),
        SetSpec(bridge, "ports", (IFNAME,)),  # links behind bridge ports, one for each container
        SetSpec(bridge, "isolated_ports", (IFNAME,)),  # those of isolated networks
    ]
    for family in (4, 6):
        address = ADDRESS[family]
        pair = (address, address)
        found += [
            # who may speak from behind a bridge, by input interface and source: accepted, or the chain that marks its
            # packets before
            SetSpec(inet, f"source{family}", (IFNAME, address), verdicts=True),
            # the chain with rules of an endpoint's own, and the one with those for what stays inside its network
            SetSpec(inet, f"egress{family}", (IFNAME, address), verdicts=True),
            SetSpec(inet, f"inside{family}", (IFNAME, address), verdicts=True),
            # those that have an ingress
            SetSpec(inet, f"guarded{family}", (IFNAME, address)),
            # the chain that judges connections to this address
            SetSpec(inet, f"ingress{family}", (address,), verdicts=True),
            # source and destination inside one network; of an isolated one; a source that is masqueraded, and anything
            SetSpec(inet, f"same{family}", pair, intervals=True),
            SetSpec(inet, f"isolated{family}", pair, intervals=True),
            SetSpec(inet, f"masquerade{family}", pair, intervals=True),
            # published ports: on every address, on one; and targets whose flows are all masqueraded
            SetSpec(inet, f"published{family}", (PROTOCOL, PORT), (address, PORT)),
            SetSpec(inet, f"published_at{family}", (address, PROTOCOL, PORT), (address, PORT)),
            SetSpec(inet, f"snat{family}", (address, PROTOCOL, PORT)),
            # sources that come in by none but our interfaces and tunnels, and anything
            SetSpec(inet, f"overlay{family}", pair, intervals=True),
            # which hosts may send encapsulated packets, by the MAC inside; which sources come out of a tunnel, by the
            # MAC and the part of the network's subnet
            SetSpec(inet, f"underlay{family}", (PORT, VNI, address, MAC)),
            SetSpec(inet, f"vtep_addresses{family}", (address,)),  # to which other hosts send
            SetSpec(inet, f"tunnel{family}", (IFNAME, MAC, address)),
            # what a bridge port owns: MAC and address
            SetSpec(bridge, f"port{family}", (IFNAME, MAC, address)),
        ]
    return tuple(found)


SETS: dict[str, SetSpec] = {one.name: one for one in _all()}
"""Each set by its name, which is unique over both tables."""
