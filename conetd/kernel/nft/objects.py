"""Which elements and chains the filter's objects come to. Pure: values in, values out.

Objects are worked out in units: a network by itself, an attachment's Endpoint and EndpointPolicy together with their
network. Whatever of a unit is missing leaves it more closed, never more open.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import wire
from conetd.kernel.nft.chain import Chain, KernelRule
from conetd.kernel.nft.inet_table import unconfirmed
from conetd.kernel.nft.verdicts import announce, logs_accepted, verdict_rules
from conetd.model import IPNetwork, Rule, log_prefix
from conetd.plan import Endpoint, EndpointPolicy, NetworkFilter, PortMapping

Element = tuple[str, bytes, bytes]
"""Name of the set, key (of an interval: first and last value), and data as the wire has it."""

_MAC_PAD = b"\0\0"
_END = {4: (bytes(4), b"\xff" * 4), 6: (bytes(16), b"\xff" * 16)}
_LINK_LOCAL = b"\xfe\x80" + bytes(6)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one unit puts into the tables."""

    elements: tuple[Element, ...] = ()
    chains: tuple[Chain, ...] = ()


NOTHING = Contribution()


def of_network(network: NetworkFilter | None) -> Contribution:
    """What a network comes to."""
    if network is None:
        return NOTHING
    elements = list(_network_elements(network))
    chains = [one for one in (_network_chain(network), _host_chain(network)) if one is not None]
    if network.interface is not None:
        elements += _leading_to_chains(network, name_key(network.interface))
    return Contribution(tuple(elements), tuple(chains))


def of_attachment(
    endpoint: Endpoint | None, policy: EndpointPolicy | None, network: NetworkFilter | None
) -> Contribution:
    """What an attachment comes to."""
    if endpoint is None:
        return NOTHING
    elements = _link(endpoint, network)
    if policy is None:
        return Contribution(tuple(elements))
    elements += _identity(endpoint)
    for mapping in policy.ports:
        elements += _published(mapping)
    chains: list[Chain] = []
    log_chain = ""
    if any(logs_accepted(rules) for rules in (policy.rules, policy.ingress or (), network.rules if network else ())):
        chains.append(Chain.addressed(f"l-{endpoint.key}", _log_rules(endpoint)))
        log_chain = chains[0].name
    if network is not None:
        egress = Chain.addressed(f"e-{endpoint.key}", tuple(_egress(endpoint, policy, network, log_chain)))
        interface, judged = name_key(endpoint.interface), wire.verdict_data(wire.JUMP, egress.name)
        elements += [(f"egress{one.version}", interface + one.packed, judged) for one in endpoint.addresses]
        chains.append(egress)
    if policy.ingress is not None:
        ingress = Chain.addressed(f"i-{endpoint.key}", tuple(_ingress(endpoint, policy.ingress, log_chain)))
        elements += [(f"ingress{one.version}", one.packed, _goes_to(ingress)) for one in endpoint.addresses]
        chains.append(ingress)
    return Contribution(tuple(elements), tuple(chains))


@lru_cache(maxsize=4096)
def name_key(name: str) -> bytes:
    """An interface's name as a key."""
    return name.encode().ljust(16, b"\0")


def link_local(mac: bytes) -> bytes:
    """The link-local address that follows from a MAC address (RFC 4291, appendix A)."""
    return _LINK_LOCAL + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def _goes_to(chain: Chain) -> bytes:
    return wire.verdict_data(wire.GOTO, chain.name)


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


def _identity(endpoint: Endpoint) -> list[Element]:
    """Which packets and frames are the endpoint's own, and with which mark they go on."""
    interface = name_key(endpoint.interface)
    mac = bytes.fromhex(endpoint.mac.replace(":", ""))
    addresses = [(one.version, one.packed) for one in endpoint.addresses]
    spoken = [*addresses, (6, link_local(mac))] if any(version == 6 for version, _ in addresses) else addresses
    found: list[Element] = [(f"source{version}", interface + packed, b"") for version, packed in spoken]
    if endpoint.mark:
        mark = wire.value(struct.pack("=I", endpoint.mark))
        found += [(f"mark{version}", interface + packed, mark) for version, packed in addresses]
    if endpoint.port is not None:
        port = name_key(endpoint.port)
        found += [(f"port{version}", port + mac + _MAC_PAD + packed, b"") for version, packed in spoken]
    return found


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
        if network.host_access:
            yield "host_access", interface, b""
    for family in (4, 6):
        subnets = [_ends(one) for one in network.subnets if one.version == family]
        pairs = [first + to_first + last + to_last for first, last in subnets for to_first, to_last in subnets]
        for pair in pairs:
            if network.isolated:
                yield f"isolated{family}", pair, b""
            yield f"same{family}", pair, b""
        for one in network.masquerade:
            if one.version == family:
                first, last = _ends(one)
                yield f"masquerade{family}", first + _END[family][0] + last + _END[family][1], b""


def _ends(network: IPNetwork) -> tuple[bytes, bytes]:
    return network.network_address.packed, network.broadcast_address.packed


def _logs(network: NetworkFilter) -> bool:
    # a shared chain cannot say whose packet it logs, so then each endpoint's chain has the rules
    return any(rule.log for rule in network.rules)


def _leading_to_chains(network: NetworkFilter, interface: bytes) -> Iterator[Element]:
    """From an interface of the network into its chains, as far as it has them."""
    judged, host = _network_chain(network), _host_chain(network)
    if judged is not None:
        yield "network", interface, _goes_to(judged)
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
    subject = _subject(endpoint)
    yield from _judged(endpoint, policy.rules, subject, log_chain, log_denied=policy.log_denied)
    if policy.log_denied or _logs(network):
        yield from _judged(endpoint, network.rules, f"{subject} network", log_chain, log_denied=policy.log_denied)
        yield KernelRule(f"{subject} not denied", (e.verdict(wire.ACCEPT),))


def _ingress(endpoint: Endpoint, rules: tuple[Rule, ...], log_chain: str) -> Iterator[KernelRule]:
    subject = f"{_subject(endpoint)} ingress"
    yield from _judged(endpoint, rules, subject, log_chain, log_denied=False)
    yield KernelRule(f"{subject} not allowed", (e.verdict(wire.DROP),))


def _judged(
    endpoint: Endpoint, rules: tuple[Rule, ...], subject: str, log_chain: str, *, log_denied: bool
) -> Iterator[KernelRule]:
    prefix = log_prefix(endpoint.handle)
    for family in sorted({one.version for one in endpoint.addresses}):
        yield from verdict_rules(
            rules, family, prefix=prefix, log_denied=log_denied, log_chain=log_chain, subject=subject
        )


def _subject(endpoint: Endpoint) -> str:
    return f"{endpoint.handle[:48]}:"


def _log_rules(endpoint: Endpoint) -> tuple[KernelRule, ...]:
    subject = _subject(endpoint)
    return (
        KernelRule(f"{subject} new connection", (unconfirmed() + announce(log_prefix(endpoint.handle)),)),
        KernelRule(f"{subject} accepted", (e.verdict(wire.ACCEPT),)),
    )
