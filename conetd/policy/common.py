"""What the documents of several network types have in common: fields of a config, and the rules that follow from them.

Network types share a word of their config only if it means the same in each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Network
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_dump, validate

from conetd.errors import Conflict, Invalid
from conetd.model import TCP, UDP, AddressRange, IPAddress, IPNetwork, PortRange, Rule, Verdict, check_handle
from conetd.model.names import NETWORK_NAME
from conetd.policy.fields import Addresses, Subnets, Switch

MTU_MIN, MTU6_MIN, MTU_MAX = 576, 1280, 65535  # bytes; RFC 791, RFC 8200

# Also told to clients in the JSON Schema, whose regular expressions are ECMAScript's: they have no \Z.
_DOMAIN = re.compile(r"^(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?$(?!\n)")
_MTU_SCHEMA = {"minimum": MTU_MIN, "maximum": MTU_MAX, "description": "bytes"}
_UNIQUE_LOCAL = IPv6Network("fc00::/7")
_DNS = 53


class CommonConfigSchema(Schema):
    """Fields that configs have in common. What is None is left out of a dump, as a client would."""

    mtu = fields.Integer(strict=True, metadata=_MTU_SCHEMA)
    masquerade = Switch(load_default=True)
    deny_networks = Subnets(load_default=())
    dns_servers = Addresses(load_default=())
    search_domains = fields.List(
        fields.String(validate=validate.Regexp(_DOMAIN, error="is no domain name.")), load_default=()
    )

    @post_dump
    def without_what_is_not_there(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Leave out what is None."""
        return {name: value for name, value in data.items() if value is not None}


def wrong_mtu(mtu: int | None, *, ipv6: bool) -> str | None:
    """What is wrong with an MTU for a network with or without IPv6; None if nothing is."""
    low = MTU6_MIN if ipv6 else MTU_MIN
    if mtu is None or low <= mtu <= MTU_MAX:
        return None
    return f"must be from {low} to {MTU_MAX}{', for IPv6' if ipv6 else ''}."


def wrong_subnet(subnet: IPNetwork) -> str | None:
    """What is wrong with a subnet that containers are to have addresses of; None if nothing is."""
    if subnet.is_loopback or subnet.is_multicast or subnet[0].is_unspecified or subnet.prefixlen < 8:
        return "is not a range that hosts can have addresses of."
    if subnet.version == 6 and subnet.is_link_local:
        return "is link-local, and cannot be routed."
    if subnet.num_addresses < 4:
        return "is too small for a gateway and a container."
    return None


def is_unique_local(subnet: IPv6Network) -> bool:
    """Whether addresses of the subnet mean nothing to the rest of the world."""
    return subnet.subnet_of(_UNIQUE_LOCAL)


def refuse_overlap(new: str, other: str, subnets: Mapping[str, tuple[IPNetwork | None, IPNetwork | None]]) -> None:
    """Raise Conflict where subnets overlap: by field of the config, that of `new` and that of `other`."""
    for field, (mine, theirs) in subnets.items():
        if mine is not None and theirs is not None and mine.overlaps(theirs):
            raise Conflict(
                f'network "{new}": {field} {mine} overlaps {theirs} of network "{other}"',
                fields={f"config.{field}": f'overlaps {theirs} of network "{other}"'},
            )


def parse_name(value: Any) -> str:
    """The name of a network or host. Raises ValidationError."""
    if isinstance(value, str) and NETWORK_NAME.fullmatch(value):
        return value
    raise ValidationError("is no name: 1 to 128 of A-Z a-z 0-9 . _ - that begin with a letter or digit.")


def parse_handle(value: Any) -> str:
    """The handle of a container. Raises ValidationError."""
    try:
        return check_handle(value)
    except (Invalid, TypeError):
        raise ValidationError(
            "is no handle: 1 to 255 of A-Z a-z 0-9 . _ : @ - that are neither . nor .. alone."
        ) from None


# The same objects each time: rules that are known already by identity are compared and compiled faster.
@lru_cache(maxsize=256)
def deny(networks: tuple[IPNetwork, ...], origin: str) -> tuple[Rule, ...]:
    """Rules that reject what goes to the networks; `origin` is the path of their list."""
    return tuple(
        Rule(Verdict.REJECT, destinations=(AddressRange.of(network),), origin=f"{origin}[{index}]")
        for index, network in enumerate(networks)
    )


@lru_cache(maxsize=256)
def resolvers(servers: tuple[IPAddress, ...]) -> tuple[Rule, ...]:
    """A resolver that the containers are told of may run on the host itself: that much of it is open to them."""
    return tuple(
        Rule(
            Verdict.ACCEPT,
            protocol,
            (AddressRange(one, one),),
            ports=(PortRange(_DNS, _DNS),),
            origin=f"config.dns_servers[{index}]",
        )
        for index, one in enumerate(servers)
        for protocol in (UDP, TCP)
    )
