"""The rows of the store as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from conetd.model import JSON, HostPort, Lease, Requested, attachment_key


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """A network as it is wanted. `config` and `default_policy` are documents as the driver's schemas dump them."""

    name: str
    type: str
    config: JSON
    default_policy: JSON
    uplink_mtu: int
    declared: bool = False
    rev: int = 0
    applied_rev: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """One entry of `attach_to`: the network, and what the client wants to choose itself."""

    network: str
    ip: str | None = None
    ip6: str | None = None
    mac: str | None = None
    ifname: str | None = None

    @property
    def requested(self) -> Requested:
        """The part that is the driver's to grant."""
        return Requested(
            ip=ip_address(self.ip) if self.ip else None,
            ip6=ip_address(self.ip6) if self.ip6 else None,
            mac=self.mac,
        )

    def document(self) -> JSON:
        """As JSON, with only what was given."""
        return {
            name: value
            for name in ("network", "ip", "ip6", "mac", "ifname")
            if (value := getattr(self, name)) is not None
        }


@dataclass(frozen=True, slots=True)
class Life:
    """The process whose network namespace a container lives in, told apart from a later one of the same pid."""

    pid: int
    start_time: int
    netns: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container. `attach_to` None: no client configured it. `life` None: it is down."""

    handle: str
    attach_to: tuple[Join, ...] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    life: Life | None = None


@dataclass(frozen=True, slots=True)
class AttachmentRecord:
    """One container on one network, as it is wanted. `answer` is what `attach` told."""

    network: str
    handle: str
    position: int
    ifname: str
    requested: Requested
    lease: Lease
    default_route: frozenset[int] = frozenset()
    answer: JSON = field(default_factory=dict)
    leaving: bool = False
    rev: int = 0
    applied_rev: int = 0
    error: str | None = None
    identity: int = 0

    @property
    def key(self) -> str:
        """Short stable digest for kernel names."""
        return attachment_key(self.network, self.handle)


@dataclass(frozen=True, slots=True)
class HostPortRecord:
    """A host port held for an attachment, with the entry of the policy that asked for it (0: any, the same)."""

    port: HostPort
    asked_host: int
    asked_container: int


def encode(value: Any) -> str:
    """JSON in one canonical form, so that equal documents are equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
