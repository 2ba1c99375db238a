"""What a vxlan network's `config` may say, and the value it becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

from marshmallow import ValidationError, fields, post_load, validate

from conetd.driver import JSON, IPAddress, is_interface_name
from conetd.plan import IPNetwork
from conetd.policy.common import CommonConfigSchema, is_unique_local, parse_name, wrong_mtu, wrong_subnet
from conetd.policy.fields import Described, Members, Subnet, each, parse_address, parse_subnet

PORT = 4789  # IANA's, RFC 7348
_VNI_MAX = (1 << 24) - 1
_PREFIX_MIN, _PREFIX_MAX = 8, 28  # of the network's subnet
_HOST_PREFIX_USUAL, _HOST_PREFIX_MAX = 24, 30

_PEER = frozenset({"host", "underlay", "subnet"})
_VNI_SCHEMA = {"minimum": 1, "maximum": _VNI_MAX}
_PORT_SCHEMA = {"minimum": 1, "maximum": 65535, "description": "UDP port"}
_HOST_PREFIX_SCHEMA = {
    "minimum": _PREFIX_MIN + 1,
    "maximum": _HOST_PREFIX_MAX,
    "description": "prefix length of each host's part of subnet",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """A host of a cluster without a store: its name, its address on the underlay, and its part of the subnet."""

    host: str
    underlay: IPAddress
    subnet: IPv4Network


@dataclass(frozen=True, slots=True)
class VxlanConfig:
    """A vxlan network's config, complete and consistent.

    `host_prefix` is the prefix length of each host's part of `subnet`. `underlay` is an interface, or an address, of
    the host; None is the driver's choice, as is `mtu` None.
    """

    vni: int
    subnet: IPv4Network
    host_prefix: int
    subnet6: IPv6Network | None = None
    port: int = PORT
    underlay: IPAddress | str | None = None
    peers: tuple[Peer, ...] = ()
    mtu: int | None = None
    masquerade: bool = True
    deny_networks: tuple[IPNetwork, ...] = ()
    dns_servers: tuple[IPAddress, ...] = ()
    search_domains: tuple[str, ...] = ()

    @property
    def subnets(self) -> tuple[IPNetwork, ...]:
        """The network's subnets, IPv4 first."""
        return (self.subnet,) if self.subnet6 is None else (self.subnet, self.subnet6)

    @property
    def prefixes(self) -> tuple[tuple[int, int], ...]:
        """The prefix length of each host's part of the subnets, by IP version."""
        found = ((4, self.host_prefix), (6, _prefix6(self.host_prefix)))
        return found[: len(self.subnets)]

    @property
    def masqueraded(self) -> tuple[IPNetwork, ...]:
        """The subnets whose packets to the world leave with the host's address: IPv6 only if unique-local."""
        if not self.masquerade:
            return ()
        return tuple(one for one in self.subnets if isinstance(one, IPv4Network) or is_unique_local(one))

    def parts(self) -> Iterator[IPv4Network]:
        """The parts of the subnet that hosts can have, lowest first."""
        return self.subnet.subnets(new_prefix=self.host_prefix)

    def part6(self, part: IPv4Network) -> IPv6Network | None:
        """The part of subnet6 that goes with a part of the subnet: it has the same place."""
        if self.subnet6 is None:
            return None
        place = int(part.network_address) - int(self.subnet.network_address)
        return IPv6Network((int(self.subnet6.network_address) + place, _prefix6(part.prefixlen)))


def _prefix6(prefix: int) -> int:
    return 128 - (32 - prefix)


class Underlay(Described[IPAddress | str]):
    """An interface of the host by its name, or an address of it."""

    json_schema = {"type": "string", "description": "interface or IP address of the host"}  # noqa: RUF012  # read only

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any
    ) -> IPAddress | str:
        try:
            return _underlay(value)
        except ValidationError:
            if isinstance(value, str) and is_interface_name(value):
                return value
        raise ValidationError("is neither an interface's name nor an address that other hosts can send to.")

    def _serialize(self, value: IPAddress | str | None, attr: str | None, obj: Any, **more: Any) -> str | None:
        return None if value is None else str(value)


class Peers(Described[tuple[Peer, ...]]):
    """A list of hosts; loads to a tuple."""

    json_schema = {  # noqa: RUF012  # read only
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "host": {"type": "string"},
                "underlay": {"type": "string", "description": "IP address"},
                "subnet": {"type": "string", "description": "network as address/prefix"},
            },
            "required": sorted(_PEER),
            "additionalProperties": False,
        },
    }

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any
    ) -> tuple[Peer, ...]:
        return each(value, lambda one, _: _peer(one))

    def _serialize(self, value: tuple[Peer, ...] | None, attr: str | None, obj: Any, **more: Any) -> list[JSON]:
        return [{"host": one.host, "underlay": str(one.underlay), "subnet": str(one.subnet)} for one in value or ()]


class ConfigSchema(CommonConfigSchema):
    """Loads to VxlanConfig. What is left out is filled in, so that dumping gives the network as it will be."""

    vni = fields.Integer(strict=True, required=True, validate=validate.Range(1, _VNI_MAX), metadata=_VNI_SCHEMA)
    subnet = Subnet(version=4, required=True)
    subnet6 = Subnet(version=6)
    host_prefix = fields.Integer(strict=True, metadata=_HOST_PREFIX_SCHEMA)
    port = fields.Integer(strict=True, load_default=PORT, validate=validate.Range(1, 65535), metadata=_PORT_SCHEMA)
    underlay = Underlay()
    peers = Peers(load_default=())

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> VxlanConfig:
        """Fill in what follows from the rest and refuse what contradicts it."""
        subnet: IPv4Network = data["subnet"]
        subnet6: IPv6Network | None = data.get("subnet6")
        if wrong := _wrong_subnet(subnet):
            raise ValidationError({"subnet": [wrong]})
        complaints: dict[str, Any] = {}
        if subnet6 is not None and (wrong := _wrong_subnet6(subnet6, subnet)):
            complaints["subnet6"] = [wrong]
        data.setdefault("host_prefix", min(max(_HOST_PREFIX_USUAL, subnet.prefixlen + 2), _HOST_PREFIX_MAX))
        if not subnet.prefixlen < data["host_prefix"] <= _HOST_PREFIX_MAX:
            complaints["host_prefix"] = [f"must be from {subnet.prefixlen + 1} to {_HOST_PREFIX_MAX} for {subnet}."]
        elif wrong_peers := _wrong_peers(data["peers"], subnet, data["host_prefix"]):
            complaints["peers"] = wrong_peers
        if _within(data.get("underlay"), data):
            complaints["underlay"] = [f"lies within the network's own {_within(data['underlay'], data)}."]
        if wrong := wrong_mtu(data.get("mtu"), ipv6=subnet6 is not None):
            complaints["mtu"] = [wrong]
        if complaints:
            raise ValidationError(complaints)
        data["search_domains"] = tuple(data["search_domains"])
        return VxlanConfig(**data)


def _wrong_subnet(subnet: IPv4Network) -> str | None:
    if not _PREFIX_MIN <= subnet.prefixlen <= _PREFIX_MAX:
        return f"must have a prefix length from {_PREFIX_MIN} to {_PREFIX_MAX}, to be divided among hosts."
    return wrong_subnet(subnet)


def _wrong_subnet6(subnet6: IPv6Network, subnet: IPv4Network) -> str | None:
    if subnet6.prefixlen > _prefix6(subnet.prefixlen):
        return f"is smaller than {subnet}: it needs a prefix length of at most {_prefix6(subnet.prefixlen)}."
    return wrong_subnet(subnet6)


def _wrong_peers(peers: tuple[Peer, ...], subnet: IPv4Network, host_prefix: int) -> dict[int, dict[str, list[str]]]:
    wrong: dict[int, dict[str, list[str]]] = {}
    taken: dict[tuple[str, Any], int] = {}
    for index, peer in enumerate(peers):
        complaints: dict[str, list[str]] = {}
        for field in ("host", "underlay", "subnet"):
            number = taken.setdefault((field, getattr(peer, field)), index)
            if number != index:
                complaints[field] = [f"is that of entry [{number}] of this list, too."]
        if peer.subnet.prefixlen != host_prefix or not peer.subnet.subnet_of(subnet):
            complaints["subnet"] = [f"is no part of {subnet} with the prefix length {host_prefix} (host_prefix)."]
        if peer.underlay.version != peers[0].underlay.version:
            complaints["underlay"] = [f"must be an IPv{peers[0].underlay.version} address, like that of entry [0]."]
        elif isinstance(peer.underlay, IPv4Address) and peer.underlay in subnet:
            complaints["underlay"] = [f"lies within the network's own {subnet}."]
        if complaints:
            wrong[index] = complaints
    return wrong


def _within(underlay: IPAddress | str | None, data: Mapping[str, Any]) -> IPNetwork | None:
    if underlay is None or isinstance(underlay, str):
        return None
    subnet: IPNetwork | None = data.get("subnet" if underlay.version == 4 else "subnet6")
    return subnet if subnet is not None and underlay in subnet else None


def _peer(document: Any) -> Peer:
    members = Members(document, _PEER)
    for field in sorted(_PEER - members.given.keys()):
        members.complaints[field] = ["is missing."]
    host = members.take("host", parse_name)
    underlay = members.take("underlay", _underlay)
    subnet = members.take("subnet", lambda value: parse_subnet(value, 4))
    members.finish()
    return Peer(host, underlay, subnet)


def _underlay(value: Any) -> IPAddress:
    address = parse_address(value)
    if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local:
        raise ValidationError("is no address that other hosts can send to.")
    return address
