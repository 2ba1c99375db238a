"""Which elements and chains the filter's objects come to. Pure: values in, values out.

Objects are worked out in units: a network by itself, another host of its tunnel by itself, an attachment's Endpoint
and EndpointPolicy together with their network. Whatever of a unit is missing leaves it more closed, never more open.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import wire
from conetd.kernel.nft.chain import Chain, KernelRule
from conetd.kernel.nft.elements import (
    NOTHING,
    Contribution,
    Element,
    ends,
    goes_to,
    name_key,
    to_anything,
)
from conetd.kernel.nft.matches import unconfirmed
from conetd.kernel.nft.senders import FROM_BRIDGE, of_sender, subject_of
from conetd.kernel.nft.tunnel_objects import of_tunnel
from conetd.kernel.nft.tunnel_table import IDENTITY_BITS
from conetd.kernel.nft.verdicts import announce, deny, logs_accepted, verdict_rules
from conetd.model import Rule, log_prefix
from conetd.plan import Endpoint, EndpointPolicy, NetworkFilter, PortMapping


def of_network(network: NetworkFilter | None) -> Contribution:
    """What a network comes to."""
    if network is None:
        return NOTHING
    elements = list(_network_elements(network))
    chains = [one for one in (_network_chain(network), _host_chain(network)) if one is not None]
    if network.interface is not None:
        elements += _leading_to_chains(network, name_key(network.interface))
    if network.tunnel is not None:
        tunnel = of_tunnel(network, network.tunnel)
        elements += (*tunnel.elements, *_leading_to_host(network, name_key(network.tunnel.interface)))
        chains += tunnel.chains
    return Contribution(tuple(elements), tuple(chains))


def of_attachment(
    endpoint: Endpoint | None, policy: EndpointPolicy | None, network: NetworkFilter | None
) -> Contribution:
    """What an attachment comes to."""
    if endpoint is None:
        return NOTHING
    sender = of_sender(endpoint, network, may_speak=policy is not None)
    elements = [*_link(endpoint, network), *sender.elements]
    if policy is None:
        return Contribution(tuple(elements))
    for mapping in policy.ports:
        elements += _published(mapping)
    chains = list(sender.chains)
    log_chain = ""
    every = (policy.rules, policy.ingress or (), policy.inside or (), network.rules if network else ())
    if any(logs_accepted(rules) for rules in every):
        chains.append(Chain.addressed(f"l-{endpoint.key}", _log_rules(endpoint)))
        log_chain = chains[-1].name
    if network is not None:
        egress = Chain.addressed(f"e-{endpoint.key}", tuple(_egress(endpoint, policy, network, log_chain)))
        elements += _spoken(endpoint, "egress", wire.verdict_data(wire.JUMP, egress.name))
        chains.append(egress)
    if policy.inside is not None:
        inside = Chain.addressed(f"w-{endpoint.key}", tuple(_inside(endpoint, policy, policy.inside, log_chain)))
        elements += _spoken(endpoint, "inside", goes_to(inside))
        chains.append(inside)
    if policy.ingress is not None:
        shared = _shared_chain(endpoint, policy, policy.ingress)
        chains += [shared] if shared else []
        rules = tuple(_ingress(endpoint, policy, policy.ingress, network, log_chain, shared))
        ingress = Chain.addressed(f"i-{endpoint.key}", rules)
        elements += [(f"ingress{one.version}", one.packed, goes_to(ingress)) for one in endpoint.addresses]
        elements += _spoken(endpoint, "guarded", b"")
        chains.append(ingress)
    return Contribution(tuple(elements), tuple(chains))


def _link(endpoint: Endpoint, network: NetworkFilter | None) -> list[Element]:
    """What closes the endpoint's link to everything it is not given."""
    interface = name_key(endpoint.interface)
    found: list[Element] = [("ours", interface, b"")]
    if network is not None and network.interface != endpoint.interface:
        if network.host_access:
            found.append(("host_access", interface, b""))
        found += _leading_to_chains(network, interface)
    if endpoint.port is not None:
        port = name_key(endpoint.port)
        found.append(("ports", port, b""))
        if network is None or network.isolated:
            found.append(("isolated_ports", port, b""))
    return found


def _spoken(endpoint: Endpoint, name: str, data: bytes) -> list[Element]:
    """An element for what comes in by the endpoint's interface with each of its addresses."""
    interface = name_key(endpoint.interface)
    return [(f"{name}{one.version}", interface + one.packed, data) for one in endpoint.addresses]


def _published(mapping: PortMapping) -> Iterator[Element]:
    family = mapping.to.version
    to = mapping.to.packed
    protocol = bytes((mapping.protocol, 0, 0, 0))
    service = protocol + struct.pack(">H2x", mapping.host_port)
    target_port = struct.pack(">H2x", mapping.to_port)
    target = wire.value(to + target_port)
    if mapping.host_ip is None:
        yield f"published{family}", service, target
    else:
        yield f"published_at{family}", mapping.host_ip.packed + service, target
    if mapping.masquerade:
        yield f"snat{family}", to + protocol + target_port, b""


def _network_elements(network: NetworkFilter) -> Iterator[Element]:
    if network.interface is not None:
        interface = name_key(network.interface)
        yield "ours", interface, b""
        yield "bridges", interface, b""
        yield "entry", interface, FROM_BRIDGE
        if network.host_access:
            yield "host_access", interface, b""
    for family in (4, 6):
        subnets = [ends(one) for one in network.subnets if one.version == family]
        pairs = [first + to_first + last + to_last for first, last in subnets for to_first, to_last in subnets]
        for pair in pairs:
            if network.isolated:
                yield f"isolated{family}", pair, b""
            yield f"same{family}", pair, b""
        for one in network.masquerade:
            if one.version == family:
                yield f"masquerade{family}", to_anything(one), b""


def _logs(network: NetworkFilter) -> bool:
    # a shared chain cannot say whose packet it logs, so then each endpoint's chain has the rules
    return any(rule.log for rule in network.rules)


def _leading_to_chains(network: NetworkFilter, interface: bytes) -> Iterator[Element]:
    """From an interface of the network into its chains, as far as it has them."""
    judged = _network_chain(network)
    if judged is not None:
        yield "network", interface, goes_to(judged)
    yield from _leading_to_host(network, interface)


def _leading_to_host(network: NetworkFilter, interface: bytes) -> Iterator[Element]:
    host = _host_chain(network)
    if host is not None:
        yield "host", interface, wire.verdict_data(wire.JUMP, host.name)


# each endpoint with an interface of its own asks for it
@lru_cache(maxsize=256)
def _host_chain(network: NetworkFilter) -> Chain | None:
    subject = f"host for {network.name or network.key}"
    rules = tuple(
        rule
        for family in (4, 6)
        for rule in verdict_rules(
            network.host_rules, family, prefix="", log_denied=False, log_chain="", subject=subject
        )
    )
    return Chain.addressed(f"h-{network.key}", rules) if rules else None


@lru_cache(maxsize=256)
def _network_chain(network: NetworkFilter) -> Chain | None:
    if _logs(network):
        return None
    subject = f"network {network.name or network.key}"
    rules = [
        rule
        for family in (4, 6)
        for rule in verdict_rules(network.rules, family, prefix="", log_denied=False, log_chain="", subject=subject)
    ]
    accepted = KernelRule(f"{subject}: not denied", (e.verdict(wire.ACCEPT),))
    return Chain.addressed(f"n-{network.key}", (*rules, accepted))


def _egress(endpoint: Endpoint, policy: EndpointPolicy, network: NetworkFilter, log_chain: str) -> Iterator[KernelRule]:
    subject = subject_of(endpoint)
    yield from _judged(endpoint, policy.rules, subject, log_chain, log_denied=policy.log_denied)
    if policy.log_denied or _logs(network):
        yield from _judged(endpoint, network.rules, f"{subject} network", log_chain, log_denied=policy.log_denied)
        yield KernelRule(f"{subject} not denied", (e.verdict(wire.ACCEPT),))


def _inside(
    endpoint: Endpoint, policy: EndpointPolicy, rules: tuple[Rule, ...], log_chain: str
) -> Iterator[KernelRule]:
    subject = f"{subject_of(endpoint)} inside"
    yield from _judged(endpoint, rules, subject, log_chain, log_denied=policy.log_denied)
    yield KernelRule(f"{subject} not allowed", (_deny(endpoint, policy),))


def _ingress(
    endpoint: Endpoint,
    policy: EndpointPolicy,
    rules: tuple[Rule, ...],
    network: NetworkFilter | None,
    log_chain: str,
    shared: Chain | None,
) -> Iterator[KernelRule]:
    subject = f"{subject_of(endpoint)} ingress"
    if network is not None and network.tunnel is not None:
        yield from _remembered(endpoint, network, subject)
    if shared is not None:
        yield KernelRule(f"{subject} policy", (e.jump(shared.name),))
    else:
        yield from _judged(endpoint, rules, subject, log_chain, log_denied=policy.log_denied)
    yield KernelRule(f"{subject} not allowed", (_deny(endpoint, policy),))


def _shared_chain(endpoint: Endpoint, policy: EndpointPolicy, rules: tuple[Rule, ...]) -> Chain | None:
    """A chain for all who are judged by the same rules, named by what it holds; None if each has them in its own.

    A label may mean many identities and be named by the policies of many, which all change when one more has it.
    """
    if policy.log_denied or any(rule.log for rule in rules) or not any(rule.marks for rule in rules):
        return None
    return _judged_alike(rules, tuple(sorted({one.version for one in endpoint.addresses})))


@lru_cache(maxsize=64)
def _judged_alike(rules: tuple[Rule, ...], families: tuple[int, ...]) -> Chain:
    found = [
        rule
        for family in families
        for rule in verdict_rules(rules, family, prefix="", log_denied=False, log_chain="", subject="ingress")
    ]
    return Chain.addressed("p", tuple(found))


def _deny(endpoint: Endpoint, policy: EndpointPolicy) -> bytes:
    return deny(log_prefix(endpoint.handle), log=policy.log_denied)


def _remembered(endpoint: Endpoint, network: NetworkFilter, subject: str) -> Iterator[KernelRule]:
    """Keep the sender's identity with the connection, so that it can be judged again.

    Of a packet that is dropped the connection is dropped too; a mark that somebody else has given it stays.
    """
    identity = e.meta(e.MARK) + e.masked(struct.pack("=I", IDENTITY_BITS))
    unmarked = e.ct(e.CT_MARK) + e.equal(bytes(4))
    versions = {one.version for one in endpoint.addresses}
    for subnet in network.subnets:
        if subnet.version in versions:
            member = e.family_is(subnet.version) + e.source(subnet.version) + e.between(*ends(subnet))
            yield KernelRule(f"{subject} identity", (unmarked + member + identity + e.set_ct_mark(),))


def _judged(
    endpoint: Endpoint, rules: tuple[Rule, ...], subject: str, log_chain: str, *, log_denied: bool
) -> Iterator[KernelRule]:
    prefix = log_prefix(endpoint.handle)
    for family in sorted({one.version for one in endpoint.addresses}):
        yield from verdict_rules(
            rules, family, prefix=prefix, log_denied=log_denied, log_chain=log_chain, subject=subject
        )


def _log_rules(endpoint: Endpoint) -> tuple[KernelRule, ...]:
    subject = subject_of(endpoint)
    return (
        KernelRule(f"{subject} new connection", (unconfirmed() + announce(log_prefix(endpoint.handle)),)),
        KernelRule(f"{subject} accepted", (e.verdict(wire.ACCEPT),)),
    )
