"""Which tracked connections a policy does not accept, and in which parts a changed one can forbid any. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from enum import Enum

from conetd.kernel.flows import Flow
from conetd.model import AddressRange, IPAddress, IPNetwork, MarkRange, Rule, Verdict
from conetd.plan import EndpointPolicy, NetworkFilter
from conetd.policy.boxes import Span, covers, merge
from conetd.policy.judge import Packet, accepted, allowed

_IDENTITY_MAX = 0xFFFF


class Scope(Enum):
    """Which flows a part of a policy judges: those an endpoint opens to the world, within its network, or has opened
    towards it."""

    WORLD = "rules"
    INSIDE = "inside"
    INGRESS = "ingress"


EVERYTHING = frozenset(Scope)


def narrowed(before: EndpointPolicy | None, after: EndpointPolicy) -> frozenset[Scope]:
    """The parts in which `after` may forbid what `before` accepts. None accepts anything."""
    if before is None:
        return EVERYTHING
    found = set()
    if before.rules != after.rules:
        found.add(Scope.WORLD)
    if not _includes(after.inside, before.inside):
        found.add(Scope.INSIDE)
    if not _includes(after.ingress, before.ingress):
        found.add(Scope.INGRESS)
    return frozenset(found)


def forbidden(
    flows: Iterable[Flow],
    policy: EndpointPolicy,
    addresses: Collection[IPAddress],
    network: NetworkFilter | None,
    scopes: Collection[Scope] = EVERYTHING,
) -> Iterator[tuple[Flow, IPAddress]]:
    """The flows from and to these addresses that the policy, and for the world then the network's rules, do not accept.

    With each comes the address of its other end: a flow from or to the host itself is not the policy's to judge.
    """
    rules = network.rules if network else ()
    subnets = network.subnets if network else ()
    ingress = policy.ingress if Scope.INGRESS in scopes else None
    if ingress is not None and not _tells(ingress, network):
        ingress = None
    for flow in flows:
        packet = _packet(flow, subnets)
        if flow.source in addresses:
            if any(flow.reply_source in subnet for subnet in subnets):
                passes = policy.inside is None or Scope.INSIDE not in scopes or accepted(policy.inside, packet)
            else:
                passes = Scope.WORLD not in scopes or allowed(policy.rules, rules, packet)
            if not passes:
                yield flow, flow.reply_source
        if ingress is not None and flow.reply_source in addresses and not accepted(ingress, packet):
            yield flow, flow.source


def _tells(ingress: Sequence[Rule], network: NetworkFilter | None) -> bool:
    """Whether flows can be judged again: only in a tunnelled network do they keep their sender's identity."""
    return (network is not None and network.tunnel is not None) or not any(rule.marks for rule in ingress)


def _packet(flow: Flow, subnets: Collection[IPNetwork]) -> Packet:
    # the mark of a connection from elsewhere is somebody else's
    known = flow.mark <= _IDENTITY_MAX and any(flow.source in subnet for subnet in subnets)
    return Packet(
        family=flow.source.version,
        protocol=flow.protocol,
        source=flow.source,
        destination=flow.reply_source,
        destination_port=flow.reply_source_port,
        icmp_type=flow.icmp_type,
        icmp_code=flow.icmp_code,
        mark=flow.mark if known else 0,
    )


def _includes(wide: Sequence[Rule] | None, narrow: Sequence[Rule] | None) -> bool:
    """Whether the first list plainly accepts all that the second accepts; None accepts all.

    Said only of lists that do nothing but accept, each rule of the second in one of the first. Most changes are of
    this kind: somebody new belongs to those a policy names.
    """
    if wide is None or wide == narrow:
        return True
    if narrow is None or any(rule.verdict is not Verdict.ACCEPT for rule in (*wide, *narrow)):
        return False
    alike: dict[Rule, list[Rule]] = {}
    for rule in wide:
        alike.setdefault(_rest(rule), []).append(rule)
    return all(any(_wider(one, rule) for one in alike.get(_rest(rule), ())) for rule in narrow)


def _rest(rule: Rule) -> Rule:
    return replace(rule, destinations=(), marks=(), log=False, origin="")


def _wider(one: Rule, other: Rule) -> bool:
    return _covered(_marks(one.marks), _marks(other.marks)) and all(
        _covered(_addresses(one.destinations, family), _addresses(other.destinations, family)) for family in (4, 6)
    )


def _covered(wide: Sequence[Span] | None, narrow: Sequence[Span] | None) -> bool:
    """None stands for anything."""
    if wide is None:
        return True
    if narrow is None:
        return False
    merged = merge(wide)
    return all(covers(merged, first, last) for first, last in narrow)


def _marks(marks: Sequence[MarkRange]) -> list[Span] | None:
    return [(one.first, one.last) for one in marks] or None


def _addresses(ranges: Sequence[AddressRange], family: int) -> list[Span] | None:
    if not ranges:
        return None
    return [(int(one.first), int(one.last)) for one in ranges if one.family == family]
