"""The contract of a network type: what a driver must say and do, and what it may rely on.

A driver promises: twice is once; an interrupted attach is completed by the next; `apply_policy` replaces, with no
moment of neither; after `detach` the host is as before `attach`; kernel names come from the attachment's key and fit
(15 bytes a link). It keeps no state of its own in memory or on disk.

The core promises: config and policy have passed the schema; the lease was committed before `attach`; any method may
be called again at any later time, after any crash; `detach` may come for an attach that never finished.

A driver raises Invalid, Conflict, Exhausted, DriverError or KernelError. Anything else is its bug: it is logged with
a traceback and the distribution's name and version, and answered as 502.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol

from marshmallow import Schema

from conetd.errors import ConetError, Conflict, DriverError, Exhausted, Invalid, KernelError, NotFound
from conetd.model import (
    JSON,
    Attachment,
    ConfigT,
    Host,
    HostPort,
    Identities,
    Identity,
    Interface,
    IPAddress,
    Lease,
    Network,
    PolicyT,
    PortRequest,
    Requested,
    Selector,
    is_interface_name,
)
from conetd.plan import Drift, Plan

API_VERSION = 1


class Namespace(Protocol):
    """A container's network namespace, open for the length of the call that got it."""

    @property
    def fd(self) -> int:
        """A descriptor for setns(2). Do not keep it."""

    @property
    def inode(self) -> int:
        """The namespace's inode number, as in `readlink /proc/PID/ns/net`."""


class KernelHandle(Protocol):
    """The kernel, bound to one network or attachment: whatever is made through it is marked as theirs."""

    def ensure(self, plan: Plan) -> None:
        """Make the kernel hold what the plan says; what is so already stays untouched.

        The filter is confirmed before any link is up. Raises KernelError; what was made by then stays, for `remove`.
        """

    def remove(self, plan: Plan) -> None:
        """Make the kernel hold nothing of what the plan says. What is gone already is success.

        Goes on past failures and raises the first one at the end.
        """

    def diff(self, plan: Plan) -> Sequence[Drift]:
        """Tell where the kernel is not as the plan says. Changes nothing."""


@dataclass(frozen=True, slots=True)
class NetworkContext(Generic[ConfigT]):
    """What a driver gets to work on a network."""

    network: Network[ConfigT]
    kernel: KernelHandle
    log: logging.Logger | logging.LoggerAdapter[Any]


@dataclass(frozen=True, slots=True)
class AttachmentContext(Generic[ConfigT, PolicyT]):
    """What a driver gets to work on an attachment. `netns` is None once the container is gone."""

    network: Network[ConfigT]
    attachment: Attachment
    policy: PolicyT
    netns: Namespace | None
    kernel: KernelHandle
    log: logging.Logger | logging.LoggerAdapter[Any]


class Driver(ABC, Generic[ConfigT, PolicyT]):
    """A network type. One instance serves all networks of the type; its entry point in `conetd.drivers` names it."""

    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[frozenset[str]] = frozenset()
    """`garden`: the policy document has `net_in` and `net_out` as Garden means them. `cluster`: a network spans hosts;
    each gets a lease of its own (`allocate_host`), and containers have identities that policies can name.
    """
    host_config: ClassVar[frozenset[str]] = frozenset()
    """Fields of `config` that may differ from host to host of one cluster. Default: none."""
    live_config: ClassVar[frozenset[str]] = frozenset()
    """Fields of `config` that the settings may change while containers are attached: all that follows from them is
    made so by `ensure_network` at the next start. Default: none."""
    config_schema: ClassVar[type[Schema]]
    """marshmallow; loads a network's `config` to ConfigT, dumps it back; unknown fields are refused."""
    policy_schema: ClassVar[type[Schema]]
    """marshmallow; loads a policy document to PolicyT, dumps it back; must take `{}`."""

    # Pure: quick, no I/O.

    def check_network(self, new: Network[ConfigT], others: Sequence[Network[ConfigT]]) -> None:
        """Raise Conflict when `new` cannot stand beside the type's `others`. Default: it can."""

    def check_policy(self, network: Network[ConfigT], policy: PolicyT) -> None:
        """Raise Invalid for a policy that its schema takes and this network cannot have. Default: none."""

    @abstractmethod
    def allocate(self, network: Network[ConfigT], attachment: Attachment, held: Collection[str]) -> Lease:
        """Choose what the attachment gets, given the claims that are `held` on the network.

        Raises Invalid for a request outside the network (fields: `ip`, `ip6`, `mac`), Conflict for one that is held,
        Exhausted when nothing is left. The core asks again when another attachment was quicker.
        """

    def allocate_host(
        self, network: Network[ConfigT], host: Host, current: Lease | None, held: Collection[str]
    ) -> Lease | None:
        """Choose what this host gets on the network, given the claims that other hosts hold. None: nothing.

        Asked when the network is made, and again when the host's addresses change: `current` is what it has, and the
        result must have the same claims. `data` is what the other hosts get to know of this one. Raises Invalid for a
        host that cannot take part, Exhausted when nothing is left. Only with the capability `cluster`.
        """
        return None

    def selectors(self, policy: PolicyT) -> Sequence[Selector]:
        """The containers the policy names. It is planned anew when others belong to them. Default: none."""
        return ()

    def port_requests(self, policy: PolicyT) -> Sequence[PortRequest]:
        """The host ports the policy asks for; the core settles them and hands them back in `attachment.ports`."""
        return ()

    # Effects: blocking is fine, asyncio is not.

    @abstractmethod
    def ensure_network(self, ctx: NetworkContext[ConfigT]) -> None:
        """Make what the network needs on this host."""

    @abstractmethod
    def remove_network(self, ctx: NetworkContext[ConfigT]) -> None:
        """Undo `ensure_network`; nothing is attached any more."""

    @abstractmethod
    def attach(self, ctx: AttachmentContext[ConfigT, PolicyT]) -> JSON:
        """Give the container its interface with `ctx.policy` in force from the first packet on.

        Returns what the client is told: `addresses` (with prefix length), `mac`, `gateway`, `gateway6`,
        `dns_servers`, `search_domains`, each optional, and whatever else is worth knowing.
        """

    @abstractmethod
    def detach(self, ctx: AttachmentContext[ConfigT, PolicyT]) -> None:
        """Undo `attach`. When it returns, no packet of the container passes."""

    @abstractmethod
    def apply_policy(self, ctx: AttachmentContext[ConfigT, PolicyT]) -> None:
        """Replace the attachment's policy. When it returns, the kernel holds the new one."""

    def check(self, ctx: AttachmentContext[ConfigT, PolicyT]) -> Sequence[Drift]:
        """Tell where the attachment is not as wanted; empty when it is. Changes nothing."""
        return ()


class PlannedDriver(Driver[ConfigT, PolicyT]):
    """A driver that only says what should exist. The core makes it so, many attachments at a time."""

    @abstractmethod
    def plan_network(self, network: Network[ConfigT]) -> Plan:
        """What should exist for the network itself."""

    @abstractmethod
    def plan_attachment(self, network: Network[ConfigT], attachment: Attachment) -> Plan:
        """What should exist for one attachment whatever its policy."""

    def plan_member(self, network: Network[ConfigT], host: str, data: JSON) -> Plan:
        """What should exist on this host for another host of the network, beside the network's own plan.

        `data` is that of the other's lease. The names and keys of what is planned follow from `host` alone, or from
        what the lease claims. Default: nothing.
        """
        return Plan()

    @abstractmethod
    def plan_policy(self, network: Network[ConfigT], attachment: Attachment, policy: PolicyT) -> Plan:
        """What should exist for the attachment's policy: its EndpointPolicy."""

    @abstractmethod
    def describe(self, network: Network[ConfigT], attachment: Attachment) -> JSON:
        """What the client is told of the attachment, as `attach` returns it."""

    def ensure_network(self, ctx: NetworkContext[ConfigT]) -> None:
        ctx.kernel.ensure(self.plan_network(ctx.network))

    def remove_network(self, ctx: NetworkContext[ConfigT]) -> None:
        ctx.kernel.remove(self.plan_network(ctx.network))

    def attach(self, ctx: AttachmentContext[ConfigT, PolicyT]) -> JSON:
        ctx.kernel.ensure(self._whole(ctx))
        return self.describe(ctx.network, ctx.attachment)

    def detach(self, ctx: AttachmentContext[ConfigT, PolicyT]) -> None:
        ctx.kernel.remove(self._whole(ctx))

    def apply_policy(self, ctx: AttachmentContext[ConfigT, PolicyT]) -> None:
        ctx.kernel.ensure(self.plan_policy(ctx.network, ctx.attachment, ctx.policy))

    def check(self, ctx: AttachmentContext[ConfigT, PolicyT]) -> Sequence[Drift]:
        return ctx.kernel.diff(self._whole(ctx))

    def _whole(self, ctx: AttachmentContext[ConfigT, PolicyT]) -> Plan:
        plan = self.plan_attachment(ctx.network, ctx.attachment)
        return plan + self.plan_policy(ctx.network, ctx.attachment, ctx.policy)


__all__ = [
    "API_VERSION",
    "JSON",
    "Attachment",
    "AttachmentContext",
    "ConetError",
    "Conflict",
    "Driver",
    "DriverError",
    "Exhausted",
    "Host",
    "HostPort",
    "IPAddress",
    "Identities",
    "Identity",
    "Interface",
    "Invalid",
    "KernelError",
    "KernelHandle",
    "Lease",
    "Namespace",
    "Network",
    "NetworkContext",
    "NotFound",
    "PlannedDriver",
    "PortRequest",
    "Requested",
    "Selector",
    "is_interface_name",
]
