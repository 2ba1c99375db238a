"""What a bridge network's `config` may say, and the value it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from marshmallow import ValidationError, fields, post_load

from conetd.driver import IPAddress, is_interface_name
from conetd.plan import AddressRange, IPNetwork
from conetd.policy.common import CommonConfigSchema, is_unique_local, wrong_mtu, wrong_subnet
from conetd.policy.fields import Address, Described, Subnet, Switch, parse_address, parse_subnet

_BRIDGE_SCHEMA = {"pattern": "^[A-Za-z0-9._-]{1,15}$", "description": "name of the bridge"}


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """A bridge network's config, complete and consistent.

    `range` is the part of `subnet` that addresses are chosen from when no container asks for a particular one.
    `bridge` and `mtu` None are the driver's choice.
    """

    subnet: IPv4Network
    gateway: IPv4Address
    range: AddressRange
    subnet6: IPv6Network | None = None
    gateway6: IPv6Address | None = None
    bridge: str | None = None
    mtu: int | None = None
    masquerade: bool = True
    masquerade6: bool = False
    deny_networks: tuple[IPNetwork, ...] = ()
    allow_host_access: bool = False
    isolated: bool = False
    dns_servers: tuple[IPAddress, ...] = ()
    search_domains: tuple[str, ...] = ()

    @property
    def masqueraded(self) -> tuple[IPNetwork, ...]:
        """The subnets whose packets leave with the host's address: IPv6 only if unique-local, or by `masquerade6`."""
        found: list[IPNetwork] = [self.subnet] if self.masquerade else []
        if self.subnet6 is not None:
            local = self.masquerade and is_unique_local(self.subnet6)
            found += [self.subnet6] if local or self.masquerade6 else []
        return tuple(found)


class Range(Described[AddressRange]):
    """Addresses as `first-last`, or as a network in `address/prefix`; dumped as `first-last`."""

    json_schema = {"type": "string", "description": "first-last, or address/prefix"}  # noqa: RUF012  # read only

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any) -> AddressRange:
        if not isinstance(value, str):
            raise ValidationError("must be a text such as 10.0.0.128/25 or 10.0.0.10-10.0.0.99.")
        if "/" in value:
            return AddressRange.of(parse_subnet(value, 4))
        first, dash, last = value.partition("-")
        if not dash:
            raise ValidationError("must be a text such as 10.0.0.128/25 or 10.0.0.10-10.0.0.99.")
        return AddressRange(parse_address(first.strip(), 4), parse_address(last.strip(), 4))

    def _serialize(self, value: AddressRange | None, attr: str | None, obj: Any, **more: Any) -> str | None:
        return None if value is None else f"{value.first}-{value.last}"


def _check_bridge(name: str) -> None:
    if not is_interface_name(name):
        raise ValidationError("is no interface name: 1 to 15 of A-Z a-z 0-9 . _ - and not lo, all or default.")


class ConfigSchema(CommonConfigSchema):
    """Loads to BridgeConfig. What is left out is filled in, so that dumping gives the network as it will be."""

    subnet = Subnet(version=4, required=True)
    subnet6 = Subnet(version=6)
    gateway = Address(version=4)
    gateway6 = Address(version=6)
    range = Range()
    bridge = fields.String(validate=_check_bridge, metadata=_BRIDGE_SCHEMA)
    masquerade6 = Switch(load_default=False)
    allow_host_access = Switch(load_default=False)
    isolated = Switch(load_default=False)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> BridgeConfig:
        """Fill in what follows from the rest and refuse what contradicts it."""
        for name in ("subnet", "subnet6"):
            if name in data and (wrong := wrong_subnet(data[name])):
                raise ValidationError({name: [wrong]})
        subnet: IPv4Network = data["subnet"]
        subnet6: IPv6Network | None = data.get("subnet6")
        complaints: dict[str, list[str]] = {}
        data.setdefault("gateway", subnet[1])
        if not is_host(data["gateway"], subnet):
            complaints["gateway"] = [f"is not an address for a host in {subnet}."]
        data.setdefault("range", AddressRange(subnet[1], subnet[-2]))
        if wrong := _wrong_range(data["range"], subnet, data["gateway"]):
            complaints["range"] = [wrong]
        if subnet6 is None:
            complaints |= {name: ["needs a subnet6."] for name in ("gateway6", "masquerade6") if data.get(name)}
        else:
            data.setdefault("gateway6", subnet6[1])
            if data["gateway6"] not in subnet6 or data["gateway6"] == subnet6.network_address:
                complaints["gateway6"] = [f"is not an address for a host in {subnet6}."]
        if wrong := wrong_mtu(data.get("mtu"), ipv6=subnet6 is not None):
            complaints["mtu"] = [wrong]
        if complaints:
            raise ValidationError(complaints)
        data["search_domains"] = tuple(data["search_domains"])
        return BridgeConfig(**data)


def is_host(address: IPv4Address, subnet: IPv4Network) -> bool:
    """Whether the address is one of the subnet that a host can have: neither its first nor its broadcast address."""
    return address in subnet and address not in (subnet.network_address, subnet.broadcast_address)


def _wrong_range(range_: AddressRange, subnet: IPv4Network, gateway: IPv4Address) -> str | None:
    first, last = int(range_.first), int(range_.last)
    if first > last:
        return "runs backwards: its first address is above its last."
    if range_.first not in subnet or range_.last not in subnet:
        return f"does not lie within {subnet}."
    reserved = {int(subnet.network_address), int(subnet.broadcast_address), int(gateway)}
    if last - first < 3 and all(number in reserved for number in range(first, last + 1)):
        return "holds no address that a container could have."
    return None
