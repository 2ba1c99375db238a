"""What a container's policy on a vxlan network may say, and the value it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, validate

from conetd.driver import JSON, Selector
from conetd.plan import IPNetwork, Rule
from conetd.policy.common import parse_handle, parse_name
from conetd.policy.fields import Described, Members, Subnets, Switch, each, parse_subnet
from conetd.policy.garden import NetOut, net_out_document, net_out_rule

PeerOf = Selector | IPNetwork | str
"""Whom an entry means: containers by handle or labels, addresses, or the containers of a network by its name."""

_INGRESS, _EGRESS = "ingress", "egress"
_ENTRY = frozenset({"direction", "peer", "protocol", "ports", "log"})
_PEER = frozenset({"handle", "labels", "cidr", "network"})
_AS_NET_OUT: JSON = NetOut.json_schema["items"]["properties"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What may come from a peer, or with `outbound` go to it.

    `rule` accepts by protocol and ports, and knows nothing of the peer yet: who that is depends on the network.
    """

    outbound: bool
    peer: PeerOf
    rule: Rule


@dataclass(frozen=True, slots=True)
class VxlanPolicy:
    """Who may begin connections to the container, what it may begin within the network, and what beyond.

    Without an outbound entry it may begin all within the network that the receivers let in.
    """

    policies: tuple[Entry, ...] = ()
    net_out: tuple[Rule, ...] = ()
    deny_networks: tuple[IPNetwork, ...] = ()
    default_ingress: str = "deny"
    log_denied: bool = False


class Entries(Described[tuple[Entry, ...]]):
    """A list of entries; loads to a tuple. The `origin` of their rules is the field's name and the index."""

    json_schema = {  # noqa: RUF012  # read only
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "direction": {"enum": [_INGRESS, _EGRESS]},
                "peer": {
                    "type": "object",
                    "description": "exactly one of them",
                    "properties": {
                        "handle": {"type": "string"},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "cidr": {"type": "string", "description": "network as address/prefix"},
                        "network": {"type": "string", "description": "name of a network"},
                    },
                    "additionalProperties": False,
                },
                "protocol": _AS_NET_OUT["protocol"],
                "ports": {
                    **_AS_NET_OUT["ports"]["items"],
                    "type": ["object", "array"],
                    "items": _AS_NET_OUT["ports"]["items"],
                },
                "log": _AS_NET_OUT["log"],
            },
            "required": ["direction", "peer"],
            "additionalProperties": False,
        },
    }

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **more: Any
    ) -> tuple[Entry, ...]:
        return each(value, lambda one, index: _entry(one, f"{attr}[{index}]"))

    def _serialize(self, value: tuple[Entry, ...] | None, attr: str | None, obj: Any, **more: Any) -> list[JSON]:
        return [_document(entry) for entry in value or ()]


class PolicySchema(Schema):
    """Loads to VxlanPolicy."""

    policies = Entries(load_default=())
    net_out = NetOut(load_default=())
    deny_networks = Subnets(load_default=())
    default_ingress = fields.String(load_default="deny", validate=validate.OneOf(["deny", "allow"]))
    log_denied = Switch(load_default=False)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> VxlanPolicy:
        """The document as a value."""
        return VxlanPolicy(**data)


def selectors(policy: VxlanPolicy) -> tuple[Selector, ...]:
    """The containers the policy names, each once."""
    return tuple(dict.fromkeys(entry.peer for entry in policy.policies if isinstance(entry.peer, Selector)))


def _entry(document: Any, origin: str) -> Entry:
    members = Members(document, _ENTRY)
    for field in ("direction", "peer"):
        if field not in members.given:
            members.complaints[field] = ["is missing."]
    outbound = members.take("direction", _direction) == _EGRESS
    peer = members.take("peer", lambda value: _peer(value, outbound=outbound))
    try:
        rule = _rule(members.given, origin)
    except ValidationError as err:
        members.complaints |= err.messages_dict
    members.finish()
    return Entry(outbound, peer, rule)


def _rule(given: Mapping[str, Any], origin: str) -> Rule:
    """The entry's own fields mean what they mean in `net_out`, and a single range of ports may stand without a list."""
    document = {field: given[field] for field in ("protocol", "ports", "log") if field in given}
    single = isinstance(document.get("ports"), dict)
    if single:
        document["ports"] = [document["ports"]]
    try:
        return net_out_rule(document, origin)
    except ValidationError as err:
        messages = err.messages_dict
        if single and isinstance(messages.get("ports"), dict):
            messages["ports"] = messages["ports"][0]
        raise ValidationError(messages) from None


def _peer(value: Any, *, outbound: bool) -> PeerOf:
    members = Members(value, _PEER)
    if len(members.given) != 1:
        raise ValidationError(f"must have exactly one of {', '.join(sorted(_PEER))}.")
    handle = members.take("handle", parse_handle)
    labels = members.take("labels", _labels, ())
    other: IPNetwork | str | None = members.take("cidr", parse_subnet) or members.take("network", parse_name)
    members.finish()
    return Selector(labels, handle, outbound) if other is None else other


def _labels(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(isinstance(one, str) for pair in value.items() for one in pair):
        raise ValidationError("must be an object whose values are texts.")
    if not value:
        raise ValidationError("must have at least one label; to mean all containers, name the network.")
    return tuple(sorted(value.items()))


def _direction(value: Any) -> str:
    if value in (_INGRESS, _EGRESS):
        return str(value)
    raise ValidationError(f"must be {_INGRESS} or {_EGRESS}.")


def _document(entry: Entry) -> JSON:
    document = {"direction": _EGRESS if entry.outbound else _INGRESS, "peer": _peer_document(entry.peer)}
    document |= net_out_document(entry.rule)
    if len(entry.rule.ports) == 1:
        [document["ports"]] = document["ports"]
    return document


def _peer_document(peer: PeerOf) -> JSON:
    if isinstance(peer, Selector):
        return {"labels": dict(peer.labels)} if peer.handle is None else {"handle": peer.handle}
    return {"network": peer} if isinstance(peer, str) else {"cidr": str(peer)}
