"""What one endpoint, and what one network, contributes to the chains: lines, packed, before they are put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from ipaddress import IPv6Address, ip_network

from conetd.kernel.iptables import entries
from conetd.kernel.iptables.entries import Extension, Line, Masked, exactly, pack, within
from conetd.kernel.iptables.translate import TOWARDS, comment, lines
from conetd.model import ICMPV6, TCP, Icmp, IPNetwork, PortRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, NetworkFilter, PortMapping

KNOWN_FLOW = entries.ctstate(entries.ESTABLISHED | entries.RELATED)
_DNATED = entries.ctstate(entries.DNATED)
_LINK_LOCAL = within(ip_network("fe80::/10"))
_SOLICITATION, _ADVERTISEMENT = 135, 136
DUPLICATE_ADDRESS_DETECTION = Line(
    "RETURN",
    source=exactly(IPv6Address("::")),
    protocol=ICMPV6,
    matches=(entries.icmp_message(ICMPV6, Icmp(_SOLICITATION)),),
    comment="duplicate address detection",
)


def chain(kind: str, key: str) -> str:
    """The name of the chain of that kind that belongs to a key or interface."""
    name = f"conetd-{kind}-{key}"
    if len(name) <= entries.CHAIN_NAME_MAX:
        return name
    return f"conetd-{kind}-{sha256(key.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class EndpointParts:
    """What an endpoint, its policy and its network's rules say for one family. All is empty without a policy."""

    sources: tuple[tuple[Masked, bytes], ...] = ()  # raw: who it may be; by address
    marks: tuple[bytes, ...] = ()  # mangle
    entries: tuple[bytes, ...] = ()  # filter: from the network's chain into its own
    egress: tuple[bytes, ...] = ()  # filter: its own chain
    guarded: tuple[bytes, ...] = ()  # filter: what must not begin inside its network, if it has an ingress
    judged: tuple[bytes, ...] = ()  # filter: from the common chain into `ingress`
    ingress: tuple[bytes, ...] = ()
    mapped_at: tuple[bytes, ...] = ()  # nat: mappings of one host address, which go before …
    mapped: tuple[bytes, ...] = ()  # nat: … mappings of all
    masqueraded: tuple[bytes, ...] = ()  # nat
    strays: tuple[bytes, ...] = ()  # filter: to a mapped TCP port


@dataclass(frozen=True, slots=True)
class NetworkParts:
    """What a network says for one family."""

    forward_head: tuple[bytes, ...]  # filter: its chain, before the endpoints' entries
    rules: tuple[bytes, ...]  # filter: judged after each endpoint's own
    host: tuple[bytes, ...]  # filter: what reaches the host
    redirected: tuple[bytes, ...]  # nat: published ports used from inside
    leaving: tuple[bytes, ...]  # nat: from the common chain into `masquerade`
    masquerade: tuple[bytes, ...]


def endpoint_parts(endpoint: Endpoint, policy: EndpointPolicy, network: NetworkFilter, family: int) -> EndpointParts:
    """The lines of one endpoint. They go together with the lines of its network."""
    addresses = [address for address in endpoint.addresses if address.version == family]
    handle = endpoint.handle
    own, towards = chain("e", endpoint.key), chain("i", endpoint.key)

    def packed(*found: Line) -> tuple[bytes, ...]:
        return tuple(pack(line, family) for line in found)

    inward = packed(
        *(Line(towards, goto=True, destination=exactly(address), comment=comment(handle)) for address in addresses)
    )
    judged_by = _rules(policy.ingress or (), family, "ACCEPT", policy, handle, ingress=True)
    unmatched = lines(Rule(Verdict.DROP), family, "ACCEPT", handle, log_denied=policy.log_denied)
    mappings = [(one.host_ip, line) for one in policy.ports for line in _mapping(one, family, handle)]
    mark = (
        Line(entries.set_mark(endpoint.mark), incoming=endpoint.interface, source=exactly(address), comment=handle)
        for address in addresses
    )
    return EndpointParts(
        sources=tuple((line.source or Masked(0, 0), pack(line, family)) for line in _sources(endpoint, family)),
        marks=packed(*mark) if endpoint.mark else (),
        entries=packed(
            *(Line(own, goto=True, source=exactly(address), comment=comment(handle)) for address in addresses)
        ),
        egress=packed(*_egress(endpoint, policy, network, family)) if addresses else (),
        guarded=packed(*_guarded(endpoint, network, family)) if policy.ingress is not None else (),
        judged=inward if policy.ingress is not None else (),
        ingress=packed(*judged_by, *unmatched) if policy.ingress is not None and addresses else (),
        mapped_at=packed(*(line for host_ip, line in mappings if host_ip is not None)),
        mapped=packed(*(line for host_ip, line in mappings if host_ip is None)),
        masqueraded=packed(*(line for one in policy.ports for line in _masqueraded(one, family, handle))),
        strays=packed(*(replace(line, target="DROP") for _, line in mappings if line.protocol == TCP)),
    )


def network_parts(network: NetworkFilter, family: int) -> NetworkParts:
    """The lines of one network."""
    subnets = [within(subnet) for subnet in network.subnets if subnet.version == family]
    masquerade = [within(subnet) for subnet in network.masquerade if subnet.version == family]
    leaving = chain("m", network.key)
    pairs = ((source, destination) for source in subnets for destination in subnets)

    def packed(*found: Line) -> tuple[bytes, ...]:
        return tuple(pack(line, family) for line in found)

    return NetworkParts(
        forward_head=packed(*_forward_head(network, subnets, family)),
        rules=packed(*(line for rule in network.rules for line in lines(rule, family, TOWARDS, ""))),
        host=packed(*_host(network, family)),
        redirected=packed(
            *(
                Line(entries.masquerade(family), source=source, destination=destination, matches=(_DNATED,))
                for source, destination in pairs
            )
        ),
        leaving=packed(*(Line(leaving, source=subnet) for subnet in masquerade)),
        masquerade=packed(*(Line("RETURN", destination=subnet) for subnet in subnets), Line(entries.masquerade(family)))
        if masquerade
        else (),
    )


def needs_own_network_rules(policy: EndpointPolicy, network: NetworkFilter) -> bool:
    """Whether the network's rules stand in the endpoint's chain, since they log in its name."""
    return policy.log_denied or any(rule.log for rule in network.rules)


def _sources(endpoint: Endpoint, family: int) -> Iterator[Line]:
    # Behind a bridge the frame's sender must be the endpoint's too; elsewhere the interface says who it is.
    matches = (entries.from_mac(endpoint.mac),) if endpoint.port else ()
    addresses = [address for address in endpoint.addresses if address.version == family]
    if family == 6 and addresses:
        addresses.append(entries.link_local(endpoint.mac))
    for address in addresses:
        yield Line("RETURN", source=exactly(address), matches=matches, comment=endpoint.handle)


def _guarded(endpoint: Endpoint, network: NetworkFilter, family: int) -> Iterator[Line]:
    # else a connection that its ingress forbids now would come back as one of its own
    matches = (entries.ctstate(entries.NEW | entries.INVALID), entries.tcp_that_begins_nothing())
    for address in endpoint.addresses:
        for subnet in network.subnets:
            if address.version == subnet.version == family:
                source, destination = exactly(address), within(subnet)
                yield Line(
                    "DROP",
                    source=source,
                    destination=destination,
                    protocol=TCP,
                    matches=matches,
                    comment=comment(endpoint.handle),
                )


def _egress(endpoint: Endpoint, policy: EndpointPolicy, network: NetworkFilter, family: int) -> Iterator[Line]:
    yield from _rules(policy.rules, family, TOWARDS, policy, endpoint.handle)
    if needs_own_network_rules(policy, network):
        yield from _rules(network.rules, family, TOWARDS, policy, endpoint.handle)
    elif network.rules:
        yield Line(chain("n", network.key))
    yield Line(TOWARDS, goto=True)


def _rules(
    rules: Sequence[Rule], family: int, accept: str, policy: EndpointPolicy, handle: str, ingress: bool = False
) -> Iterator[Line]:
    for rule in rules:
        yield from lines(rule, family, accept, handle, log_denied=policy.log_denied, ingress=ingress)


def _forward_head(network: NetworkFilter, subnets: list[Masked], family: int) -> Iterator[Line]:
    bridge = network.interface or ""
    yield Line("ACCEPT", matches=(KNOWN_FLOW,))
    # What is on its way through the bridge comes here with bridge-nf-call-iptables only, and must fare as without.
    inside = "DROP" if network.isolated else "ACCEPT"
    if bridge:
        yield Line(inside, outgoing=bridge, matches=(entries.to_many(),))
    onward, goto = ("ACCEPT", False) if bridge else (TOWARDS, True)
    for subnet in subnets:
        if network.isolated:
            yield Line(onward, goto=goto, destination=subnet, matches=(_DNATED,))
            yield Line("DROP", destination=subnet)
        else:
            yield Line(onward, goto=goto, destination=subnet)
    if bridge and family == 6:
        yield Line(inside, outgoing=bridge, source=_LINK_LOCAL)
        yield Line(inside, outgoing=bridge, destination=_LINK_LOCAL)
    # What is of no flow and begins none is passed by by address translation: it would leave with the source it has.
    yield Line("DROP", matches=(entries.ctstate(entries.INVALID),))


def _host(network: NetworkFilter, family: int) -> Iterator[Line]:
    yield Line("ACCEPT", matches=(KNOWN_FLOW,))
    if family == 6:
        for kind in (_SOLICITATION, _ADVERTISEMENT):
            yield Line("ACCEPT", protocol=ICMPV6, matches=(entries.icmp_message(ICMPV6, Icmp(kind)),))
    # Back to INPUT, not accepted: what the host's own rules keep out stays out.
    for rule in network.host_rules:
        yield from lines(rule, family, "RETURN", "")
    yield Line("RETURN" if network.host_access else entries.prohibit(family))


def _mapping(one: PortMapping, family: int, handle: str) -> Iterator[Line]:
    if one.to.version != family or (one.host_ip is not None and one.host_ip.version != family):
        return
    yield Line(
        entries.destination_nat(one.to, one.to_port),
        protocol=one.protocol,
        destination=exactly(one.host_ip) if one.host_ip is not None else None,
        matches=(_port(one.protocol, one.host_port),),
        comment=handle,
    )


def _masqueraded(one: PortMapping, family: int, handle: str) -> Iterator[Line]:
    if one.masquerade and one.to.version == family:
        yield Line(
            entries.masquerade(family),
            protocol=one.protocol,
            destination=exactly(one.to),
            matches=(_port(one.protocol, one.to_port), _DNATED),
            comment=handle,
        )


def _port(protocol: int, port: int) -> Extension:
    return entries.destination_ports(protocol, (PortRange(port, port),))


def loopback(family: int) -> IPNetwork:
    """The addresses no port mapping holds for."""
    return ip_network("127.0.0.0/8" if family == 4 else "::1/128")
