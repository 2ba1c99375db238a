"""Containers, attachments, policies and host ports, as SQL."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from conetd.model import JSON, HostPort, Lease, Requested
from conetd.store.records import AttachmentRecord, ContainerRecord, HostPortRecord, Join, Life, encode

_CONTAINER = "handle, attach_to, labels, properties, pid, start_time, netns, boot_id"
_ATTACHMENT = (
    "network, handle, position, ifname, requested, lease, gateways, default_route, answer, leaving, rev,"
    " applied_rev, error, identity"
)


def _container(row: tuple[Any, ...]) -> ContainerRecord:
    handle, attach_to, labels, properties, pid, start_time, netns, boot_id = row
    return ContainerRecord(
        handle=handle,
        attach_to=None if attach_to is None else tuple(Join(**one) for one in json.loads(attach_to)),
        labels=json.loads(labels),
        properties=json.loads(properties),
        life=None if pid is None else Life(pid, start_time, netns, boot_id),
    )


def containers(db: sqlite3.Connection) -> list[ContainerRecord]:
    """All containers, by handle."""
    return [_container(row) for row in db.execute(f"SELECT {_CONTAINER} FROM containers ORDER BY handle")]


def container(db: sqlite3.Connection, handle: str) -> ContainerRecord | None:
    """The container of that handle, or None."""
    row = db.execute(f"SELECT {_CONTAINER} FROM containers WHERE handle = ?", (handle,)).fetchone()
    return _container(row) if row else None


def put_container(db: sqlite3.Connection, record: ContainerRecord) -> None:
    """Insert the container or replace the one of its handle."""
    life = record.life
    db.execute(
        f"INSERT INTO containers ({_CONTAINER}, up) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (handle) DO UPDATE SET attach_to = excluded.attach_to, labels = excluded.labels,"
        " properties = excluded.properties, pid = excluded.pid, start_time = excluded.start_time,"
        " netns = excluded.netns, boot_id = excluded.boot_id, up = excluded.up",
        (
            record.handle,
            None if record.attach_to is None else encode([one.document() for one in record.attach_to]),
            encode(dict(record.labels)),
            encode(dict(record.properties)),
            life and life.pid,
            life and life.start_time,
            life and life.netns,
            life and life.boot_id,
            life is not None,
        ),
    )


def end_life(db: sqlite3.Connection, handle: str) -> None:
    """Forget the process of the container and everything that was brought for this life alone."""
    db.execute(
        "UPDATE containers SET up = 0, pid = NULL, start_time = NULL, netns = NULL, boot_id = NULL, properties = '{}'"
        " WHERE handle = ?",
        (handle,),
    )
    db.execute("DELETE FROM policies WHERE handle = ? AND origin = 'garden'", (handle,))
    db.execute("DELETE FROM garden_answers WHERE handle = ?", (handle,))


def delete_container(db: sqlite3.Connection, handle: str) -> None:
    """Delete the container with its policies; attachments make this fail."""
    db.execute("DELETE FROM containers WHERE handle = ?", (handle,))


def delete_if_unwanted(db: sqlite3.Connection, handle: str) -> None:
    """Delete the container if it is down, no client configured it or its policy, and nothing is attached."""
    db.execute(
        "DELETE FROM containers WHERE handle = ? AND attach_to IS NULL AND up = 0"
        " AND NOT EXISTS (SELECT 1 FROM policies p WHERE p.handle = containers.handle)"
        " AND NOT EXISTS (SELECT 1 FROM attachments a WHERE a.handle = containers.handle)",
        (handle,),
    )


def configured_on(db: sqlite3.Connection, network: str) -> list[str]:
    """The handles of the containers whose config names the network."""
    rows = db.execute(
        "SELECT handle FROM containers, json_each(attach_to) AS one"
        " WHERE attach_to IS NOT NULL AND json_extract(one.value, '$.network') = ? ORDER BY handle",
        (network,),
    )
    return [handle for (handle,) in rows]


def _attachment(row: tuple[Any, ...]) -> AttachmentRecord:
    network, handle, position, ifname, requested, lease, gateways, default_route, answer, *rest = row
    leaving, rev, applied, error, identity = rest
    stored = json.loads(lease)
    asked = json.loads(requested)
    return AttachmentRecord(
        network=network,
        handle=handle,
        position=position,
        ifname=ifname,
        requested=Requested(
            ip_address(asked["ip"]) if asked.get("ip") else None,
            ip_address(asked["ip6"]) if asked.get("ip6") else None,
            asked.get("mac"),
        ),
        lease=Lease(stored["data"], frozenset(stored["claims"]), frozenset(json.loads(gateways))),
        default_route=frozenset(json.loads(default_route)),
        answer=json.loads(answer),
        leaving=bool(leaving),
        rev=rev,
        applied_rev=applied,
        error=error,
        identity=identity,
    )


def attachments(db: sqlite3.Connection) -> list[AttachmentRecord]:
    """All attachments, those that are leaving included, by handle and position."""
    rows = db.execute(f"SELECT {_ATTACHMENT} FROM attachments ORDER BY handle, position")
    return [_attachment(row) for row in rows]


def attachments_of(db: sqlite3.Connection, handle: str) -> list[AttachmentRecord]:
    """A container's attachments, those that are leaving included, in the order of `attach_to`."""
    rows = db.execute(f"SELECT {_ATTACHMENT} FROM attachments WHERE handle = ? ORDER BY position", (handle,))
    return [_attachment(row) for row in rows]


def attachments_on(db: sqlite3.Connection, network: str) -> list[AttachmentRecord]:
    """A network's attachments, those that are leaving included."""
    rows = db.execute(f"SELECT {_ATTACHMENT} FROM attachments WHERE network = ? ORDER BY handle", (network,))
    return [_attachment(row) for row in rows]


def put_attachment(db: sqlite3.Connection, record: AttachmentRecord) -> None:
    """Insert or replace an attachment and its claims. A claim held by another raises sqlite3.IntegrityError."""
    asked = record.requested
    requested = {
        "ip": asked.ip and str(asked.ip),
        "ip6": asked.ip6 and str(asked.ip6),
        "mac": asked.mac,
    }
    db.execute(
        f"INSERT INTO attachments ({_ATTACHMENT}, key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (handle, network) DO UPDATE SET position = excluded.position, ifname = excluded.ifname,"
        " requested = excluded.requested, lease = excluded.lease, gateways = excluded.gateways,"
        " default_route = excluded.default_route, answer = excluded.answer, leaving = excluded.leaving,"
        " rev = excluded.rev, applied_rev = excluded.applied_rev, error = excluded.error,"
        " identity = excluded.identity",
        (
            record.network,
            record.handle,
            record.position,
            record.ifname,
            encode(requested),
            encode({"data": record.lease.data, "claims": sorted(record.lease.claims)}),
            encode(sorted(record.lease.gateways)),
            encode(sorted(record.default_route)),
            encode(record.answer),
            record.leaving,
            record.rev,
            record.applied_rev,
            record.error,
            record.identity,
            record.key,
        ),
    )
    db.executemany(
        "INSERT INTO claims SELECT ?1, ?2, ?3 WHERE NOT EXISTS"
        " (SELECT 1 FROM claims WHERE network = ?1 AND claim = ?2 AND handle = ?3)",
        [(record.network, claim, record.handle) for claim in record.lease.claims],
    )


def wish_attachment(db: sqlite3.Connection, handle: str, network: str, rev: int) -> None:
    """Note that something about the attachment was asked for anew, as revision `rev`."""
    db.execute("UPDATE attachments SET rev = ? WHERE handle = ? AND network = ?", (rev, handle, network))


def attachments_applied(db: sqlite3.Connection, done: Iterable[tuple[int, JSON, str, str]]) -> None:
    """Record for each (rev, answer, handle, network) that the kernel holds that revision."""
    db.executemany(
        "UPDATE attachments SET applied_rev = ?, answer = ?, error = NULL WHERE handle = ? AND network = ?",
        [(rev, encode(answer), handle, network) for rev, answer, handle, network in done],
    )


def attachment_failed(db: sqlite3.Connection, handle: str, network: str, error: str) -> None:
    """Record why the kernel does not hold what is wanted of the attachment."""
    db.execute("UPDATE attachments SET error = ? WHERE handle = ? AND network = ?", (error, handle, network))


def leave(db: sqlite3.Connection, handle: str, network: str) -> None:
    """Note that the attachment is to go; its host ports are given back, its claims not yet."""
    db.execute(
        "UPDATE attachments SET leaving = 1, error = NULL WHERE handle = ? AND network = ?",
        (handle, network),
    )
    db.execute("DELETE FROM host_ports WHERE handle = ? AND network = ?", (handle, network))
    db.execute("DELETE FROM garden_answers WHERE handle = ?", (handle,))  # they tell of host ports


def delete_attachment(db: sqlite3.Connection, handle: str, network: str) -> None:
    """Delete an attachment that was leaving, with its claims."""
    db.execute("DELETE FROM attachments WHERE handle = ? AND network = ? AND leaving = 1", (handle, network))


def claims(db: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """Every claim as (network, claim, handle)."""
    return list(db.execute("SELECT network, claim, handle FROM claims"))


def policies_of(db: sqlite3.Connection, handle: str) -> dict[str, tuple[str, JSON]]:
    """Network to (origin, document) of the container's own policies; what came through Garden's door wins."""
    rows = db.execute(
        "SELECT network, origin, document FROM policies WHERE handle = ? ORDER BY network, origin", (handle,)
    )
    return {network: (origin, json.loads(document)) for network, origin, document in rows}


def all_policies(db: sqlite3.Connection) -> dict[str, dict[str, tuple[str, JSON]]]:
    """Handle to what `policies_of` tells of it."""
    found: dict[str, dict[str, tuple[str, JSON]]] = defaultdict(dict)
    for handle, network, origin, document in db.execute(
        "SELECT handle, network, origin, document FROM policies ORDER BY handle, network, origin"
    ):
        found[handle][network] = (origin, json.loads(document))
    return found


def policy_documents(db: sqlite3.Connection, network: str) -> list[JSON]:
    """The documents of the network's policies, each once, whosever they are."""
    rows = db.execute("SELECT DISTINCT document FROM policies WHERE network = ?", (network,))
    return [json.loads(document) for (document,) in rows]


def put_policy(db: sqlite3.Connection, handle: str, network: str, origin: str, document: JSON) -> None:
    """Insert or replace one policy of the container."""
    db.execute(
        "INSERT INTO policies VALUES (?, ?, ?, ?)"
        " ON CONFLICT (handle, network, origin) DO UPDATE SET document = excluded.document",
        (handle, network, origin, encode(document)),
    )


def delete_policy(db: sqlite3.Connection, handle: str, network: str, origin: str) -> None:
    """Delete one policy of the container, if it is there."""
    db.execute("DELETE FROM policies WHERE handle = ? AND network = ? AND origin = ?", (handle, network, origin))


def garden_answer(db: sqlite3.Connection, handle: str, call: str) -> JSON | None:
    """What was answered to this call, or None."""
    row = db.execute("SELECT answer FROM garden_answers WHERE handle = ? AND call = ?", (handle, call)).fetchone()
    return None if row is None else dict(json.loads(row[0]))


def put_garden_answer(db: sqlite3.Connection, handle: str, call: str, answer: JSON) -> None:
    """Keep what is answered to this call, until the container's life or its policies end."""
    db.execute("INSERT OR REPLACE INTO garden_answers VALUES (?, ?, ?)", (handle, call, encode(answer)))


def delete_garden_answer(db: sqlite3.Connection, handle: str, call: str) -> None:
    """Forget an answer that does not hold."""
    db.execute("DELETE FROM garden_answers WHERE handle = ? AND call = ?", (handle, call))


def replace_policies(db: sqlite3.Connection, handle: str, documents: Mapping[str, JSON]) -> None:
    """Make these the container's own policies, whatever they came from before."""
    db.execute("DELETE FROM policies WHERE handle = ?", (handle,))
    db.execute("DELETE FROM garden_answers WHERE handle = ?", (handle,))  # what they promised may hold no more
    for network, document in documents.items():
        put_policy(db, handle, network, "client", document)


def delete_policies_naming(db: sqlite3.Connection, network: str) -> None:
    """Delete every container's policy for the network."""
    db.execute("DELETE FROM policies WHERE network = ?", (network,))


def _host_port(row: tuple[Any, ...]) -> HostPortRecord:
    protocol, host_ip, host_port, container_port, asked_host, asked_container = row
    port = HostPort(protocol, host_port, container_port, ip_address(host_ip) if host_ip else None)
    return HostPortRecord(port, asked_host, asked_container)


_HOST_PORT = "protocol, host_ip, host_port, container_port, asked_host, asked_container"


def host_ports(db: sqlite3.Connection, handle: str, network: str) -> tuple[HostPortRecord, ...]:
    """The host ports held for an attachment, in the order of its policy."""
    rows = db.execute(
        f"SELECT {_HOST_PORT} FROM host_ports WHERE handle = ? AND network = ? ORDER BY ordinal", (handle, network)
    )
    return tuple(_host_port(row) for row in rows)


def all_host_ports(db: sqlite3.Connection) -> dict[tuple[str, str], tuple[HostPortRecord, ...]]:
    """(handle, network) to its host ports."""
    found: dict[tuple[str, str], list[HostPortRecord]] = defaultdict(list)
    for handle, network, *rest in db.execute(
        f"SELECT handle, network, {_HOST_PORT} FROM host_ports ORDER BY handle, network, ordinal"
    ):
        found[handle, network].append(_host_port(tuple(rest)))
    return {key: tuple(value) for key, value in found.items()}


def put_host_ports(db: sqlite3.Connection, handle: str, network: str, ports: Sequence[HostPortRecord]) -> None:
    """Make these the host ports held for the attachment."""
    db.execute("DELETE FROM host_ports WHERE handle = ? AND network = ?", (handle, network))
    db.executemany(
        "INSERT INTO host_ports VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                handle,
                network,
                ordinal,
                one.port.protocol,
                one.port.host_ip and str(one.port.host_ip),
                one.port.host_port,
                one.port.container_port,
                one.asked_host,
                one.asked_container,
            )
            for ordinal, one in enumerate(ports)
        ],
    )
