"""Which tracked connections a change makes stale or forbids, and ending exactly those."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from conetd.kernel.conntrack import Conntrack
from conetd.kernel.flows import Flow, stale_for_mapping
from conetd.model import IPAddress, IPNetwork
from conetd.plan import EndpointPolicy, NetworkFilter, PortMapping
from conetd.policy.judge import Packet, allowed


class Flows:
    """Ends connections that no longer may be, or go nowhere. Used by one thread at a time."""

    def __init__(
        self,
        conntrack: Conntrack,
        local_addresses: Callable[[], Collection[IPAddress]],
        our_subnets: Callable[[], Collection[IPNetwork]],
    ) -> None:
        self._conntrack = conntrack
        self._local_addresses = local_addresses
        self._our_subnets = our_subnets

    def close(self) -> None:
        """Close the socket."""
        self._conntrack.close()

    def end_changed(self, before: Iterable[PortMapping], after: Iterable[PortMapping]) -> None:
        """End the flows through mappings that are gone, and those to new ones that still go where they went before."""
        gone, fresh = set(before) - set(after), set(after) - set(before)
        for mapping in gone:
            self._end_stale(mapping, old=mapping)
        for mapping in fresh:
            self._end_stale(mapping, new=mapping)

    def end_forbidden(
        self, addresses: Iterable[IPAddress], policy: EndpointPolicy, network: NetworkFilter | None
    ) -> None:
        """End the flows these addresses opened that `policy`, and then the network's rules, do not accept any more."""
        network_rules = network.rules if network else ()
        subnets = network.subnets if network else ()
        opened = [flow for address in addresses for flow in self._conntrack.flows_from(address)]
        forbidden = [
            flow
            for flow in opened
            if not any(flow.reply_source in subnet for subnet in subnets)
            and not allowed(policy.rules, network_rules, _packet(flow))
        ]
        if forbidden:
            # Flows to the host itself are not forwarded: `host_access` judges them, not the policy.
            local = self._local_addresses()
            self._conntrack.delete([flow for flow in forbidden if flow.reply_source not in local])

    def forget(self, addresses: Sequence[IPAddress]) -> None:
        """End every flow from or to these addresses, whose containers are gone."""
        for address in addresses:
            self._conntrack.delete([*self._conntrack.flows_from(address), *self._conntrack.flows_reply_from(address)])

    def _end_stale(
        self, mapping: PortMapping, *, old: PortMapping | None = None, new: PortMapping | None = None
    ) -> None:
        flows = self._conntrack.flows_to_port(mapping.protocol, mapping.host_port, mapping.to.version)
        if flows:
            local, ours = self._local_addresses(), self._our_subnets()
            self._conntrack.delete(stale_for_mapping(flows, local=local, old=old, new=new, ours=ours))


def _packet(flow: Flow) -> Packet:
    return Packet(
        family=flow.source.version,
        protocol=flow.protocol,
        source=flow.source,
        destination=flow.reply_source,
        destination_port=flow.reply_source_port,
        icmp_type=flow.icmp_type,
        icmp_code=flow.icmp_code,
    )
