"""The policy documents that the prompt's short forms stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lab.errors import LabError

_WITH_PORTS = ("tcp", "udp")
PROTOCOLS = (*_WITH_PORTS, "icmp", "all")


def labels(words: Iterable[str]) -> dict[str, str]:
    """Labels said as NAME=VALUE. Raises LabError."""
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign):
            raise LabError(f"{word} is no label: say NAME=VALUE")
        found[name] = value
    return found


def allowing(policy: Mapping[str, Any], source: str, what: Sequence[str]) -> dict[str, Any]:
    """The policy with one entry more: what comes from the source, a handle or LABEL=VALUE, by a protocol and port.

    Raises LabError.
    """
    protocol, *ports = what or [""]
    if protocol not in PROTOCOLS or len(ports) != (protocol in _WITH_PORTS):
        raise LabError(f"{' '.join(what) or 'nothing'} cannot be allowed: say tcp PORT, udp PORT, icmp or all")
    entry: dict[str, Any] = {
        "direction": "ingress",
        "peer": {"labels": labels([source])} if "=" in source else {"handle": source},
    }
    if ports:
        entry["ports"] = {"start": port(ports[0]), "end": port(ports[0])}
    both = ("icmp", "icmpv6") if protocol == "icmp" else (protocol,)
    return {**policy, "policies": [*policy.get("policies", ()), *(entry | {"protocol": one} for one in both)]}


def port(text: str) -> int:
    """A TCP or UDP port. Raises LabError."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise LabError(f"{text} is no port")
    return int(text)
