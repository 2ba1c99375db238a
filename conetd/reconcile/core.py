"""What every step of the reconciler works with, and how it calls drivers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from conetd.driver import AttachmentContext, KernelHandle, Namespace, NetworkContext, PlannedDriver
from conetd.errors import ConetError, DriverError
from conetd.kernel.busy import Busy
from conetd.kernel.kernel import Kernel
from conetd.kernel.nflog import LogReader
from conetd.kernel.process import ProcessWatch
from conetd.kernel.work import Work
from conetd.model import JSON, Attachment, IPNetwork, Selector
from conetd.plan import Drift, Endpoint, EndpointPolicy, NetworkFilter, Plan
from conetd.reconcile.cluster import Cluster
from conetd.reconcile.flows import Flows
from conetd.reconcile.hostports import PortKeeper
from conetd.reconcile.lanes import ForeignLane, Lane
from conetd.reconcile.reaper import Reaper
from conetd.reconcile.state import Claims, LiveNetwork, Networks, Revisions, is_clustered
from conetd.registry import Loaded
from conetd.settings import Settings
from conetd.store import Database

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Core:
    """The parts of a running daemon. `kernel` is used in `lane` alone; everything else may be used anywhere."""

    settings: Settings
    database: Database
    drivers: Mapping[str, Loaded]
    networks: Networks
    claims: Claims
    revisions: Revisions
    ports: PortKeeper
    lane: Lane
    foreign: Mapping[str, ForeignLane]
    reaper: Reaper
    watch: ProcessWatch
    boot_id: str
    cluster: Cluster
    external_ip: str | None = None
    kernel: Kernel = field(init=False)
    flows: Flows = field(init=False)
    """Used in `lane` alone, like `kernel`."""
    busy: Busy | None = None
    """Used in `lane` alone; None where nothing goes beside the filter."""
    replaced: list[LiveNetwork] = field(default_factory=list)
    """Networks whose config the settings changed; what is left of them goes at the start."""
    new_defaults: dict[str, JSON] = field(default_factory=dict)
    """Default policies that the settings changed, by network; they come into force at the start."""
    expected: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """(handle, network) to the host's links of each attachment that stands."""
    rounds: int = 0
    """How often everything was compared with the kernel since the start."""
    filter_problem: str | None = None
    """Why the packet filter is not what it should be, since somebody else changed it."""
    packet_log: LogReader | None = None
    named: dict[str, frozenset[str]] = field(default_factory=dict)
    """Network to the handles that policies name, on whatever host; each such container has an identity of its own."""
    sent_to: set[str] = field(default_factory=set)
    """Networks on which some policy, on whatever host, sends to containers it names."""
    expected_selectors: dict[tuple[str, str], frozenset[Selector]] = field(default_factory=dict)
    """(network, handle, or "" for its default) to the selectors of a policy that is about to come into force."""
    places: dict[str, dict[IPNetwork, str]] = field(default_factory=dict)
    """Network to the host behind each route to another host. Used in `lane` alone; made when it is first needed."""
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    """(handle or "", network) to what is wrong there and not yet repaired."""

    wake_tender: Callable[[], None] = lambda: None
    """Have what spans hosts looked after, soon."""

    def tell_addresses(self, network: str) -> None:
        """A container's addresses have come or gone: have those told who send to it by name."""
        if network in self.sent_to:
            self.wake_tender()

    def on_lane(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run the function in the kernel lane and wait for it; at once when the caller is there already."""
        if self.lane.current:
            return function(*arguments)
        return self.lane.call(function, *arguments).result()

    def afterwards(self, function: Callable[[], None]) -> None:
        """Run the function once those who wait for the kernel lane's job at hand have their answer; elsewhere, now."""
        if self.lane.current:
            self.lane.later(function)
        else:
            function()

    def ask(self, loaded: Loaded, method: str, function: Callable[[], T]) -> T:
        """Call into a driver: on its own lane, with a deadline, unless it only plans.

        What it raises beside conetd's own errors is its bug: logged, and raised as DriverError.
        """
        if isinstance(loaded.driver, PlannedDriver):
            return guard(loaded, method, function)
        return self.foreign[loaded.type].call(method, lambda: guard(loaded, method, function))


def guard(loaded: Loaded, method: str, function: Callable[[], T]) -> T:
    """Call the function; an error that is none of conetd's becomes a DriverError that names who is to blame."""
    try:
        return function()
    except ConetError:
        raise
    except Exception as err:
        who = f"driver {loaded.type} ({loaded.distribution} {loaded.version})"
        log.exception("%s failed in %s", who, method)
        raise DriverError(f"{who} failed in {method}: {type(err).__name__}: {err}") from err


def is_planned(live: LiveNetwork) -> bool:
    """Whether the network's driver only plans, so that the core does the kernel work."""
    return isinstance(live.loaded.driver, PlannedDriver)


def network_alias(name: str) -> str:
    """The mark on every link made for a network."""
    return f"conetd:network:{name}"


def attachment_alias(network: str, handle: str) -> str:
    """The mark on every link made for an attachment; it tells an operator whose it is."""
    return f"conetd:attachment:{network}:{handle}"


def waits(live: LiveNetwork) -> bool:
    """Whether the network waits for this host's part of it, without which nothing can be planned."""
    return is_clustered(live) and live.network.lease is None


def network_plan(live: LiveNetwork) -> Plan:
    """What should exist for a network of a planned type, its other hosts aside."""
    driver = live.loaded.driver
    assert isinstance(driver, PlannedDriver)
    if waits(live):
        return Plan()
    return guard(live.loaded, "plan_network", lambda: driver.plan_network(live.network))


def member_plan(live: LiveNetwork, host: str, data: JSON) -> Plan:
    """What should exist for one other host of a network of a planned type."""
    driver = live.loaded.driver
    assert isinstance(driver, PlannedDriver)
    return guard(live.loaded, "plan_member", lambda: driver.plan_member(live.network, host, data))


def whole_network_plan(live: LiveNetwork) -> Plan:
    """What should exist for a network of a planned type and all its hosts."""
    if waits(live):
        return Plan()
    members = [member_plan(live, host, data) for host, data in live.network.members.items()]
    return Plan.of([network_plan(live), *members])


def attachment_plan(live: LiveNetwork, attachment: Attachment, policy: Any) -> Plan:
    """What should exist for an attachment of a planned type, its policy included."""
    driver = live.loaded.driver
    assert isinstance(driver, PlannedDriver)
    return guard(
        live.loaded,
        "plan_attachment",
        lambda: driver.plan_attachment(live.network, attachment) + driver.plan_policy(live.network, attachment, policy),
    )


def attachment_work(live: LiveNetwork, attachment: Attachment, policy: Any, netns: Namespace | None) -> Work:
    """The same as work for the kernel layer."""
    plan = attachment_plan(live, attachment, policy)
    return Work(plan, attachment_alias(attachment.network, attachment.handle), netns)


@dataclass(frozen=True, slots=True)
class LaneHandle:
    """The kernel for a foreign driver's thread: every call goes through the kernel lane."""

    core: Core
    alias: str
    netns: Namespace | None

    def ensure(self, plan: Plan) -> None:
        """See KernelHandle."""
        self.core.on_lane(lambda: self.core.kernel.ensure(plan, self.alias, self.netns))

    def remove(self, plan: Plan) -> None:
        """See KernelHandle."""
        self.core.on_lane(lambda: self.core.kernel.remove(plan, self.netns))

    def diff(self, plan: Plan) -> list[Drift]:
        """See KernelHandle."""
        return self.core.on_lane(lambda: list(self.core.kernel.diff(plan, self.netns, self.alias)))


def network_context(core: Core, live: LiveNetwork) -> NetworkContext[Any]:
    """What a driver gets to work on a network."""
    kernel: KernelHandle = LaneHandle(core, network_alias(live.record.name), None)
    return NetworkContext(live.network, kernel, _logger(live, ""))


def attachment_context(
    core: Core, live: LiveNetwork, attachment: Attachment, policy: Any, netns: Namespace | None
) -> AttachmentContext[Any, Any]:
    """What a driver gets to work on an attachment."""
    kernel: KernelHandle = LaneHandle(core, attachment_alias(attachment.network, attachment.handle), netns)
    return AttachmentContext(live.network, attachment, policy, netns, kernel, _logger(live, attachment.handle))


def _logger(live: LiveNetwork, handle: str) -> logging.LoggerAdapter[logging.Logger]:
    extra = {"network": live.record.name}
    if handle:
        extra["handle"] = handle
    return logging.LoggerAdapter(logging.getLogger(f"conetd.driver.{live.loaded.type}"), extra)


def end_forbidden(core: Core, attachments: Iterable[tuple[LiveNetwork, str]]) -> None:
    """End the flows of attachments, given by network and key, that what is in force for them does not accept."""
    held = core.kernel.filter.held
    judged = []
    for live, key in attachments:
        endpoint, policy = held("Endpoint", key), held("EndpointPolicy", key)
        network = held("NetworkFilter", live.network.key)
        if isinstance(endpoint, Endpoint) and isinstance(policy, EndpointPolicy) and isinstance(network, NetworkFilter):
            judged.append((policy, endpoint.addresses, network))
    try:
        core.flows.end_forbidden(judged)
    except ConetError as err:
        log.error("flows that are forbidden now may go on", extra={"error": err.message})


def subnets_of(plan: Plan) -> tuple[IPNetwork, ...]:
    """The subnets of the network that the plan is of."""
    return tuple(subnet for one in plan.filter if isinstance(one, NetworkFilter) for subnet in one.subnets)


def subnets_by_network(core: Core) -> dict[str, tuple[IPNetwork, ...]]:
    """The subnets of each network of a planned type, by its name."""
    return {live.record.name: subnets_of(network_plan(live)) for live in core.networks.all() if is_planned(live)}


def our_subnets(core: Core) -> list[IPNetwork]:
    """The subnets of all networks of planned types."""
    return [subnet for some in subnets_by_network(core).values() for subnet in some]
