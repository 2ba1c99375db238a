"""What a driver's author tells the conformance suite, and the values that the suite makes of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from conetd import documents
from conetd.driver import JSON, Attachment, Driver, HostPort, Network
from conetd.model import attachment_key

_FIRST_PORT = 61001


@dataclass(frozen=True, slots=True)
class Sample:
    """A driver and documents to try it with.

    `type` is the name of its entry point. `config` and `another_config` are of two networks that can stand beside each
    other; `invalid_configs` and `invalid_policies` are documents that the schemas must refuse. `policies` should differ
    in what they let through; `{}` is tried whether named or not.
    """

    driver: type[Driver[Any, Any]]
    type: str
    config: JSON
    another_config: JSON | None = None
    invalid_configs: Sequence[JSON] = ()
    policies: Sequence[JSON] = ()
    invalid_policies: Sequence[JSON] = ()

    def network(self, name: str = "blue", config: JSON | None = None) -> Network[Any]:
        """A network of this type, of `config` unless another is given."""
        loaded = documents.load(self.driver.config_schema(), self.config if config is None else config, "config")
        return Network(name, self.type, loaded)

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
