"""How Garden writes rules and port mappings, and what they mean: the fields `net_out` and `net_in` of a policy.

Stricter than Garden itself, which ignores unknown fields and leaves the rest to iptables. Parsed by hand: nested
marshmallow schemas take twenty times as long, and a policy may have thousands of rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError

from conetd.model import (
    ICMP,
    ICMPV6,
    JSON,
    PROTOCOL_NAMES,
    TCP,
    UDP,
    AddressRange,
    Icmp,
    IPAddress,
    PortRange,
    PortRequest,
    Rule,
    Verdict,
)
from conetd.policy.fields import Described, Members, each, integer, parse_address, parse_switch

# garden/net_out_rule.go
_PROTOCOLS: dict[Any, int | None] = {0: None, 1: TCP, 2: UDP, 3: ICMP, 4: ICMPV6, "all": None} | {
    name: number for number, name in PROTOCOL_NAMES.items()
}
_PORT_PROTOCOLS: dict[Any, int] = {1: TCP, 2: UDP, "tcp": TCP, "udp": UDP}
_ICMP_ANY = 255  # iptables' --icmp-type 255 matches every type

_RULE = frozenset({"protocol", "networks", "ports", "icmps", "log"})
_RANGE = frozenset({"start", "end"})
_ICMP = frozenset({"type", "code"})
_MAPPING = frozenset({"host_port", "container_port", "protocol", "host_ip"})

_PORT_SCHEMA = {"type": "integer", "minimum": 0, "maximum": 65535}
_BYTE_SCHEMA = {"type": "integer", "minimum": 0, "maximum": 255}


def _object(properties: JSON, required: tuple[str, ...] = ()) -> JSON:
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {})


class NetOut(Described[tuple[Rule, ...]]):
    """A list of Garden's NetOutRule; loads to accepting rules whose `origin` is the field's name and the index."""

    json_schema = {  # noqa: RUF012  # read only
        "type": "array",
        "items": _object(
            {
                "protocol": {"enum": list(_PROTOCOLS), "default": "all"},
                "networks": {
                    "type": "array",
                    "items": _object({"start": {"type": "string"}, "end": {"type": "string"}}),
                },
                "ports": {
                    "type": "array",
                    "items": _object({"start": _PORT_SCHEMA, "end": _PORT_SCHEMA}, ("start", "end")),
                },
                "icmps": _object({"type": _BYTE_SCHEMA, "code": _BYTE_SCHEMA | {"type": ["integer", "null"]}}),
                "log": {"type": "boolean", "default": False},
            }
        ),
    }

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any
    ) -> tuple[Rule, ...]:
        return each(value, lambda one, index: net_out_rule(one, f"{attr}[{index}]"))

    def _serialize(self, value: tuple[Rule, ...] | None, attr: str | None, obj: Any, **more: Any) -> list[JSON]:
        return [net_out_document(rule) for rule in value or ()]


class NetIn(Described[tuple[PortRequest, ...]]):
    """A list of port mappings; loads to requests whose `path` is the field's name and the index."""

    json_schema = {  # noqa: RUF012  # read only
        "type": "array",
        "items": _object(
            {
                "host_port": _PORT_SCHEMA,
                "container_port": _PORT_SCHEMA | {"default": 0},
                "protocol": {"enum": list(_PORT_PROTOCOLS), "default": "tcp"},
                "host_ip": {"type": "string"},
            },
            ("host_port",),
        ),
    }

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any
    ) -> tuple[PortRequest, ...]:
        requests: tuple[PortRequest, ...] = each(value, lambda one, index: port_request(one, f"{attr}[{index}]"))
        _refuse_twice(requests)
        return requests

    def _serialize(self, value: tuple[PortRequest, ...] | None, attr: str | None, obj: Any, **more: Any) -> list[JSON]:
        return [port_document(request) for request in value or ()]


def net_out_rule(document: Any, origin: str) -> Rule:
    """The rule that a NetOutRule document means.

    A network with only `start` or only `end` is that one address, one with neither is anywhere; ICMP type 255 with
    code 255 or none is any. Raises ValidationError with `messages` nested as the document is.
    """
    fields = Members(document, _RULE)
    protocol = fields.take("protocol", _protocol)
    networks = fields.take("networks", lambda value: each(value, _network), ())
    ports = fields.take("ports", lambda value: each(value, _ports), ())
    icmp = fields.take("icmps", _icmp)
    log = fields.take("log", parse_switch, False)
    if "protocol" not in fields.complaints:
        if ports and protocol not in (TCP, UDP):
            fields.complaints["ports"] = [f"cannot be given for protocol {_name(protocol)}, only for tcp and udp."]
        if "icmps" in fields.given and protocol not in (ICMP, ICMPV6):
            fields.complaints["icmps"] = [f"cannot be given for protocol {_name(protocol)}, only for icmp and icmpv6."]
    fields.finish()
    return Rule(
        Verdict.ACCEPT,
        protocol,
        () if None in networks else networks,
        ports=ports,
        icmp=icmp,
        log=log,
        origin=origin,
    )


def net_out_document(rule: Rule) -> JSON:
    """The document that `net_out_rule` makes this rule of, without what goes without saying."""
    document: JSON = {"protocol": _name(rule.protocol)}
    if rule.destinations:
        document["networks"] = [{"start": str(one.first), "end": str(one.last)} for one in rule.destinations]
    if rule.ports:
        document["ports"] = [{"start": one.first, "end": one.last} for one in rule.ports]
    if rule.icmp is not None:
        document["icmps"] = {"type": rule.icmp.type}
        if rule.icmp.code is not None:
            document["icmps"]["code"] = rule.icmp.code
    if rule.log:
        document["log"] = True
    return document


def port_request(document: Any, path: str) -> PortRequest:
    """The request that one port mapping means. Raises ValidationError with `messages` nested as the document is."""
    fields = Members(document, _MAPPING)
    if "host_port" not in fields.given:
        fields.complaints["host_port"] = ["is missing; 0 stands for any free port."]
    request = PortRequest(
        fields.take("protocol", _port_protocol, TCP),
        fields.take("host_port", _port, 0),
        fields.take("container_port", _port, 0),
        fields.take("host_ip", _host_ip),
        path,
    )
    fields.finish()
    return request


def port_document(request: PortRequest) -> JSON:
    """The document that `port_request` makes this request of."""
    document: JSON = {
        "host_port": request.host_port,
        "container_port": request.container_port,
        "protocol": PROTOCOL_NAMES[request.protocol],
    }
    if request.host_ip is not None:
        document["host_ip"] = str(request.host_ip)
    return document


def _refuse_twice(requests: tuple[PortRequest, ...]) -> None:
    taken: dict[tuple[int, int], list[tuple[int, PortRequest]]] = {}
    for index, request in enumerate(requests):
        if not request.host_port:
            continue
        others = taken.setdefault((request.protocol, request.host_port), [])
        for number, other in others:
            if request.host_ip is None or other.host_ip is None or request.host_ip == other.host_ip:
                name = PROTOCOL_NAMES[request.protocol]
                raise ValidationError(
                    {index: {"host_port": [f"{name} port is published already by entry [{number}] of this list."]}}
                )
        others.append((index, request))


def _protocol(value: Any) -> int | None:
    if type(value) in (int, str) and value in _PROTOCOLS:
        return _PROTOCOLS[value]
    raise ValidationError("must be all, tcp, udp, icmp, icmpv6, or Garden's number of it, 0 to 4.")


def _port_protocol(value: Any) -> int:
    if type(value) in (int, str) and value in _PORT_PROTOCOLS:
        return _PORT_PROTOCOLS[value]
    raise ValidationError("must be tcp or udp, or Garden's number of it, 1 or 2.")


def _name(protocol: int | None) -> str:
    return "all" if protocol is None else PROTOCOL_NAMES[protocol]


def _port(value: Any) -> int:
    return integer(value, 0, 65535)


def _byte(value: Any) -> int:
    return integer(value, 0, 255)


def _network(value: Any, _index: int) -> AddressRange | None:
    fields = Members(value, _RANGE)
    first: IPAddress | None = fields.take("start", parse_address)
    last: IPAddress | None = fields.take("end", parse_address)
    fields.finish()
    if first is None and last is None:
        return None
    first = first or last
    last = last or first
    assert first is not None
    assert last is not None
    if first.version != last.version:
        raise ValidationError("mixes IPv4 and IPv6.")
    if int(first) > int(last):
        raise ValidationError("runs backwards: its start is above its end.")
    return AddressRange(first, last)


def _ports(value: Any, _index: int) -> PortRange:
    fields = Members(value, _RANGE)
    if len(fields.given) < 2:
        raise ValidationError("needs both start and end; for a single port, give it twice.")
    first, last = fields.take("start", _port), fields.take("end", _port)
    fields.finish()
    if first > last:
        raise ValidationError("runs backwards: its start is above its end.")
    return PortRange(first, last)


def _icmp(value: Any) -> Icmp | None:
    fields = Members(value, _ICMP)
    kind = fields.take("type", _byte, 0)
    code = fields.take("code", lambda given: None if given is None else _byte(given))
    fields.finish()
    return None if kind == _ICMP_ANY and code in (None, _ICMP_ANY) else Icmp(kind, code)


def _host_ip(value: Any) -> IPAddress:
    address = parse_address(value)
    if address.is_loopback:
        raise ValidationError("is a loopback address, which nothing can be published on.")
    if address.is_unspecified:
        raise ValidationError("is no address of an interface; leave host_ip out to publish on all of them.")
    if address.is_multicast:
        raise ValidationError("is a multicast address.")
    return address
