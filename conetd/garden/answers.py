"""How Garden's answers look: the error object, ContainerInfo, Metrics, and what its network plugin tells Guardian.

Fields, their order and their names are those of garden's errors.go and container.go, and of the properties in
guardian's gardener/gardener.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conetd.errors import ConetError, NotFound, Unavailable
from conetd.model import JSON

_PREFIX = "garden.network."


class UnknownHandle(NotFound):
    """No container of this handle is up, so for Garden there is none."""

    def __init__(self, handle: str) -> None:
        super().__init__(f"unknown handle: {handle}")
        self.handle = handle


@dataclass(frozen=True, slots=True)
class Identity:
    """What a container is known by on the network; what it has not got is empty."""

    container_ip: str = ""
    container_ipv6: str = ""
    host_ip: str = ""
    interface: str = ""


def error_object(error: ConetError) -> JSON:
    """Garden's error object: five keys, always all of them."""
    kind, handle = "", ""
    if isinstance(error, UnknownHandle):
        kind, handle = "ContainerNotFoundError", error.handle
    elif isinstance(error, Unavailable):
        kind = "ServiceUnavailableError"
    return {"Type": kind, "Message": error.message, "Handle": handle, "ProcessID": "", "Binary": ""}


def error_status(error: ConetError) -> int:
    """Garden knows two: 404 for what does not exist, and 500."""
    return 404 if isinstance(error, UnknownHandle) else 500


def net_in_response(host_port: int, container_port: int) -> JSON:
    """The answer to net/in."""
    return {"host_port": host_port, "container_port": container_port}


def identity(attachments: Sequence[JSON]) -> Identity:
    """Whose addresses are a container's, where Garden has room for one network: the first attachment with any.

    `attachments` are as `up` tells them. One with an IPv4 address goes before one without.
    """
    found = Identity()
    for one in attachments:
        addresses = [address.partition("/")[0] for address in one.get("addresses", ())]
        ipv4 = next((address for address in addresses if ":" not in address), "")
        ipv6 = next((address for address in addresses if ":" in address), "")
        if ipv4 or (ipv6 and not found.container_ipv6):
            gateway = one.get("gateway") or one.get("gateway6") or ""
            found = Identity(ipv4, ipv6, gateway, one["interface"])
        if ipv4:
            break
    return found


def mapped_ports(ports: Iterable[JSON]) -> list[JSON]:
    """Port mappings as Garden lists them, which knows TCP alone. `ports` are as `up` tells them."""
    return [
        {"HostPort": one["host_port"], "ContainerPort": one["container_port"]}
        for one in ports
        if one["protocol"] == "tcp"
    ]


def properties(attachments: Sequence[JSON], ports: Iterable[JSON], external_ip: str | None = None) -> dict[str, str]:
    """The properties a container gets by its network: what Guardian's Info and Metrics are made of.

    `external_ip` None leaves that property to Guardian, which has an opinion of its own.
    """
    who = identity(attachments)
    if not who.interface:
        return {}
    told = {
        "container-ip": who.container_ip,
        "container-ipv6": who.container_ipv6,
        "host-ip": who.host_ip,
        "external-ip": external_ip or "",
        "interface": who.interface,
        "mapped-ports": json.dumps(mapped_ports(ports), separators=(",", ":")),
    }
    return {_PREFIX + name: value for name, value in told.items() if value}


def plugin_up(answer: JSON, external_ip: str | None) -> JSON:
    """What Guardian's network plugin says of an `up`, beside what `up` answers anyway.

    A list of DNS servers or search domains, even an empty one, overrules Guardian's own: without any it is left out.
    """
    told = dict(answer)
    for name in ("dns_servers", "search_domains"):
        if not told[name]:
            del told[name]
    ports = answer["mapped_ports"]
    return told | {"properties": properties(answer["attachments"], ports, external_ip)}


def info(
    attachments: Sequence[JSON], ports: Sequence[JSON], external_ip: str | None, forwarded: Mapping[str, str]
) -> JSON:
    """ContainerInfo of a container that is up: `forwarded` are the properties its engine named."""
    who = identity(attachments)
    return _info(
        State="active",
        HostIP=who.host_ip,
        ContainerIP=who.container_ip,
        ContainerIPv6=who.container_ipv6,
        ExternalIP=external_ip or "",
        Properties=dict(sorted((dict(forwarded) | properties(attachments, ports, external_ip)).items())),
        MappedPorts=mapped_ports(ports),
    )


def _info(**given: Any) -> JSON:
    empty: JSON = {
        "State": "",
        "Events": None,
        "HostIP": "",
        "ContainerIP": "",
        "ContainerIPv6": "",
        "ExternalIP": "",
        "ContainerPath": "",
        "ProcessIDs": None,
        "Properties": None,
        "MappedPorts": None,
    }
    return empty | given


def info_entry(found: JSON | ConetError) -> JSON:
    """One handle's entry in the answer to bulk_info."""
    if isinstance(found, ConetError):
        return {"Info": _info(), "Err": error_object(found)}
    return {"Info": found, "Err": None}


def metrics(counted: tuple[int, int] | None) -> JSON:
    """Metrics, of which only the network is ours: bytes received and sent by the container, None for none."""
    stat = None if counted is None else {"RxBytes": counted[0], "TxBytes": counted[1]}
    return {"NetworkStat": stat}


def metrics_entry(found: JSON | ConetError) -> JSON:
    """One handle's entry in the answer to bulk_metrics."""
    if isinstance(found, ConetError):
        return {"Metrics": metrics(None), "Err": error_object(found)}
    return {"Metrics": found, "Err": None}
