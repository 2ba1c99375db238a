"""What the contract asks of a driver's effects, as tests on a real kernel in namespaces of their own. Needs root."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from errno import EINTR
from typing import Any, ClassVar

import pytest

from conetd.driver import (
    JSON,
    Attachment,
    AttachmentContext,
    Driver,
    KernelError,
    KernelHandle,
    Network,
    NetworkContext,
    PlannedDriver,
)
from conetd.kernel.choice import open_filter
from conetd.kernel.kernel import Kernel
from conetd.plan import Drift, Plan
from conetd.testing.sample import Sample

_COUNTERS = re.compile(r"packets \d+ bytes \d+|\[\d+:\d+\]")
_LISTINGS = {
    "nftables": [["nft", "list", "ruleset"]],
    "iptables": [["iptables-legacy-save"], ["ip6tables-legacy-save"]],
}
_OF_LINK = ("ifname", "address", "mtu", "ifalias", "group", "master")

# How far an attach got before it was cut off: what it had made of its plan.
_CUTS: dict[str, Callable[[Plan], Plan]] = {
    "nothing": lambda plan: Plan(),
    "filter": lambda plan: Plan(filter=plan.filter),
    "links": lambda plan: Plan(filter=plan.filter, links=plan.links, sysctls=plan.sysctls),
    "addresses": lambda plan: replace(plan, routes=()),
    "everything": lambda plan: plan,
}


@dataclass(frozen=True, slots=True)
class _Interrupted:
    """A kernel handle that makes a part of what it is asked for and then fails, like a daemon that is killed."""

    handle: KernelHandle
    cut: Callable[[Plan], Plan]

    def ensure(self, plan: Plan) -> None:
        self.handle.ensure(self.cut(plan))
        raise KernelError("create", "the rest", EINTR, "cut off by the test")

    def remove(self, plan: Plan) -> None:
        self.handle.remove(plan)

    def diff(self, plan: Plan) -> Sequence[Drift]:
        return self.handle.diff(plan)


@dataclass(slots=True)
class _Host:
    """A host in a namespace with one network of the driver's, and a way to call the driver as the core does."""

    sample: Sample
    netns: Any
    driver: Driver[Any, Any]
    network: Network[Any]
    kernel: Kernel
    made: dict[str, Attachment] = field(default_factory=dict)

    def picture(self) -> dict[str, list[str]]:
        """What the host holds, the backend's rules included, but neither counters nor what expires by itself."""
        rules: list[str] = []
        for command in _LISTINGS[self.kernel.filter.name]:
            listed = _COUNTERS.sub("", self.netns.run(*command).stdout).splitlines()
            rules += [line for line in _lasting(listed) if " expires " not in line and not line.startswith("#")]
        return _picture(self.netns) | {"rules": rules}

    def on_network(self, method: str, network: Network[Any] | None = None) -> None:
        chosen = network or self.network
        handle = self.kernel.handle(f"conetd {chosen.name}", None)
        context: NetworkContext[Any] = NetworkContext(chosen, handle, logging.getLogger(__name__))
        others = self._others(chosen)
        if method == "remove_network":
            self.netns.call(handle.remove, others)
        self.netns.call(getattr(self.driver, method), context)
        if method == "ensure_network":
            self.netns.call(handle.ensure, others)

    def _others(self, network: Network[Any]) -> Plan:
        """What there is for the other hosts of the network."""
        if not isinstance(self.driver, PlannedDriver):
            return Plan()
        return Plan.of([self.driver.plan_member(network, host, data) for host, data in network.members.items()])

    def on_attachment(
        self,
        method: str,
        container: Any,
        handle: str = "web",
        policy: JSON | None = None,
        cut: Callable[[Plan], Plan] | None = None,
    ) -> Any:
        """Call the method; `container` is the namespace, None once it is gone."""
        bound: KernelHandle = self.kernel.handle(f"conetd {self.network.name}/{handle}", container)
        context: AttachmentContext[Any, Any] = AttachmentContext(
            self.network,
            self.attachment(handle, policy),
            self.sample.policy(policy or {}),
            container,
            bound if cut is None else _Interrupted(bound, cut),
            logging.getLogger(__name__),
        )
        return self.netns.call(getattr(self.driver, method), context)

    def attachment(self, handle: str, policy: JSON | None) -> Attachment:
        if handle not in self.made:
            held = [claim for one in self.made.values() if one.lease is not None for claim in one.lease.claims]
            self.made[handle] = self.sample.attachment(self.network, handle, held)
        return replace(self.made[handle], ports=self.sample.ports(policy))


class KernelConformance:
    """Inherit, name the class `Test…`, and set `sample`. `filter` is the backend to try it with."""

    sample: ClassVar[Sample]
    filter: ClassVar[str] = "nftables"

    @pytest.fixture
    def host(self, netns: Any) -> Iterator[_Host]:
        """A host with the network on it. It has an uplink with the default route, as hosts do."""
        namespace = netns.make("host")
        namespace.connect(netns.make("world"), "192.0.2.1/24", "192.0.2.2/24", name="up0")
        namespace.run("ip", "route", "add", "default", "via", "192.0.2.2")
        namespace.run("ip", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
        kernel = namespace.call(lambda: Kernel(open_filter(self.filter)))
        try:
            host = _Host(self.sample, namespace, self.sample.driver(), self.sample.network(), kernel)
            host.on_network("ensure_network")
            yield host
        finally:
            namespace.call(kernel.close)

    @pytest.fixture
    def web(self, netns: Any) -> Any:
        """A container's namespace."""
        return netns.make("web")

    def test_an_attached_container_is_as_wanted(self, host: _Host, web: Any) -> None:
        for document in self.sample.all_policies():
            host.on_attachment("attach", web, policy=document)

            assert list(host.on_attachment("check", web, policy=document)) == []

    def test_the_container_has_the_interface_it_is_told_of(self, host: _Host, web: Any) -> None:
        told = host.on_attachment("attach", web)

        (link,) = web.json("ip", "-j", "addr", "show", "dev", "eth0")
        has = {f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"]}
        assert set(told.get("addresses", ())) <= has
        assert told.get("mac", link["address"]) == link["address"]
        assert "UP" in link["flags"]

    def test_attaching_twice_is_attaching_once(self, host: _Host, web: Any) -> None:
        first = host.on_attachment("attach", web)
        before = host.picture(), _picture(web)

        assert host.on_attachment("attach", web) == first
        assert (host.picture(), _picture(web)) == before

    def test_making_a_network_twice_is_making_it_once(self, host: _Host) -> None:
        before = host.picture()

        host.on_network("ensure_network")

        assert host.picture() == before

    @pytest.mark.parametrize("cut", _CUTS.values(), ids=_CUTS.keys())
    def test_an_attach_that_was_cut_off_is_completed_by_the_next(
        self, host: _Host, web: Any, cut: Callable[[Plan], Plan]
    ) -> None:
        with pytest.raises(KernelError, match="cut off by the test"):
            host.on_attachment("attach", web, cut=cut)

        host.on_attachment("attach", web)

        assert list(host.on_attachment("check", web)) == []

    @pytest.mark.parametrize("cut", _CUTS.values(), ids=_CUTS.keys())
    def test_detaching_undoes_an_attach_that_was_cut_off(
        self, host: _Host, web: Any, cut: Callable[[Plan], Plan]
    ) -> None:
        before = host.picture()
        with pytest.raises(KernelError, match="cut off by the test"):
            host.on_attachment("attach", web, cut=cut)

        host.on_attachment("detach", web)

        assert host.picture() == before

    def test_after_detaching_the_host_is_as_before(self, host: _Host, web: Any) -> None:
        for document in self.sample.all_policies():
            before = host.picture()
            host.on_attachment("attach", web, policy=document)

            host.on_attachment("detach", web, policy=document)

            assert host.picture() == before

    def test_detaching_does_not_need_the_containers_namespace(self, host: _Host, web: Any) -> None:
        before = host.picture()
        host.on_attachment("attach", web)

        host.on_attachment("detach", None)

        assert host.picture() == before

    def test_detaching_what_is_not_attached_is_success(self, host: _Host, web: Any) -> None:
        before = host.picture()

        host.on_attachment("detach", web)
        host.on_attachment("detach", None)

        assert host.picture() == before

    def test_detaching_one_leaves_the_others_as_wanted(self, host: _Host, web: Any, netns: Any) -> None:
        db = netns.make("db")
        host.on_attachment("attach", web)
        host.on_attachment("attach", db, "db")

        host.on_attachment("detach", web)

        assert list(host.on_attachment("check", db, "db")) == []

    def test_a_policy_replaces_the_one_before(self, host: _Host, web: Any) -> None:
        host.on_attachment("attach", web)
        first = host.picture()
        for document in self.sample.all_policies():
            host.on_attachment("apply_policy", web, policy=document)

            assert list(host.on_attachment("check", web, policy=document)) == []

        host.on_attachment("apply_policy", web)

        assert host.picture() == first

    def test_a_change_behind_the_drivers_back_is_told(self, host: _Host, web: Any) -> None:
        host.on_attachment("attach", web)

        web.run("ip", "addr", "flush", "dev", "eth0")

        assert list(host.on_attachment("check", web)) != []

    def test_a_network_that_is_removed_leaves_the_others_as_they_were(self, host: _Host) -> None:
        if self.sample.another_config is None:
            pytest.skip("the sample has no another_config")
        before = host.picture()
        red = self.sample.network("red", self.sample.another_config)
        host.on_network("ensure_network", red)

        host.on_network("remove_network", red)
        host.on_network("remove_network", red)

        assert host.picture() == before


def _lasting(listed: Iterable[str]) -> Iterator[str]:
    """What is listed, without the chains that are there only while a link is shut."""
    skipping = False
    waiting: list[str] = []
    for line in listed:
        if line.strip().startswith("chain closed_"):
            skipping = True
            waiting.clear()
        if not skipping:
            yield from waiting
            waiting = [line] if not line.strip() else []
            if line.strip():
                yield line
        elif line.strip() == "}":
            skipping = False
    yield from waiting


def _picture(netns: Any) -> dict[str, list[str]]:
    """Links, addresses, routes and neighbours of a namespace, without what comes and goes by itself.

    That is carrier and all the kernel does because of it: link-local addresses, routes of the kernel's own.
    """
    links = netns.json("ip", "-j", "addr")
    routes = netns.json("ip", "-j", "route") + netns.json("ip", "-6", "-j", "route")
    neighbours = netns.json("ip", "-j", "neigh", "show", "nud", "permanent")
    seen: dict[str, list[Any]] = {
        "links": [[link.get(key) for key in _OF_LINK] + ["UP" in link["flags"]] for link in links],
        "addresses": [
            [link["ifname"], one["local"], one["prefixlen"]]
            for link in links
            for one in link["addr_info"]
            if one["scope"] != "link"
        ],
        "routes": [
            [route.get(key) for key in ("type", "dst", "gateway", "dev", "metric")]
            for route in routes
            if route.get("protocol") != "kernel"
        ],
        "neighbours": [[one["dst"], one["dev"], one["lladdr"]] for one in neighbours],
    }
    forwarded = [one for one in netns.json("bridge", "-j", "fdb") if "dst" in one]
    seen["forwarded"] = [[one["ifname"], one["mac"], one["dst"], one["state"]] for one in forwarded]
    return {kind: sorted(json.dumps(one) for one in found) for kind, found in seen.items()}
