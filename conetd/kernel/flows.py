"""What a tracked connection is, and which of them a changed port mapping has made stale. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from conetd.model import IPAddress, IPNetwork
from conetd.plan import PortMapping

_STATUS_SNAT, _STATUS_DNAT = 1 << 4, 1 << 5  # IPS_SRC_NAT, IPS_DST_NAT in linux/netfilter/nf_conntrack_common.h


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked connection as its first packet was (`source`, `destination`) and as its replies are.

    After destination NAT the packets really go to `reply_source`:`reply_source_port`; after source NAT the replies
    come back to `reply_destination`. Ports are 0 where the protocol has none; `icmp_type` and `icmp_code` are set for
    ICMP and ICMPv6 alone. `mark` is the connection's, 32 bits. `original` and `id` are the kernel's own words for it,
    by which it is deleted.
    """

    protocol: int
    source: IPAddress
    source_port: int
    destination: IPAddress
    destination_port: int
    reply_source: IPAddress
    reply_source_port: int
    reply_destination: IPAddress
    reply_destination_port: int
    status: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None
    zone: int = 0
    mark: int = 0
    id: int = 0
    original: bytes = field(default=b"", repr=False)

    @property
    def dnat(self) -> bool:
        """Whether its destination was rewritten."""
        return bool(self.status & _STATUS_DNAT)

    @property
    def snat(self) -> bool:
        """Whether its source was rewritten."""
        return bool(self.status & _STATUS_SNAT)


def stale_for_mapping(
    flows: Iterable[Flow],
    *,
    local: Collection[IPAddress],
    old: PortMapping | None = None,
    new: PortMapping | None = None,
    ours: Collection[IPNetwork] = (),
) -> list[Flow]:
    """The flows that no longer go where the mapping sends them, once `new` has taken the place of `old`.

    Judged by the original destination, which must be the mapping's host port on `host_ip` or, without one, on a
    `local` address that is not loopback; and by the target NAT gave the flow. Stale are those sent to the target of
    `old` that `new` does not send there; and of those `new` means, the ones sent nowhere (they began before there was
    a mapping) and the ones sent elsewhere in the networks `ours`. A destination NAT that is not ours is left alone.
    """

    def is_stale(flow: Flow) -> bool:
        target = (flow.reply_source, flow.reply_source_port)
        new_means_it = new is not None and _means(new, flow, local)
        if new is not None and new_means_it and target == (new.to, new.to_port):
            return False
        if old is not None and flow.dnat and target == (old.to, old.to_port) and _means(old, flow, local):
            return True
        return new_means_it and (not flow.dnat or any(flow.reply_source in network for network in ours))

    return [flow for flow in flows if is_stale(flow)]


def _means(mapping: PortMapping, flow: Flow, local: Collection[IPAddress]) -> bool:
    if (flow.protocol, flow.destination_port) != (mapping.protocol, mapping.host_port):
        return False
    if flow.destination.version != mapping.to.version:
        return False
    if mapping.host_ip is not None:
        return flow.destination == mapping.host_ip
    return not flow.destination.is_loopback and flow.destination in local
