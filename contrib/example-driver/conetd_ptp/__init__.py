"""A network type without a bridge: each container has a routed link of its own to the host."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from marshmallow import Schema, fields, post_dump, post_load, validate

from conetd.driver import JSON, Attachment, Conflict, Exhausted, Invalid, Lease, Network, PlannedDriver
from conetd.plan import (
    Address,
    AddressRange,
    Endpoint,
    EndpointPolicy,
    IPNetwork,
    Neighbour,
    NetworkFilter,
    Plan,
    Route,
    Rule,
    Side,
    Sysctl,
    Verdict,
    Veth,
)
from conetd.policy.fields import Subnet, Subnets, Switch

GATEWAY = IPv4Address("169.254.1.1")  # never leaves a link, so every container can have the same
HOST_MAC = "0a:70:00:00:00:01"  # likewise
EVERYWHERE = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class PtpConfig:
    """A network's config. `mtu` None is the uplink's."""

    subnet: IPv4Network
    mtu: int | None = None
    masquerade: bool = True


@dataclass(frozen=True, slots=True)
class PtpPolicy:
    """Which networks a container may reach; None is all of them."""

    allow: tuple[IPNetwork, ...] | None = None


class ConfigSchema(Schema):
    """Loads to PtpConfig."""

    subnet = Subnet(version=4, required=True)
    mtu = fields.Integer(strict=True, validate=validate.Range(576, 65535))
    masquerade = Switch(load_default=True)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> PtpConfig:
        """The document as a value."""
        return PtpConfig(**data)

    @post_dump
    def without_none(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        """What was left out stays out."""
        return {name: value for name, value in data.items() if value is not None}


class PolicySchema(Schema):
    """Loads to PtpPolicy."""

    allow = Subnets()

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> PtpPolicy:
        """The document as a value."""
        return PtpPolicy(**data)

    @post_dump(pass_original=True)
    def without_none(self, data: dict[str, Any], original: PtpPolicy, **_: Any) -> dict[str, Any]:
        """To allow nothing and to say nothing are two things."""
        return {} if original.allow is None else data


class PtpDriver(PlannedDriver[PtpConfig, PtpPolicy]):
    """Says what should exist; conetd does the rest."""

    api_version = 1
    config_schema = ConfigSchema
    policy_schema = PolicySchema

    def check_network(self, new: Network[PtpConfig], others: Sequence[Network[PtpConfig]]) -> None:
        for other in others:
            if other.name != new.name and other.config.subnet.overlaps(new.config.subnet):
                raise Conflict(
                    f'network "{new.name}": subnet {new.config.subnet} overlaps that of network "{other.name}"',
                    fields={"config.subnet": f'overlaps {other.config.subnet} of network "{other.name}"'},
                )

    def allocate(self, network: Network[PtpConfig], attachment: Attachment, held: Collection[str]) -> Lease:
        subnet, requested = network.config.subnet, attachment.requested
        if requested.ip6 is not None or requested.mac is not None:
            field = "mac" if requested.ip6 is None else "ip6"
            raise Invalid(f"{field}: a network of type ptp has no choice of it", fields={field: "not to be chosen"})
        if requested.ip is None:
            free = (ip for ip in subnet if f"ip:{ip}" not in held)
            ip = next(free, None)
            if ip is None:
                raise Exhausted(f'network "{network.name}" is full: all of {subnet} is taken')
        elif not isinstance(requested.ip, IPv4Address) or requested.ip not in subnet:
            raise Invalid(f"ip: {requested.ip} is not in {subnet}", fields={"ip": f"not in {subnet}"})
        elif f"ip:{requested.ip}" in held:
            raise Conflict(f"ip: {requested.ip} is already taken", fields={"ip": "already taken"})
        else:
            ip = requested.ip
        return Lease({"ip": str(ip)}, frozenset({f"ip:{ip}"}), frozenset({4}))

    def plan_network(self, network: Network[PtpConfig]) -> Plan:
        subnets: tuple[IPNetwork, ...] = (network.config.subnet,)
        masquerade = subnets if network.config.masquerade else ()
        return Plan(filter=(NetworkFilter(network.key, subnets, masquerade=masquerade),), forward=frozenset({4}))

    def plan_attachment(self, network: Network[PtpConfig], attachment: Attachment) -> Plan:
        ip, inside, port = _ip(attachment), attachment.ifname, f"pt{attachment.key}"
        mac = _mac(ip)
        reachable = [network.config.subnet] + ([EVERYWHERE] if 4 in attachment.default_route else [])
        return Plan(
            links=(Veth(port, inside, mac, _mtu(network), host_mac=HOST_MAC),),
            addresses=(Address(inside, IPv4Interface(ip), Side.CONTAINER),),
            routes=(
                Route(IPv4Network(ip), port),
                *(Route(one, inside, via=GATEWAY, onlink=True, side=Side.CONTAINER) for one in reachable),
            ),
            # Nobody needs to ask for a MAC on a link that both ends know.
            neighbours=(Neighbour(port, ip, mac), Neighbour(inside, GATEWAY, HOST_MAC, Side.CONTAINER)),
            sysctls=(
                Sysctl("ipv6/conf/default/disable_ipv6", "1", Side.CONTAINER, early=True),
                Sysctl(f"ipv4/conf/{port}/forwarding", "1"),
            ),
            filter=(Endpoint(attachment.key, network.key, attachment.handle, port, (ip,), mac),),
        )

    def plan_policy(self, network: Network[PtpConfig], attachment: Attachment, policy: PtpPolicy) -> Plan:
        rules: tuple[Rule, ...] = ()
        if policy.allow is not None:
            rules = tuple(
                Rule(Verdict.ACCEPT, destinations=(AddressRange.of(one),), origin=f"allow[{index}]")
                for index, one in enumerate(policy.allow)
            )
            rules += (Rule(Verdict.REJECT, origin="allow"),)
        return Plan(filter=(EndpointPolicy(attachment.key, rules),))

    def describe(self, network: Network[PtpConfig], attachment: Attachment) -> JSON:
        ip = _ip(attachment)
        return {"addresses": [f"{ip}/32"], "mac": _mac(ip), "gateway": str(GATEWAY), "mtu": _mtu(network)}


def _ip(attachment: Attachment) -> IPv4Address:
    assert attachment.lease is not None, "the core plans only for attachments with a lease"
    return IPv4Address(attachment.lease.data["ip"])


def _mac(ip: IPv4Address) -> str:
    return ":".join(f"{byte:02x}" for byte in (0x0A, 0x71, *ip.packed))


def _mtu(network: Network[PtpConfig]) -> int:
    return network.config.mtu or network.uplink_mtu
