"""Which tracked connections a change makes stale or forbids, and ending exactly those."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

from conetd.kernel.conntrack import Conntrack
from conetd.kernel.flows import Flow, stale_for_mapping
from conetd.model import UDP, IPAddress, IPNetwork
from conetd.plan import EndpointPolicy, NetworkFilter, PortMapping
from conetd.reconcile.forbidden import forbidden, narrowed


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

        Stale are those through mappings that are gone, and those to new ones that go elsewhere; forbidden those that
        the addresses opened, or that were opened towards them, and that the parts of `after` that changed do not
        accept. Walks the table once, if at all.
        """
        had = set(before.ports) if before is not None else set()
        gone, fresh = had - set(after.ports), set(after.ports) - had
        scopes = narrowed(before, after)
        judged = addresses if scopes else ()
        if not (gone or fresh or judged):
            return
        flows = self._conntrack.flows_of(judged, _ports(gone | fresh))
        ending = self._stale(flows, gone, fresh) if gone or fresh else []
        if judged:
            ending += self._forbidden(forbidden(flows, after, judged, network, scopes))
        self._conntrack.delete(dict.fromkeys(ending))

    def end_forbidden(self, judged: Sequence[tuple[EndpointPolicy, Collection[IPAddress], NetworkFilter]]) -> None:
        """End the flows from and to addresses which their policy, and then their network's rules, do not accept.

        Walks the table once for all of them.
        """
        if not judged:
            return
        concerning: defaultdict[IPAddress, list[Flow]] = defaultdict(list)
        for flow in self._conntrack.flows_of([address for _, addresses, _ in judged for address in addresses]):
            for end in {flow.source, flow.reply_source}:
                concerning[end].append(flow)
        ending: list[Flow] = []
        for policy, addresses, network in judged:
            flows = dict.fromkeys(flow for one in addresses for flow in concerning[one])
            ending += self._forbidden(forbidden(flows, policy, addresses, network))
        self._conntrack.delete(dict.fromkeys(ending))

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

    def _forbidden(self, found: Iterable[tuple[Flow, IPAddress]]) -> list[Flow]:
        ending = list(found)
        if not ending:
            return []
        # Flows to the host itself are not forwarded: `host_access` judges them, not the policy; nor are those from it.
        local = self._local_addresses()
        return [flow for flow, other_end in ending if other_end not in local]


def _ports(mappings: Iterable[PortMapping]) -> set[tuple[int, int, int]]:
    return {(one.protocol, one.host_port, one.to.version) for one in mappings}
