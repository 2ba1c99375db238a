"""Which documents clients send, as schemas: networks, container configs, policies, and what engines say at up."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from marshmallow import Schema, ValidationError, fields, post_load, validate, validates_schema

from conetd.documents import load, strict
from conetd.errors import Invalid
from conetd.garden.gojson import DecodeError, Path
from conetd.garden.wire import NetIn, NetOutRule, net_ins, net_out_rules
from conetd.model import JSON, is_interface_name
from conetd.model.names import NETWORK_NAME
from conetd.reconcile.configure import Config
from conetd.store import Join

T = TypeVar("T")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_RULES_AT_ONCE = 200  # of Garden's, which take some 10 us each to read
_LABEL_MOST = 255  # characters of a label's name or value


def network_name(value: str) -> None:
    """Raise ValidationError unless this may be a network's name."""
    if not NETWORK_NAME.fullmatch(value):
        raise ValidationError("must be 1 to 128 of A-Z a-z 0-9 . _ -, beginning with a letter or digit.")


class NetworkSchema(Schema):
    """`POST /networks`, and `[[networks]]` of the settings."""

    name = fields.String(required=True, validate=network_name)
    type = fields.String(required=True, validate=validate.Length(min=1))
    config = fields.Dict(keys=fields.String(), load_default=dict)
    default_policy = fields.Dict(keys=fields.String(), load_default=dict)


def _address(version: int) -> Any:
    def check(value: str) -> None:
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            raise ValidationError(f"is not an IPv{version} address.") from None
        if address.version != version:
            raise ValidationError(f"is not an IPv{version} address.")

    return check


def _mac(value: str) -> None:
    if not _MAC.fullmatch(value.lower()):
        raise ValidationError("is not a MAC address such as 0a:00:00:00:00:01.")
    if int(value[:2], 16) & 1:
        raise ValidationError("is a multicast address.")
    if value.replace("0", "") == ":::::":
        raise ValidationError("is all zeroes.")


def _ifname(value: str) -> None:
    if not is_interface_name(value):
        raise ValidationError("is not an interface name: 1 to 15 of A-Z a-z 0-9 . _ - and not lo, all or default.")


class JoinSchema(Schema):
    """One entry of `attach_to` in its long form."""

    network = fields.String(required=True, validate=network_name)
    ip = fields.String(validate=_address(4))
    ip6 = fields.String(validate=_address(6))
    mac = fields.String(validate=_mac)
    ifname = fields.String(validate=_ifname)

    @post_load
    def _make(self, data: dict[str, Any], **_: Any) -> Join:
        for name in ("ip", "ip6"):
            if name in data:
                data[name] = str(ipaddress.ip_address(data[name]))
        if "mac" in data:
            data["mac"] = data["mac"].lower()
        return Join(**data)


class _JoinField(fields.Field[Join]):
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Join:
        if isinstance(value, str):
            network_name(value)
            return Join(value)
        if isinstance(value, Mapping):
            join: Join = strict(JoinSchema()).load(value)
            return join
        raise ValidationError("must be a network's name, or an object with `network`.")


def _labels(value: Mapping[str, str]) -> None:
    for name, text in value.items():
        if not 1 <= len(name) <= _LABEL_MOST or len(text) > _LABEL_MOST:
            raise ValidationError(f"names are 1 to {_LABEL_MOST} characters, values at most as many: {name[:40]!r}.")


class ConfigSchema(Schema):
    """`PUT /containers/:handle/config`."""

    attach_to = fields.List(_JoinField(), required=True)
    labels = fields.Dict(keys=fields.String(), values=fields.String(), load_default=dict, validate=_labels)

    @validates_schema(skip_on_field_errors=True)
    def _once(self, data: dict[str, Any], **_: Any) -> None:
        seen: dict[str, set[str]] = {"network": set(), "ifname": set()}
        for number, join in enumerate(data["attach_to"]):
            for name in seen:
                value = getattr(join, name)
                if value in seen[name]:
                    raise ValidationError({"attach_to": {number: [f"{name} {value} is named twice."]}})
                if value is not None:
                    seen[name].add(value)


class PolicySchema(Schema):
    """`PUT /containers/:handle/policy`."""

    networks = fields.Dict(keys=fields.String(), values=fields.Dict(keys=fields.String()), required=True)


@dataclass(frozen=True, slots=True)
class UpRequest:
    """What `up` needs of whatever the engine sent."""

    pid: int
    properties: Mapping[str, str]
    net_in: tuple[NetIn, ...] = ()
    net_out: tuple[NetOutRule, ...] = ()
    plugin: bool = False
    """It is Guardian that asks, as of its network plugin."""


def network(document: Any, path: str = "") -> JSON:
    """A network document, its outside checked; the driver checks `config` and `default_policy`. Raises Invalid."""
    loaded: JSON = load(NetworkSchema(), document, path, what="network")
    return loaded


def config(document: Any) -> Config:
    """A container's config. Raises Invalid."""
    loaded = load(ConfigSchema(), document, what="config")
    return Config(tuple(loaded["attach_to"]), loaded["labels"])


def policies(document: Any) -> dict[str, JSON]:
    """Network to policy document; the drivers check each. Raises Invalid."""
    loaded: dict[str, JSON] = load(PolicySchema(), document, what="policy")["networks"]
    return loaded


def is_long(document: Any) -> bool:
    """Whether `up_request` takes more than a few milliseconds for this body."""
    lists = (document.get(name) for name in ("netin", "netout_rules")) if isinstance(document, Mapping) else ()
    return any(isinstance(one, list) and len(one) > _RULES_AT_ONCE for one in lists)


def up_request(document: Any) -> UpRequest:
    """Read OCI state of any era (`pid`), or what Guardian hands a network plugin (`Pid`, `Properties`, `netin`, …).

    Unknown fields are ignored: the engine says more than we need. Raises Invalid.
    """
    if not isinstance(document, Mapping):
        raise Invalid("the body must be the OCI state, or Guardian's object with Pid", fields={"": "not an object"})
    name = "Pid" if "Pid" in document else "pid"
    pid = document.get(name)
    if isinstance(pid, bool) or not isinstance(pid, int) or pid <= 0:
        complaint = f"must be the number of a running process (got {pid!r})"
        raise Invalid(f"{name} {complaint}", fields={name: complaint})
    return UpRequest(
        pid,
        _properties(document),
        _decoded(document, "netin", net_ins),
        _decoded(document, "netout_rules", net_out_rules),
        plugin=name == "Pid",
    )


def _properties(document: Mapping[str, Any]) -> dict[str, str]:
    name = "Properties" if "Properties" in document else "annotations"
    properties = document.get(name) or {}
    if not isinstance(properties, Mapping) or not all(isinstance(value, str) for value in properties.values()):
        raise Invalid(f"{name} must be an object of strings", fields={name: "must be an object of strings"})
    return dict(properties)


def _decoded(document: Mapping[str, Any], name: str, decode: Callable[[Any, Any, Path], T]) -> T:
    """A list in Garden's words, read as Garden reads it. Raises Invalid."""
    try:
        return decode(document.get(name), None, (name,))
    except DecodeError as err:
        path, complaint = next(iter(err.fields.items()))
        raise Invalid(f"{path} {complaint}", fields=err.fields) from err
