"""The network type `bridge`: containers on a Linux bridge, with an egress policy and published ports each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from conetd.driver import JSON, Attachment, Conflict, Invalid, Lease, Network, PlannedDriver, PortRequest
from conetd.plan import Plan
from conetd.policy.common import refuse_overlap
from conetd_bridge import plans
from conetd_bridge.addresses import allocate
from conetd_bridge.config import BridgeConfig, ConfigSchema
from conetd_bridge.policy import BridgePolicy, PolicySchema


class BridgeDriver(PlannedDriver[BridgeConfig, BridgePolicy]):
    """Containers of a network share a bridge and a subnet; the host routes between it and the world."""

    api_version = 1
    capabilities: ClassVar[frozenset[str]] = frozenset({"garden"})
    live_config: ClassVar[frozenset[str]] = frozenset({"deny_networks", "dns_servers", "search_domains"})
    config_schema = ConfigSchema
    policy_schema = PolicySchema

    def check_network(self, new: Network[BridgeConfig], others: Sequence[Network[BridgeConfig]]) -> None:
        for other in others:
            if other.name != new.name:
                _refuse_overlap(new, other)

    def check_policy(self, network: Network[BridgeConfig], policy: BridgePolicy) -> None:
        for request in policy.net_in:
            if request.host_ip is not None and request.host_ip.version == 6 and network.config.subnet6 is None:
                path = f"{request.path}.host_ip"
                raise Invalid(
                    f'{path}: nothing can be published on {request.host_ip}: network "{network.name}" has no subnet6',
                    fields={path: "the network has no IPv6"},
                )

    def allocate(self, network: Network[BridgeConfig], attachment: Attachment, held: Collection[str]) -> Lease:
        return allocate(network, attachment.requested, held)

    def port_requests(self, policy: BridgePolicy) -> Sequence[PortRequest]:
        return policy.net_in

    def plan_network(self, network: Network[BridgeConfig]) -> Plan:
        return plans.plan_network(network)

    def plan_attachment(self, network: Network[BridgeConfig], attachment: Attachment) -> Plan:
        return plans.plan_attachment(network, attachment)

    def plan_policy(self, network: Network[BridgeConfig], attachment: Attachment, policy: BridgePolicy) -> Plan:
        return plans.plan_policy(attachment, policy)

    def describe(self, network: Network[BridgeConfig], attachment: Attachment) -> JSON:
        return plans.describe(network, attachment)


def _refuse_overlap(new: Network[BridgeConfig], other: Network[BridgeConfig]) -> None:
    mine, theirs = new.config, other.config
    refuse_overlap(
        new.name,
        other.name,
        {"subnet": (mine.subnet, theirs.subnet), "subnet6": (mine.subnet6, theirs.subnet6)},
    )
    bridge = plans.bridge_name(new)
    if bridge == plans.bridge_name(other):
        raise Conflict(
            f'network "{new.name}": bridge {bridge} is already used by network "{other.name}"',
            fields={"config.bridge": f'already used by network "{other.name}"'},
        )


__all__ = ["BridgeConfig", "BridgeDriver", "BridgePolicy"]
