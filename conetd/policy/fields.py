"""Which marshmallow fields documents about networks are made of: addresses, subnets, switches.

Strict on purpose: a document that could mean something else than its author thinks is refused, with what is wrong.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from marshmallow import ValidationError, fields

from conetd.model import IPAddress, IPNetwork, read_address

T = TypeVar("T")


class Described(fields.Field[T]):
    """A field that says its own JSON Schema, in `json_schema`."""

    json_schema: Mapping[str, Any] = {}

    def __init__(self, **options: Any) -> None:
        options["metadata"] = {**self.json_schema, **options.get("metadata", {})}
        super().__init__(**options)


class Switch(fields.Boolean):
    """true or false, and nothing that merely resembles them."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any) -> bool:
        return parse_switch(value)


class Address(Described[IPAddress]):
    """An IP address, of one version if `version` (4 or 6) is given."""

    json_schema = {"type": "string", "description": "IP address"}  # noqa: RUF012  # read only

    def __init__(self, *, version: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.version = version

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any) -> IPAddress:
        return parse_address(value, self.version)

    def _serialize(self, value: IPAddress | None, attr: str | None, obj: Any, **more: Any) -> str | None:
        return None if value is None else str(value)


class Subnet(Described[IPNetwork]):
    """A network as `address/prefix` without host bits, of one version if `version` (4 or 6) is given."""

    json_schema = {"type": "string", "description": "network as address/prefix"}  # noqa: RUF012  # read only

    def __init__(self, *, version: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.version = version

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any) -> IPNetwork:
        return parse_subnet(value, self.version)

    def _serialize(self, value: IPNetwork | None, attr: str | None, obj: Any, **more: Any) -> str | None:
        return None if value is None else str(value)


class Addresses(Described[tuple[IPAddress, ...]]):
    """A list of IP addresses; loads to a tuple."""

    json_schema = {"type": "array", "items": Address.json_schema}  # noqa: RUF012  # read only

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any
    ) -> tuple[IPAddress, ...]:
        return each(value, lambda one, _: parse_address(one))

    def _serialize(self, value: tuple[IPAddress, ...] | None, attr: str | None, obj: Any, **more: Any) -> list[str]:
        return [str(one) for one in value or ()]


class Subnets(Described[tuple[IPNetwork, ...]]):
    """A list of networks of either version, each as `address/prefix` without host bits; loads to a tuple."""

    json_schema = {"type": "array", "items": Subnet.json_schema}  # noqa: RUF012  # read only

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any
    ) -> tuple[IPNetwork, ...]:
        return each(value, lambda one, _: parse_subnet(one))

    def _serialize(self, value: tuple[IPNetwork, ...] | None, attr: str | None, obj: Any, **more: Any) -> list[str]:
        return [str(one) for one in value or ()]


def parse_address(value: Any, version: int | None = None) -> IPAddress:
    """The address a text means; an IPv4 address in IPv6 clothes is an IPv4 address. Raises ValidationError."""
    try:
        if not isinstance(value, str):
            raise ValueError
        address = read_address(value)
    except ValueError:
        raise ValidationError("is not an IP address.") from None
    if version is not None and address.version != version:
        raise ValidationError(f"must be an IPv{version} address.")
    return address


def parse_subnet(value: Any, version: int | None = None) -> IPNetwork:
    """The network a text means. Raises ValidationError, also for host bits that are set or a missing prefix."""
    try:
        if not isinstance(value, str) or "/" not in value or "%" in value:
            raise ValueError
        network = ipaddress.ip_network(value, strict=False)
        address = ipaddress.ip_address(value.partition("/")[0])
    except ValueError:
        raise ValidationError("is not a network such as 10.0.0.0/24 or fd00::/64.") from None
    if network.network_address != address:
        raise ValidationError(f"has host bits set; the network is {network}.")
    if version is not None and network.version != version:
        raise ValidationError(f"must be an IPv{version} network.")
    return network


def parse_switch(value: Any) -> bool:
    """true or false. Raises ValidationError for everything else, 0 and "yes" included."""
    if value is True or value is False:
        return bool(value)
    raise ValidationError("must be true or false.")


def each(value: Any, parse: Callable[[Any, int], Any]) -> tuple[Any, ...]:
    """What `parse(member, index)` makes of each member of a list; complaints are gathered under their index."""
    if not isinstance(value, list):
        raise ValidationError("must be a list.")
    parsed: list[Any] = []
    complaints: dict[int, Any] = {}
    for index, one in enumerate(value):
        try:
            parsed.append(parse(one, index))
        except ValidationError as err:
            complaints[index] = err.messages
    if complaints:
        raise ValidationError(complaints)
    return tuple(parsed)


class Members:
    """The fields of one object, taken one by one while complaints are gathered under their names."""

    def __init__(self, value: Any, known: frozenset[str]) -> None:
        """Raises ValidationError for what is no object or has fields that are not known."""
        if not isinstance(value, dict):
            raise ValidationError("must be an object.")
        if not value.keys() <= known:
            unknown = sorted(str(field) for field in value.keys() - known)
            complaint = f"Unknown field. Known are {', '.join(sorted(known))}."
            raise ValidationError({field: [complaint] for field in unknown})
        self.given: Mapping[str, Any] = value
        self.complaints: dict[str, Any] = {}

    def take(self, name: str, parse: Callable[[Any], Any], default: Any = None) -> Any:
        """What `parse` makes of the field; the default if it is absent or wrong."""
        if name in self.given:
            try:
                return parse(self.given[name])
            except ValidationError as err:
                self.complaints[name] = err.messages
        return default

    def finish(self) -> None:
        """Raise ValidationError if there is anything to complain about."""
        if self.complaints:
            raise ValidationError(self.complaints)


def integer(value: Any, low: int, high: int) -> int:
    """The whole number, if it is one of low to high. Raises ValidationError."""
    if type(value) is not int or not low <= value <= high:
        raise ValidationError(f"must be a whole number from {low} to {high}.")
    return value
