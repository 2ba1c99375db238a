"""What a container's policy on a bridge network may say, and the value it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from marshmallow import Schema, post_load

from conetd.driver import PortRequest
from conetd.plan import IPNetwork, Rule
from conetd.policy.common import deny
from conetd.policy.fields import Subnets, Switch
from conetd.policy.garden import NetIn, NetOut


@dataclass(frozen=True, slots=True)
class BridgePolicy:
    """Ports to publish, egress that is open whatever is denied, networks denied beside the network's own."""

    net_in: tuple[PortRequest, ...] = ()
    net_out: tuple[Rule, ...] = ()
    deny_networks: tuple[IPNetwork, ...] = ()
    log_denied: bool = False

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What is judged in order: `net_out` opens what `deny_networks` closes."""
        return self.net_out + deny(self.deny_networks, "deny_networks")


class PolicySchema(Schema):
    """Loads to BridgePolicy."""

    net_in = NetIn(load_default=())
    net_out = NetOut(load_default=())
    deny_networks = Subnets(load_default=())
    log_denied = Switch(load_default=False)

    @post_load
    def build(self, data: dict[str, Any], **_: Any) -> BridgePolicy:
        """The document as a value."""
        return BridgePolicy(**data)
