"""Which values Garden's requests carry, and how they are read: byte for byte what Garden's own server takes.

Types and field names are those of garden's net_in.go, net_out_rule.go and transport/payload.go, and of guardian's
netplugin/external_networker.go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conetd.garden import gojson
from conetd.garden.gojson import BadValue, Path
from conetd.model import JSON, IPAddress, read_address

ALL, TCP, UDP, ICMP, ICMPV6 = range(5)
_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class NetIn:
    """A port mapping that is asked for; 0 is "any", and for the container's "the same"."""

    host_port: int = 0
    container_port: int = 0


@dataclass(frozen=True, slots=True)
class IPRange:
    """Addresses; each end may be unset."""

    start: IPAddress | None = None
    end: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports; an end that was left out is 0."""

    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class ICMPControl:
    """An ICMP type, and a code or None for any."""

    type: int = 0
    code: int | None = None


@dataclass(frozen=True, slots=True)
class NetOutRule:
    """What a container may send. `protocol` is Garden's number, 0 to 4, or one that means nothing to it."""

    protocol: int = ALL
    networks: tuple[IPRange, ...] = ()
    ports: tuple[PortRange, ...] = ()
    icmps: ICMPControl | None = None
    log: bool = False


def net_in_request(body: bytes) -> NetIn:
    """The body of net/in. The handle it may have is read and ignored: the path decides. Raises DecodeError."""
    fields = {"handle": gojson.text, **_NET_IN}
    made = gojson.struct(gojson.first_value(body), "transport.NetInRequest", fields, (), {})
    return NetIn(made.get("host_port", 0), made.get("container_port", 0))


def net_out_request(body: bytes) -> NetOutRule:
    """The body of net/out: one rule. null is the rule that matches everything. Raises DecodeError."""
    return net_out_rule(gojson.first_value(body), None, ())


def bulk_net_out_request(body: bytes) -> tuple[NetOutRule, ...]:
    """The body of net/out/bulk: rules. null is none. Raises DecodeError."""
    return net_out_rules(gojson.first_value(body), None, ())


def plugin_net_in(body: bytes) -> NetIn:
    """What Guardian hands its network plugin for net-in; the addresses in it say nothing new. Raises DecodeError."""
    fields = {"hostip": gojson.text, "hostport": _PORT32, "containerip": gojson.text, "containerport": _PORT32}
    made = gojson.struct(gojson.first_value(body), "NetInInputs", fields, (), {})
    return NetIn(made.get("hostport", 0), made.get("containerport", 0))


def plugin_net_out(body: bytes) -> tuple[NetOutRule, ...]:
    """What Guardian hands its network plugin for net-out: one rule. Raises DecodeError."""
    fields = {"container_ip": gojson.text, "netout_rule": net_out_rule}
    made = gojson.struct(gojson.first_value(body), "NetOutInputs", fields, (), {})
    return (made.get("netout_rule", NetOutRule()),)


def plugin_bulk_net_out(body: bytes) -> tuple[NetOutRule, ...]:
    """What Guardian hands its network plugin for bulk-net-out. Raises DecodeError."""
    fields = {"container_ip": gojson.text, "netout_rules": net_out_rules}
    made = gojson.struct(gojson.first_value(body), "BulkNetOutInputs", fields, (), {})
    rules: tuple[NetOutRule, ...] = made.get("netout_rules", ())
    return rules


def net_ins(value: Any, before: Any, path: Path) -> tuple[NetIn, ...]:
    """Decodes the list `netin` of a container spec."""

    def one(member: Any, _: Any, at: Path) -> NetIn:
        made = gojson.struct(member, "garden.NetIn", _NET_IN, at, {})
        return NetIn(made.get("host_port", 0), made.get("container_port", 0))

    return gojson.array(value, one, "[]garden.NetIn", path)


def net_out_rules(value: Any, before: Any, path: Path) -> tuple[NetOutRule, ...]:
    """Decodes a list of rules."""
    return gojson.array(value, net_out_rule, "[]garden.NetOutRule", path, before)


def net_out_rule(value: Any, before: Any, path: Path) -> NetOutRule:
    """Decodes one rule."""
    return NetOutRule(**gojson.struct(value, "garden.NetOutRule", _NET_OUT_RULE, path, _fields(before)))


def _ip_address(value: Any, before: Any, path: Path) -> IPAddress | None:
    """Decodes net.IP: what is empty is unset, and an IPv4 address in IPv6 clothes is an IPv4 address."""
    if value is None:
        return None
    if not isinstance(value, str) or isinstance(value, gojson.Number):
        raise gojson.mismatch(value, "net.IP", path, "must be an IP address")
    if not value:
        return None
    try:
        return read_address(value)
    except ValueError as err:
        raise BadValue(f"invalid IP address: {value}", path, f"is not an IP address (got {value})") from err


def _code(value: Any, before: Any, path: Path) -> int | None:
    # the one pointer among the numbers: null unsets it
    return None if value is None else int(_BYTE_CODE(value, None, path))


def _icmps(value: Any, before: ICMPControl | None, path: Path) -> ICMPControl | None:
    if value is None:
        return None
    return ICMPControl(**gojson.struct(value, "garden.ICMPControl", _ICMP_CONTROL, path, _fields(before)))


def _each(make: Callable[..., Any], kind: str, fields: dict[str, gojson.Decoder]) -> gojson.Decoder:
    def one(member: Any, before: Any, path: Path) -> Any:
        return make(**gojson.struct(member, f"garden.{kind}", fields, path, _fields(before)))

    def decode(value: Any, before: Any, path: Path) -> tuple[Any, ...]:
        return gojson.array(value, one, f"[]garden.{kind}", path, before)

    return decode


def _fields(value: Any) -> JSON:
    """What a struct of ours holds already, by the names of its fields."""
    return {} if value is None else {name: getattr(value, name) for name in value.__slots__}


_PORT32 = gojson.unsigned("uint32", 32, _HIGHEST_PORT)
_PORT16 = gojson.unsigned("uint16", 16)
_BYTE_CODE = gojson.unsigned("garden.ICMPCode", 8)
_NET_IN: dict[str, gojson.Decoder] = {"host_port": _PORT32, "container_port": _PORT32}
_ICMP_CONTROL: dict[str, gojson.Decoder] = {"type": gojson.unsigned("garden.ICMPType", 8), "code": _code}
_NET_OUT_RULE: dict[str, gojson.Decoder] = {
    "protocol": gojson.unsigned("garden.Protocol", 8),
    "networks": _each(IPRange, "IPRange", {"start": _ip_address, "end": _ip_address}),
    "ports": _each(PortRange, "PortRange", {"start": _PORT16, "end": _PORT16}),
    "icmps": _icmps,
    "log": gojson.switch,
}
