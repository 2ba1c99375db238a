"""What clients and the hook are told of attachments: records to JSON, pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conetd.model import JSON, PROTOCOL_NAMES
from conetd.store import AttachmentRecord, HostPortRecord


def mapped_port(record: HostPortRecord) -> JSON:
    """A host port as told to clients. `host_ip` only where the mapping is bound to one."""
    port = record.port
    told: JSON = {
        "host_port": port.host_port,
        "container_port": port.container_port,
        "protocol": PROTOCOL_NAMES[port.protocol],
    }
    if port.host_ip is not None:
        told["host_ip"] = str(port.host_ip)
    return told


def attachment(record: AttachmentRecord, ports: Iterable[HostPortRecord]) -> JSON:
    """An attachment as told to clients: what the driver said of it, its ports, and how it stands."""
    told: JSON = {"network": record.network, "interface": record.ifname}
    told |= record.answer
    told["default_route"] = [f"ipv{version}" for version in sorted(record.default_route)]
    told["mapped_ports"] = [mapped_port(one) for one in ports]
    if record.identity:
        told["identity"] = record.identity
    told["generation"] = record.applied_rev
    return told


def up(
    handle: str, attachments: Sequence[tuple[AttachmentRecord, Sequence[HostPortRecord]]], external_ip: str | None
) -> JSON:
    """What `up` answers: everything an engine needs to write hosts and resolv.conf and to announce ports."""
    told = [attachment(record, ports) for record, ports in attachments]
    return {
        "handle": handle,
        "state": "up",
        "external_ip": external_ip,
        "attachments": told,
        "mapped_ports": [one | {"network": part["network"]} for part in told for one in part["mapped_ports"]],
        "dns_servers": _collect(told, "dns_servers"),
        "search_domains": _collect(told, "search_domains"),
    }


def _collect(attachments: Sequence[JSON], name: str) -> list[str]:
    """The values of all attachments in their order, each once."""
    return list(dict.fromkeys(value for one in attachments for value in one.get(name, ())))
