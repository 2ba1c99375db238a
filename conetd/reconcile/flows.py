"""Which tracked connections a change makes stale or forbids, and ending exactly those."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

from conetd.kernel.conntrack import Conntrack
from conetd.kernel.flows import Flow, stale_for_mapping
from conetd.model import UDP, IPAddress, IPNetwork
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

    def end_others(self, mappings: Iterable[PortMapping]) -> None:
        """End the UDP flows to newly published ports that still go where they went before.

        Their clients would go on speaking to whoever had the port. A TCP client opens a new connection, which the
        kernel judges anew; so an up needs no walk through the connection table for TCP.
        """
        fresh = [mapping for mapping in mappings if mapping.protocol == UDP]
        if fresh:
            flows = self._conntrack.flows_of((), _ports(fresh))
            self._conntrack.delete(self._stale(flows, (), fresh))

    def settle(
        self,
        before: EndpointPolicy | None,
        after: EndpointPolicy,
        addresses: Collection[IPAddress],
        network: NetworkFilter | None,
    ) -> None:
        """End exactly the flows that a changed policy made stale or forbids.

        Stale are those through mappings that are gone, and those to new ones that go elsewhere; forbidden those the
        addresses opened which `after`, and then the network's rules, do not accept. Walks the table once, if at all.
        """
        had = set(before.ports) if before is not None else set()
        gone, fresh = had - set(after.ports), set(after.ports) - had
        judged = addresses if before is None or before.rules != after.rules else ()
        if not (gone or fresh or judged):
            return
        flows = self._conntrack.flows_of(judged, _ports(gone | fresh))
        ending = self._stale(flows, gone, fresh) if gone or fresh else []
        if judged:
            ending += self._forbidden([flow for flow in flows if flow.source in judged], after, network)
        self._conntrack.delete(dict.fromkeys(ending))

    def end_forbidden(self, judged: Sequence[tuple[EndpointPolicy, Collection[IPAddress], NetworkFilter]]) -> None:
        """End the flows that addresses opened which their policy, and then their network's rules, do not accept.

        Walks the table once for all of them.
        """
        if not judged:
            return
        opened: defaultdict[IPAddress, list[Flow]] = defaultdict(list)
        for flow in self._conntrack.flows_of([address for _, addresses, _ in judged for address in addresses]):
            opened[flow.source].append(flow)
        self._conntrack.delete(
            flow
            for policy, addresses, network in judged
            for flow in self._forbidden([flow for one in addresses for flow in opened[one]], policy, network)
        )

    def forget(self, addresses: Collection[IPAddress]) -> None:
        """End every flow from or to these addresses, whose containers are gone."""
        self._conntrack.delete(self._conntrack.flows_of(addresses))

    def _stale(self, flows: Sequence[Flow], gone: Iterable[PortMapping], fresh: Iterable[PortMapping]) -> list[Flow]:
        if not flows:
            return []
        local, ours = self._local_addresses(), self._our_subnets()
        stale: list[Flow] = []
        for old in gone:
            stale += stale_for_mapping(flows, local=local, old=old, ours=ours)
        for new in fresh:
            stale += stale_for_mapping(flows, local=local, new=new, ours=ours)
        return stale

    def _forbidden(self, opened: Sequence[Flow], policy: EndpointPolicy, network: NetworkFilter | None) -> list[Flow]:
        network_rules = network.rules if network else ()
        subnets = network.subnets if network else ()
        forbidden = [
            flow
            for flow in opened
            if not any(flow.reply_source in subnet for subnet in subnets)
            and not allowed(policy.rules, network_rules, _packet(flow))
        ]
        if not forbidden:
            return []
        # Flows to the host itself are not forwarded: `host_access` judges them, not the policy.
        local = self._local_addresses()
        return [flow for flow in forbidden if flow.reply_source not in local]


def _ports(mappings: Iterable[PortMapping]) -> set[tuple[int, int, int]]:
    return {(one.protocol, one.host_port, one.to.version) for one in mappings}


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
