"""What a driver's author tells the conformance suite, and the values that the suite makes of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from conetd import documents
from conetd.driver import JSON, Attachment, Driver, Host, HostPort, Interface, Lease, Network
from conetd.model import attachment_key, read_address

_FIRST_PORT = 61001


def _host(number: int) -> Host:
    addresses = tuple(map(read_address, (f"192.0.2.{number}", f"2001:db8::{number}")))
    return Host(f"host-{number}", (Interface("up0", 1500, addresses),), addresses)


HOSTS = tuple(map(_host, (1, 2, 3)))
"""The host the suite works on, and two others."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A driver and documents to try it with.

    `type` is the name of its entry point. `config` and `another_config` are of two networks that can stand beside each
    other; `invalid_configs` and `invalid_policies` are documents that the schemas must refuse. `policies` should differ
    in what they let through; `{}` is tried whether named or not. A driver with the capability `cluster` is asked for
    the leases of `host-1`, `host-2` and `host-3`: each has 192.0.2.n and 2001:db8::n on its interface up0.
    """

    driver: type[Driver[Any, Any]]
    type: str
    config: JSON
    another_config: JSON | None = None
    invalid_configs: Sequence[JSON] = ()
    policies: Sequence[JSON] = ()
    invalid_policies: Sequence[JSON] = ()

    def network(self, name: str = "blue", config: JSON | None = None) -> Network[Any]:
        """A network of this type, of `config` unless another is given, as it is on the first of the hosts."""
        loaded = documents.load(self.driver.config_schema(), self.config if config is None else config, "config")
        network: Network[Any] = Network(name, self.type, loaded)
        if not self.spans_hosts:
            return network
        lease, *others = self.host_leases(network)
        members = {host.name: one.data for host, one in zip(HOSTS[1:], others, strict=True)}
        return replace(network, lease=lease, members=members)

    @property
    def spans_hosts(self) -> bool:
        """Whether the driver has the capability `cluster`."""
        return "cluster" in self.driver.capabilities

    def host_leases(self, network: Network[Any]) -> list[Lease]:
        """What each host gets on the network, one after the other."""
        leases: list[Lease] = []
        for host in HOSTS:
            held = frozenset(claim for lease in leases for claim in lease.claims)
            lease = self.driver().allocate_host(network, host, None, held)
            assert lease is not None, f"{host.name} gets nothing on the network"
            leases.append(lease)
        return leases

    def all_policies(self) -> list[JSON]:
        """The empty policy and those of the author."""
        return [{}, *self.policies]

    def policy(self, document: JSON) -> Any:
        """A policy as the driver sees it."""
        return documents.load(self.driver.policy_schema(), document)

    def attachment(
        self, network: Network[Any], handle: str = "web", held: Collection[str] = (), policy: JSON | None = None
    ) -> Attachment:
        """An attachment with a fresh lease, the default routes it offers, and host ports for the policy."""
        driver = self.driver()
        key = attachment_key(network.name, handle)
        lease = driver.allocate(network, Attachment(network.name, handle, key, "eth0"), frozenset(held))
        return Attachment(
            network.name,
            handle,
            key,
            "eth0",
            lease=lease,
            default_route=lease.gateways,
            ports=self.ports(policy),
        )

    def ports(self, policy: JSON | None) -> tuple[HostPort, ...]:
        """What the core would settle for the policy's port requests."""
        requests = self.driver().port_requests(self.policy(policy or {}))
        settled = []
        for index, one in enumerate(requests):
            port = one.host_port or _FIRST_PORT + index
            settled.append(HostPort(one.protocol, port, one.container_port or port, one.host_ip))
        return tuple(settled)
