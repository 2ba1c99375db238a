"""What NetIn and NetOut mean as entries of a policy, and which Garden or its iptables would refuse.

The order of the checks and the messages of the first two are those of guardian's
kawasaki/iptables/rule_translator.go; the rest is what iptables says of the rule, in words that name the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conetd.errors import Invalid
from conetd.garden.wire import ALL, ICMP, ICMPV6, TCP, UDP, IPRange, NetIn, NetOutRule, PortRange
from conetd.model import JSON

_NAMES = {ALL: "ALL", TCP: "TCP", UDP: "UDP", ICMP: "ICMP"}
_HIGHEST_PORT = 65535
_ANY_TYPE = 255  # xt_icmp takes this type for every type and code


def net_in_entry(asked: NetIn, path: str = "") -> JSON:
    """The entry of a policy's `net_in` that a NetIn asks for. Raises Invalid for a port above 65535."""
    for name, port in (("host_port", asked.host_port), ("container_port", asked.container_port)):
        if port > _HIGHEST_PORT:
            raise _invalid(path, name, f"{port} is no port: the highest is {_HIGHEST_PORT}")
    return {"host_port": asked.host_port, "container_port": asked.container_port}


def net_in_entries(asked: Iterable[NetIn], standing: Sequence[JSON], path: str) -> list[JSON]:
    """The entries of `net_in` with all of a container spec's `netin` behind those that stand. Raises Invalid.

    A mapping of a host port that stands already, or is asked for twice, is there once; one that leads elsewhere is
    refused.
    """
    entries = list(standing)
    leads = dict(_mapping(one) for one in standing if one.get("protocol", "tcp") == "tcp" and "host_ip" not in one)
    for number, one in enumerate(asked):
        entry = net_in_entry(one, f"{path}[{number}]")
        host_port, container_port = _mapping(entry)
        there = leads.get(host_port) if host_port else None
        if there not in (None, container_port):
            complaint = f"host port {host_port}/tcp leads to container port {there} already, not to {container_port}"
            raise _invalid(f"{path}[{number}]", "host_port", complaint)
        if there is None:
            entries.append(entry)
            leads[host_port] = container_port
    return entries


def _mapping(entry: JSON) -> tuple[int, int]:
    """Host and container port; 0 for the latter is the same number."""
    return entry["host_port"], entry.get("container_port") or entry["host_port"]


def net_out_entries(rules: Sequence[NetOutRule], *, ipv6: bool, path: str | None = None) -> list[JSON]:
    """The entries of a policy's `net_out` that stand for the rules, in the order in which they are to be judged.

    Garden inserts each rule before those that are there, so the last given is the first. One whose addresses all run
    backwards matches nothing, and has no entry. `ipv6`: whether the network has IPv6, without which nothing about it
    is possible. With `path` messages say which rule of that list they are about; None is for one alone.
    Raises Invalid for the first rule that Garden, or iptables for it, would refuse.
    """
    entries: list[JSON] = []
    for number, rule in enumerate(rules):
        entry = _entry(rule, "" if path is None else f"{path}[{number}]", ipv6=ipv6)
        if entry is not None:
            entries.append(entry)
    return entries[::-1]


def _entry(rule: NetOutRule, path: str, *, ipv6: bool) -> JSON | None:
    known = ICMPV6 if ipv6 else ICMP
    if rule.ports and rule.protocol not in (TCP, UDP):
        raise _invalid(
            path, "ports", f"Ports cannot be specified for Protocol {_NAMES.get(rule.protocol, '')}", plain=True
        )
    if rule.protocol > known:
        raise _invalid(path, "protocol", f"invalid protocol: {rule.protocol}", plain=True)
    if rule.icmps is not None and rule.protocol not in (ICMP, ICMPV6):
        raise _invalid(path, "icmps", f"cannot be specified for Protocol {_NAMES[rule.protocol]}")
    for number, ports in enumerate(rule.ports):
        if ports.start > ports.end:
            at = f"ports[{number}]"
            raise _invalid(path, at, f"{ports.start}:{ports.end}: invalid portrange (min > max)")
    ranges = [_network(one, rule, path, f"networks[{at}]", ipv6=ipv6) for at, one in enumerate(rule.networks)]
    networks = [one for one in ranges if one is not None]
    if rule.networks and not networks:
        return None
    entry: JSON = {"protocol": rule.protocol}
    if networks and {} not in networks:
        entry["networks"] = networks
    if rule.ports:
        entry["ports"] = [_port_range(one) for one in rule.ports]
    if rule.icmps is not None and rule.icmps.type != _ANY_TYPE:
        entry["icmps"] = {"type": rule.icmps.type, "code": rule.icmps.code}
    if rule.log:
        entry["log"] = True
    return entry


def _network(one: IPRange, rule: NetOutRule, path: str, at: str, *, ipv6: bool) -> JSON | None:
    """The range as an entry has it; {} is anywhere, None nothing at all."""
    start, end = one.start or one.end, one.end or one.start
    if start is None or end is None:
        return {}
    for address in (start, end):
        if address.version == 6 and not ipv6:
            raise _invalid(path, at, f"host/network {address} not found: the network has no IPv6")
        if (address.version, rule.protocol) in ((6, ICMP), (4, ICMPV6)):
            raise _invalid(path, at, f"host/network {address} not found: it has no Protocol {_protocol(rule)}")
    if start.version != end.version:
        raise _invalid(path, at, f"bad IP range {start}-{end}: one is IPv4, the other IPv6")
    if int(start) > int(end):
        return None
    return {"start": str(start), "end": str(end)}


def _protocol(rule: NetOutRule) -> str:
    return "ICMPV6" if rule.protocol == ICMPV6 else _NAMES[rule.protocol]


def _port_range(ports: PortRange) -> JSON:
    return {"start": ports.start, "end": ports.end}


def _invalid(path: str, field: str, complaint: str, *, plain: bool = False) -> Invalid:
    """The refusal of a field. `plain`: the message is Garden's own, which says nothing but the complaint."""
    where = f"{path}.{field}" if path else field
    return Invalid(complaint if plain else f"{where}: {complaint}", fields={where: complaint})
