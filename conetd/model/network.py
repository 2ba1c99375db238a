"""What a network, an attachment and a lease are, as drivers see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from conetd.model.cluster import NO_IDENTITIES, Identities
from conetd.model.names import network_key
from conetd.model.rules import IPAddress, IPNetwork

JSON = dict[str, Any]

ConfigT = TypeVar("ConfigT")
PolicyT = TypeVar("PolicyT")


@dataclass(frozen=True, slots=True)
class Network(Generic[ConfigT]):
    """A named thing containers attach to. `config` is what the driver's `config_schema` loaded.

    `uplink_mtu` is the MTU in bytes of the host's interface with the default route when the network was made.
    `subnets` are those of every network on this host, by name. The rest is empty unless the driver has the capability
    `cluster`: `lease` is what `allocate_host` gave this host, `members` what it gave the other hosts that are known to
    live (host to lease data), `identities` are the containers of all hosts, by label set. Unless they are `agreed`,
    every host numbers them by itself.
    """

    name: str
    type: str
    config: ConfigT
    uplink_mtu: int = 1500
    subnets: Mapping[str, tuple[IPNetwork, ...]] = field(default_factory=dict)
    lease: Lease | None = None
    members: Mapping[str, JSON] = field(default_factory=dict)
    identities: Identities = NO_IDENTITIES
    agreed: bool = True

    @property
    def key(self) -> str:
        """Short stable digest for kernel names."""
        return network_key(self.name)


@dataclass(frozen=True, slots=True)
class Requested:
    """What a client asked for in `attach_to`; None is the driver's choice. `mac` is lower case with colons."""

    ip: IPAddress | None = None
    ip6: IPAddress | None = None
    mac: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """What a driver allocated for one attachment.

    `data` is JSON, stored by the core and understood by the driver alone. `claims` are what nobody else on
    the network may hold (`ip:10.0.0.5`, `mac:0a:…`). `gateways` are the IP versions (4, 6) for which this
    attachment can give the container its default route.
    """

    data: JSON
    claims: frozenset[str]
    gateways: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class PortRequest:
    """A host port a policy asks for. `host_port` 0 is "any of the pool", `container_port` 0 "the same number".

    `protocol` is an IANA number (6 or 17); `host_ip` None is every local address except loopback.
    `path` names the entry in the policy document, such as `net_in[0]`.
    """

    protocol: int
    host_port: int
    container_port: int
    host_ip: IPAddress | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host port that is held for an attachment; both numbers are settled."""

    protocol: int
    host_port: int
    container_port: int
    host_ip: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """One container on one network.

    `lease` is None only while `allocate` runs. `default_route` are the IP versions whose default route this
    attachment gives the container. `ports` answer the driver's `port_requests`, in their order. `identity` is the
    number of its identity on the network, 0 where it has none.
    """

    network: str
    handle: str
    key: str
    ifname: str
    requested: Requested = Requested()
    lease: Lease | None = None
    default_route: frozenset[int] = frozenset()
    ports: tuple[HostPort, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    identity: int = 0
