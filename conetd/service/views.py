"""What clients read: networks, containers and policies as JSON, from the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conetd.errors import NotFound
from conetd.model import JSON
from conetd.reconcile import answers
from conetd.reconcile.configure import is_known
from conetd.reconcile.core import Core
from conetd.reconcile.namespace import lives
from conetd.store import AttachmentRecord, ContainerRecord, NetworkRecord, containers


def network(record: NetworkRecord) -> JSON:
    """A network as it was defined, normalised, and how it stands."""
    told: JSON = {
        "name": record.name,
        "type": record.type,
        "config": record.config,
        "default_policy": record.default_policy,
        "declared": record.declared,
    }
    if record.error is not None:
        told["error"] = record.error
    return told


def config(record: ContainerRecord) -> JSON | None:
    """A container's config in its long form, None when no client configured it."""
    if record.attach_to is None:
        return None
    return {"attach_to": [join.document() for join in record.attach_to], "labels": dict(record.labels)}


def container(core: Core, handle: str) -> JSON:
    """One container. Raises NotFound."""
    record = known(core, handle)
    db = core.database.reader()
    standing = [one for one in containers.attachments_of(db, handle) if not one.leaving]
    return _container(core, record, standing, containers.policies_of(db, handle))


def all_containers(core: Core) -> list[JSON]:
    """Every container, by handle."""
    db = core.database.reader()
    standing: dict[str, list[AttachmentRecord]] = {}
    for one in containers.attachments(db):
        if not one.leaving:
            standing.setdefault(one.handle, []).append(one)
    own = containers.all_policies(db)
    return [
        _container(core, record, standing.get(record.handle, []), own.get(record.handle, {}))
        for record in containers.containers(db)
        if is_known(core, record)
    ]


def known(core: Core, handle: str) -> ContainerRecord:
    """The container of that handle. Raises NotFound when there is none, or only the last of its links."""
    record = containers.container(core.database.reader(), handle)
    if record is None or not is_known(core, record):
        raise NotFound(f'there is no container "{handle}"')
    return record


def policy(core: Core, handle: str) -> JSON:
    """What is in force for a container, and where each document came from. Raises NotFound."""
    known(core, handle)
    return policies(core, handle)


def policies(core: Core, handle: str) -> JSON:
    """The same of any handle, known or not."""
    db = core.database.reader()
    standing = {one.network: one for one in containers.attachments_of(db, handle) if not one.leaving}
    return {"handle": handle, "networks": _policies(core, standing, containers.policies_of(db, handle))}


def _container(
    core: Core,
    record: ContainerRecord,
    standing: list[AttachmentRecord],
    own: Mapping[str, tuple[str, JSON]],
) -> JSON:
    db = core.database.reader()
    told: JSON = {
        "handle": record.handle,
        "state": "up" if record.life is not None else "down",
        "config": config(record),
    }
    if record.life is not None:
        told["pid"] = record.life.pid
        told["running"] = lives(core.boot_id, record)
        told["properties"] = dict(record.properties)
        told["external_ip"] = core.external_ip
    told["attachments"] = [
        answers.attachment(one, containers.host_ports(db, one.handle, one.network)) | _standing(core, one)
        for one in standing
    ]
    told["policy"] = {"networks": _policies(core, {one.network: one for one in standing}, own)}
    return told


def _standing(core: Core, record: AttachmentRecord) -> JSON:
    problem = record.error or core.problems.get((record.handle, record.network))
    wanted = record.rev == record.applied_rev and problem is None
    return {"as_wanted": wanted} if wanted else {"as_wanted": False, "problem": problem or "not yet in the kernel"}


def _policies(
    core: Core, standing: Mapping[str, AttachmentRecord], own: Mapping[str, tuple[str, JSON]]
) -> dict[str, Any]:
    """Per network the document, its origin, and whether the kernel holds it; those of networks not joined as well."""
    told: dict[str, Any] = {}
    for name in sorted({*standing, *own}):
        if name not in core.networks:
            continue
        origin, document = own.get(name, ("default_policy", core.networks.get(name).record.default_policy))
        one: JSON = {"policy": document, "source": origin}
        attachment = standing.get(name)
        one["in_force"] = attachment is not None and attachment.applied_rev == attachment.rev
        if attachment is not None:
            one["generation"] = attachment.applied_rev
        told[name] = one
    return told
