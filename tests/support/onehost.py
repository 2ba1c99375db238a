"""A host with two uplinks, a daemon and containers that all tests of a module share.

    outside 192.0.2.2, .65-.70 -- up0 [host 192.0.2.1, .3] bridges -- containers
    dmz 198.51.100.2 ----------- dmz0 [                  ]

and the same in IPv6, 2001:db8::/64 and 2001:db8:d::/64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from pytest_netns import Netns, NetnsFactory
from traffic import PATIENCE_S, SILENCE_S, Flow, Services, ask
from world import Answer, Daemon

UP, UP_SECOND = {4: "192.0.2.1", 6: "2001:db8::1"}, {4: "192.0.2.3", 6: "2001:db8::3"}
OUTSIDE, DMZ = {4: "192.0.2.2", 6: "2001:db8::2"}, {4: "198.51.100.2", 6: "2001:db8:d::2"}
DENIED = {4: "192.0.2.66", 6: "2001:db8::66"}
DENY = ["192.0.2.64/29", "2001:db8::60/124"]  # .64-.71 and ::60-::6f
EVERYTHING = ["0.0.0.0/0", "::/0"]
SERVICE = 8080


@dataclass
class Machine:
    """A namespace with a name, and the addresses it is spoken to by."""

    name: str
    netns: Netns
    addresses: dict[int, str]
    mac: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass
class Lab:
    """The host with its daemon and whoever is around."""

    factory: NetnsFactory
    backend: str
    host: Machine
    outside: Machine
    dmz: Machine
    daemon: Daemon
    services: Services
    containers: dict[str, Machine] = field(default_factory=dict)
    _touched: set[str] = field(default_factory=set)

    def container(self, name: str, *networks: Any, netns: Netns | None = None) -> Machine:
        """A container that is up on these networks, in a namespace of its own unless one is given."""
        netns = netns or self.factory.make(name)
        told = self.daemon.bring_up(name, netns, *networks)
        first = told["attachments"][0]
        found = [ip_interface(one).ip for one in first["addresses"]]
        machine = Machine(name, netns, {one.version: str(one) for one in found}, first["mac"])
        self.containers[name] = machine
        return machine

    def remove(self, machine: Machine) -> None:
        """Take a container down, forget it, and let its namespace go."""
        assert self.daemon.down(machine.name).status == 200
        assert self.daemon.delete(f"/containers/{machine.name}").status == 204
        machine.netns.close()
        del self.containers[machine.name]
        self._touched.discard(machine.name)

    def policy(self, machine: Machine, **networks: Any) -> Answer:
        """Put the container's policies; the answer is checked to be 200."""
        answer = self.try_policy(machine, **networks)
        assert answer.status == 200, (answer, self.daemon.log)
        return answer

    def try_policy(self, machine: Machine, **networks: Any) -> Answer:
        """Put the container's policies."""
        self._touched.add(machine.name)
        return self.daemon.policy(machine.name, **networks)

    def reset(self) -> None:
        """Take back every policy that was put; no flow is remembered."""
        while self._touched:
            answer = self.daemon.policy(self._touched.pop())
            assert answer.status == 200, (answer, self.daemon.log)
        self.forget_flows()

    @contextlib.contextmanager
    def restored(self) -> Iterator[Lab]:
        """What is made within the block is gone after it, containers and networks, also after a failure.

        The daemon runs then, with the settings it had. Containers that are taken down within the block stay so.
        """
        settings, containers, networks = self.daemon.settings, self._known("containers"), self._known("networks")
        try:
            yield self
        finally:
            if self.daemon.settings != settings:
                self._stop()
                self.daemon.settings = settings
            self.revive()
            self._take_away(self._known("containers") - containers, self._known("networks") - networks)

    def revive(self) -> None:
        """Start the daemon unless it runs."""
        if not self._runs:
            self.daemon.start()

    def _known(self, what: str) -> set[str]:
        told = self.daemon.get(f"/{what}").body
        return {one["handle" if what == "containers" else "name"] for one in told}

    def _take_away(self, containers: set[str], networks: set[str]) -> None:
        answers: list[Answer] = []
        for handle in containers:
            answers += [self.daemon.down(handle), self.daemon.delete(f"/containers/{handle}")]
            self._touched.discard(handle)
            if handle in self.containers:
                self.containers.pop(handle).netns.close()
        answers += [self.daemon.delete(f"/networks/{name}") for name in networks]
        assert {answer.status for answer in answers} <= {200, 204}, (answers, self.daemon.log)

    def forget_flows(self) -> None:
        """Empty the host's connection table."""
        self.host.netns.run("conntrack", "-F")

    def flows(self) -> list[str]:
        """The host's connection table without timers, one line a flow."""
        listed = "".join(
            self.host.netns.run("conntrack", "-L", "-o", "extended", "-f", family).stdout for family in ("ipv4", "ipv6")
        )
        # ipv4 2 udp 17 29 src=... : family twice, protocol twice, the timer
        return sorted(" ".join(line.split()[:4] + line.split()[5:]) for line in listed.splitlines())

    def serve(self, machine: Machine, flow: Flow, port: int = SERVICE) -> None:
        """Have the machine answer there."""
        self.services.open(machine.netns, machine.name, flow.protocol, port)

    def reach(self, machine: Machine, flow: Flow, to: str, port: int = SERVICE) -> str:
        """What a client finds that expects an answer: `NAME PEER`, or why there is none."""
        return ask(machine.netns, flow, to, port, patience=PATIENCE_S)

    def miss(self, machine: Machine, flow: Flow, to: str, port: int = SERVICE) -> str:
        """What a client finds that expects none."""
        return ask(machine.netns, flow, to, port, patience=SILENCE_S)

    def bridge_netfilter(self, value: int) -> None:
        """Set the host's bridge-nf-call-iptables and -ip6tables."""
        for name in ("iptables", "ip6tables"):
            self.host.netns.sysctl(f"net/bridge/bridge-nf-call-{name}", value)

    def close(self) -> None:
        """Stop the services and the daemon, which must not have had a bug to report."""
        self.services.close()
        self._stop()
        text = self.daemon.log
        assert "Traceback" not in text, text

    @property
    def _runs(self) -> bool:
        return self.daemon.process is not None and self.daemon.process.poll() is None

    def _stop(self) -> None:
        if self._runs:
            self.daemon.stop()


def build(
    factory: NetnsFactory, folder: Path, backend: str, *, settings: str = "", before: Callable[[Netns], object] = repr
) -> Lab:
    """Make the host and its neighbours and start the daemon; `before` is told the host before that."""
    host, outside, dmz = (factory.make(name) for name in ("host", "outside", "dmz"))
    host.connect(
        outside,
        f"{UP[4]}/24",
        f"{OUTSIDE[4]}/24",
        name="up0",
        peer_name="eth0",
        extra={f"{UP[6]}/64": f"{OUTSIDE[6]}/64"},
    )
    host.connect(
        dmz,
        "198.51.100.1/24",
        f"{DMZ[4]}/24",
        name="dmz0",
        peer_name="eth0",
        extra={"2001:db8:d::1/64": f"{DMZ[6]}/64"},
    )
    second = [(host, "up0", UP_SECOND[version]) for version in (4, 6)]
    more = [(outside, "eth0", f"192.0.2.{number}") for number in range(65, 74)]
    more += [(outside, "eth0", f"2001:db8::{number}") for number in range(65, 74)]
    for netns, link, address in (*second, *more):
        # IPv6 would else speak with whichever address is younger
        plain = ("/64", "nodad", "preferred_lft", "0") if ":" in address else ("/24",)
        netns.run("ip", "addr", "add", address + plain[0], "dev", link, *plain[1:])
    for version in (4, 6):
        host.run("ip", f"-{version}", "route", "add", "default", "via", OUTSIDE[version])
        outside.run("ip", f"-{version}", "route", "add", "default", "via", UP[version])
        via = {4: "198.51.100.1", 6: "2001:db8:d::1"}[version]
        dmz.run("ip", f"-{version}", "route", "add", "default", "via", via)
    # else the kernel answers only so many packets a second with a refusal
    host.sysctl("net/ipv4/icmp_ratelimit", 0)
    host.sysctl("net/ipv6/icmp/ratelimit", 0)
    before(host)
    daemon = Daemon(host, folder, f'filter = "{backend}"\n{settings}')
    daemon.start()
    return Lab(
        factory,
        backend,
        Machine("host", host, UP),
        Machine("outside", outside, OUTSIDE),
        Machine("dmz", dmz, DMZ),
        daemon,
        Services(),
    )
