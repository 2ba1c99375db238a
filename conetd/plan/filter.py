"""What the packet filter should hold for networks and attachments, as values without order or history."""

from __future__ import annotations

from dataclasses import dataclass

from conetd.model import IPAddress, IPNetwork, Rule


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The VTEP over which packets of a network come from other hosts.

    `interface` is the VTEP, `port` its UDP port, `prefixes` the length of a host's part of the network's subnets, by
    IP version. Nothing is decapsulated for that port and VNI but from the underlay address of a TunnelPeer; what comes
    out must have a peer's MAC and a source in its part, and be for an endpoint with an `ingress`. No container sends
    UDP packets that would be decapsulated: any to `port` with this VNI are dropped. Only endpoints of the network send
    marks into it; what comes out has none unless `marks`. `local` is the address peers send to, as far as one is known:
    packets to it cost less.
    """

    interface: str
    port: int
    vni: int
    prefixes: tuple[tuple[int, int], ...]
    marks: bool = True
    local: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class TunnelPeer:
    """Another host of a tunnel: its address on the underlay, and the MAC and parts of the subnets behind it.

    `subnets` have the tunnel's prefix lengths, one of each IP version at most. `port` and `vni` are the tunnel's.
    """

    key: str
    interface: str
    port: int
    vni: int
    underlay: IPAddress
    mac: str
    subnets: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True)
class NetworkFilter:
    """What holds for every attachment of one network.

    `interface` is the bridge the containers' packets come in by; None where each has an interface of its own.
    Between addresses of `subnets` nothing is judged by `rules`; `isolated` drops that traffic unless a port
    mapping sent it there. With a `tunnel` nobody but endpoints and their hosts speaks from `subnets`: other packets
    with such a source are dropped. Packets from `masquerade` (a subset of `subnets`) that leave `subnets` get the
    address of the interface they leave by. `rules` are judged after each endpoint's own; what none matches is accepted.
    Without `host_access` the containers reach the host itself only with replies, neighbour discovery, and what
    `host_rules` accept. `name` is what operators call the network, for listings.
    """

    key: str
    subnets: tuple[IPNetwork, ...]
    interface: str | None = None
    masquerade: tuple[IPNetwork, ...] = ()
    rules: tuple[Rule, ...] = ()
    host_access: bool = False
    host_rules: tuple[Rule, ...] = ()
    isolated: bool = False
    name: str = ""
    tunnel: Tunnel | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who may speak: packets that come in by `interface` with one of `addresses` as their source.

    Everything else from `interface` is dropped. With `port`, the link behind a bridge port, frames from it must
    also carry `mac` and, in ARP and neighbour discovery, only `addresses` as the sender's. An endpoint without an
    EndpointPolicy may send nothing. `mark` (16 bits, 0 none) is set on every packet it sends.
    """

    key: str
    network: str  # key of its NetworkFilter
    handle: str
    interface: str
    addresses: tuple[IPAddress, ...]
    mac: str
    port: str | None = None
    mark: int = 0


@dataclass(frozen=True, slots=True)
class PortMapping:
    """New connections to `host_port` go to `to`:`to_port`, of one IP version.

    Without `host_ip` it holds for every local address except loopback, from other machines and from this one.
    Flows from the target's own network are masqueraded so that replies come back through the host; with
    `masquerade` all flows are, for a target whose default route leads elsewhere.
    """

    protocol: int
    host_port: int
    to: IPAddress
    to_port: int
    host_ip: IPAddress | None = None
    masquerade: bool = False


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """What one endpoint may send, and what is published of it. Replaces the one before in one transaction.

    `rules` are judged in order, the first that matches decides; then the network's `rules`; then accept. `ingress`
    judges connections towards the endpoint in the same way and drops what no rule matches; None accepts all.
    `inside` judges what the endpoint sends within its network, and drops what no rule matches; None accepts all.
    An endpoint with an `ingress` sends no TCP segment within its network that is of no known connection and begins
    none, and gets none from another host: so a connection that is forbidden now does not come back as the other end's.
    With `log_denied`, what any of these rules or the network's drop or reject, and what none matches, is logged.
    """

    key: str
    rules: tuple[Rule, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    ingress: tuple[Rule, ...] | None = None
    inside: tuple[Rule, ...] | None = None
    log_denied: bool = False


FilterObject = NetworkFilter | TunnelPeer | Endpoint | EndpointPolicy


def identity(wanted: FilterObject) -> tuple[str, str]:
    """Which object this one replaces: its kind and key. There is one of each in force at a time."""
    return type(wanted).__name__, wanted.key
