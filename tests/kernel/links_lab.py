"""What the tests of links and routes try the kernel with: a filter that remembers, plans, and looks at the outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from pytest_netns import Netns

from conetd.errors import KernelError
from conetd.kernel import Kernel
from conetd.kernel.filter import FilterBackend
from conetd.plan import (
    Address,
    Bridge,
    Drift,
    EndpointPolicy,
    FilterObject,
    NetworkFilter,
    Plan,
    Route,
    Side,
    Sysctl,
    Veth,
    identity,
)

ALIAS = "conetd:blue:web"
NETWORK_ALIAS = "conetd:blue"
NETWORK = Plan(
    links=(Bridge("blue0", "0a:00:00:00:00:01", 1450),),
    addresses=(Address("blue0", ip_interface("10.0.0.1/24")), Address("blue0", ip_interface("fd00::1/64"))),
    filter=(NetworkFilter("blue", (ip_network("10.0.0.0/24"),), "blue0"),),
)


def attachment(number: int, bridge: str | None = "blue0") -> Plan:
    """The plan of an attachment with that last number in its addresses."""
    return Plan(
        links=(Veth(f"cv{number}", "eth0", f"0a:00:00:00:01:{number:02x}", 1450, bridge),),
        addresses=(
            Address("eth0", ip_interface(f"10.0.0.{number}/24"), Side.CONTAINER),
            Address("eth0", ip_interface(f"fd00::{number:x}/64"), Side.CONTAINER),
        ),
        routes=(
            Route(ip_network("0.0.0.0/0"), "eth0", via=ip_address("10.0.0.1"), side=Side.CONTAINER),
            Route(ip_network("::/0"), "eth0", via=ip_address("fd00::1"), side=Side.CONTAINER),
        ),
        sysctls=(
            Sysctl("ipv6/conf/default/accept_ra", "0", Side.CONTAINER, early=True),
            Sysctl("ipv4/conf/eth0/arp_notify", "1", Side.CONTAINER),
        ),
        filter=(EndpointPolicy(f"key{number}"),),
    )


def link(one: Netns, name: str) -> Any:
    """What `ip` tells of one link, its addresses included."""
    [found] = one.json("ip", "-j", "-d", "addr", "show", name)
    return found


def picture(*namespaces: Netns) -> list[Any]:
    """Everything `ip` and `bridge` tell of the namespaces that time alone does not change."""
    told = []
    for one in namespaces:
        links = one.json("ip", "-j", "-d", "link")
        for each in links:
            each.get("linkinfo", {}).get("info_data", {}).pop("gc_timer", None)
        routes = [one.json("ip", "-j", "-d", family, "route") for family in ("-4", "-6")]
        others = [one.json("ip", "-j", "addr"), one.json("ip", "-j", "neigh", "show", "nud", "permanent")]
        told.append((links, routes, others, one.json("bridge", "-j", "fdb")))
    return told


class RememberingFilter(FilterBackend):
    """A filter that holds what it is given in a dict, refuses the keys it is told to, and counts its transactions."""

    name = "remembering"
    fast_path = None

    def __init__(self) -> None:
        self.holds: dict[tuple[str, str], FilterObject] = {}
        self.refuses: set[str] = set()
        self.transactions = 0

    def apply(self, put: Sequence[FilterObject] = (), drop: Sequence[tuple[str, str]] = ()) -> None:
        self.transactions += 1
        if self.refuses & ({one.key for one in put} | {key for _, key in drop}):
            raise KernelError("change", "the filter", 22)
        for gone in drop:
            self.holds.pop(gone, None)
        self.holds.update({identity(one): one for one in put})

    def held(self, kind: str, key: str) -> FilterObject | None:
        return self.holds.get((kind, key))

    def sync(self, wanted: Sequence[FilterObject]) -> Sequence[Drift]:
        drifts = self.check(wanted)
        self.holds = {identity(one): one for one in wanted}
        return drifts

    def check(self, wanted: Sequence[FilterObject]) -> Sequence[Drift]:
        return [Drift(f"filter {one.key}", "is missing") for one in wanted if self.holds.get(identity(one)) != one]

    def disturbed(self) -> bool:
        return False

    def set_opened(self, version: int, uplinks: Sequence[str]) -> None:
        return None

    def remove_all(self) -> None:
        self.holds.clear()

    def close(self) -> None:
        self.holds.clear()


class OnHost:
    """A Kernel, each call made on a thread inside the host's namespace."""

    def __init__(self, host: Netns, filter: FilterBackend) -> None:
        self._host = host
        self._kernel = host.call(Kernel, filter)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._host.call, getattr(self._kernel, name))
