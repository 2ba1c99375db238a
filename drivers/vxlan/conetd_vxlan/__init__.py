"""The network type `vxlan`: one network of many hosts, with a policy between its containers that both ends enforce."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from conetd.driver import JSON, Attachment, Conflict, Host, Invalid, Lease, Network, PlannedDriver, Selector
from conetd.plan import Plan
from conetd.policy.common import refuse_overlap
from conetd_vxlan import hosts, plans
from conetd_vxlan.addresses import allocate
from conetd_vxlan.config import ConfigSchema, Peer, VxlanConfig
from conetd_vxlan.policy import PolicySchema, VxlanPolicy, selectors


class VxlanDriver(PlannedDriver[VxlanConfig, VxlanPolicy]):
    """Each host has a part of the network's subnets and routes it to its containers; VXLAN carries it between hosts."""

    api_version = 1
    capabilities: ClassVar[frozenset[str]] = frozenset({"cluster"})
    host_config: ClassVar[frozenset[str]] = frozenset({"underlay"})
    live_config: ClassVar[frozenset[str]] = frozenset({"deny_networks", "dns_servers", "search_domains"})
    config_schema = ConfigSchema
    policy_schema = PolicySchema

    def check_network(self, new: Network[VxlanConfig], others: Sequence[Network[VxlanConfig]]) -> None:
        for other in others:
            if other.name != new.name:
                _refuse_beside(new, other)

    def check_policy(self, network: Network[VxlanConfig], policy: VxlanPolicy) -> None:
        for index, entry in enumerate(policy.policies):
            named = entry.peer
            if isinstance(named, str) and named != network.name and named not in network.subnets:
                path = f"policies[{index}].peer.network"
                raise Invalid(f'{path}: there is no network "{named}"', fields={path: f'no network "{named}"'})

    def allocate(self, network: Network[VxlanConfig], attachment: Attachment, held: Collection[str]) -> Lease:
        return allocate(network, attachment.requested, held)

    def allocate_host(
        self, network: Network[VxlanConfig], host: Host, current: Lease | None, held: Collection[str]
    ) -> Lease:
        return hosts.allocate_host(network, host, current, held)

    def selectors(self, policy: VxlanPolicy) -> Sequence[Selector]:
        return selectors(policy)

    def plan_network(self, network: Network[VxlanConfig]) -> Plan:
        return plans.plan_network(network)

    def plan_member(self, network: Network[VxlanConfig], host: str, data: JSON) -> Plan:
        return plans.plan_member(network, host, data)

    def plan_attachment(self, network: Network[VxlanConfig], attachment: Attachment) -> Plan:
        return plans.plan_attachment(network, attachment)

    def plan_policy(self, network: Network[VxlanConfig], attachment: Attachment, policy: VxlanPolicy) -> Plan:
        return plans.plan_policy(network, attachment, policy)

    def describe(self, network: Network[VxlanConfig], attachment: Attachment) -> JSON:
        return plans.describe(network, attachment)


def _refuse_beside(new: Network[VxlanConfig], other: Network[VxlanConfig]) -> None:
    mine, theirs = new.config, other.config
    refuse_overlap(
        new.name,
        other.name,
        {"subnet": (mine.subnet, theirs.subnet), "subnet6": (mine.subnet6, theirs.subnet6)},
    )
    if mine.vni == theirs.vni:
        raise Conflict(
            f'network "{new.name}": VNI {mine.vni} is already used by network "{other.name}"',
            fields={"config.vni": f'{mine.vni} is already used by network "{other.name}"'},
        )


__all__ = ["Peer", "VxlanConfig", "VxlanDriver", "VxlanPolicy"]
