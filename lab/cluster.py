"""Hosts with a daemon each, an etcd, containers on them, and the faults that can be set on all that."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_netns import Netns, NetnsFactory

from lab.daemon import Answer, Daemon, eventually
from lab.errors import LabError
from lab.etcd import EtcdCluster
from lab.hosts import OVERLAY, Container, Host, done
from lab.underlay import MAX_HOSTS, WORLD, Place, Trouble, Underlay, etcd_places, host_places

_OVERLAY: dict[str, Any] = {"vni": 100, "subnet": "10.1.0.0/16", "subnet6": "fd00:10:1::/64"}


class Lab:
    """Hosts h1 to hn on an underlay, and members of an etcd. A context manager; nothing is there before it is entered,
    and nothing is left behind, whatever happened within.

    `ttl` are the seconds after which a host without a sign of life is taken for gone. `underlay` is the IP version by
    which hosts reach each other and etcd. Without members of etcd the daemons have no setting `cluster`. `settings`
    are lines of TOML for each daemon's settings. Without a folder there is a temporary one.
    """

    def __init__(
        self,
        hosts: int = 3,
        folder: Path | None = None,
        *,
        etcd_members: int = 3,
        ttl: int = 5,
        underlay: int = 4,
        settings: str = "",
    ) -> None:
        if not 1 <= hosts <= MAX_HOSTS:
            raise LabError(f"a lab has 1 to {MAX_HOSTS} hosts, not {hosts}")
        if not 0 <= etcd_members <= 9:
            raise LabError(f"a lab's etcd has up to 9 members, not {etcd_members}")
        if underlay not in (4, 6):
            raise LabError(f"the underlay is IPv4 or IPv6, not IPv{underlay}")
        self.hosts: list[Host] = []
        self._wanted = hosts, etcd_members
        self._folder = folder
        self._ttl = ttl
        self._version = underlay
        self._settings = settings
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as building:
            if self._folder is None:
                self._folder = Path(building.enter_context(tempfile.TemporaryDirectory(prefix="conetd-lab-")))
            self._factory = building.enter_context(NetnsFactory())
            self._build(self._folder)
            self._stack = building.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _build(self, folder: Path) -> None:
        hosts, members = self._wanted
        self._underlay = Underlay(self._factory)
        self._members = [self._machine(place) for place in etcd_places(members)]
        homes = [place.addresses[self._version] for place in etcd_places(members)]
        (folder / "etcd").mkdir()
        self.etcd = EtcdCluster(list(zip(self._members, homes, strict=True)), folder / "etcd")
        for member in self._members:
            member.run("nft", "-f", "-", input=_HOSTS_TO_DROP)
        for place in host_places(hosts):
            home = folder / place.name
            home.mkdir()
            netns = self._machine(place)
            daemon = Daemon(netns, home, self._toml(place))
            self.hosts.append(Host(place, netns, daemon, place.addresses[self._version], self._factory))
            self.hosts[-1].boot()
        if members:
            self.etcd.start()
        for host in self.hosts:
            host.start(wait=False)
        for host in self.hosts:
            host.daemon.wait_ready()

    def _machine(self, place: Place) -> Netns:
        netns = self._factory.make(place.name)
        self._underlay.plug(netns, place)
        return netns

    def _toml(self, place: Place) -> str:
        lines = ['drivers = ["bridge", "vxlan"]', self._settings]
        if self._wanted[1]:
            endpoints = ", ".join(f'"{one}"' for one in self.etcd.endpoints)
            lines += ["[cluster]", f"etcd = [{endpoints}]", 'prefix = "/lab"', f'host = "{place.name}"']
            lines += [f"ttl = {self._ttl}"]
        return "\n".join(lines)

    # What there is

    @property
    def router(self) -> Netns:
        return self._underlay.router

    @property
    def outside(self) -> Netns:
        """A machine in the world, at 203.0.113.2 and 2001:db8:3::2 (`lab.underlay.WORLD`)."""
        return self._underlay.outside

    @property
    def containers(self) -> dict[str, Container]:
        """Those of all hosts, by name."""
        return {name: one for host in self.hosts for name, one in host.containers.items()}

    @property
    def namespaces(self) -> list[Netns]:
        """All that are there now."""
        machines = [self.router, self.outside, *self._members, *(host.netns for host in self.hosts)]
        return machines + [one.netns for one in self.containers.values()]

    def host(self, name: str) -> Host:
        """The host of that name. Raises LabError."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"there is no host {name}, only {self.hosts[0].name} to {self.hosts[-1].name}")

    def machine(self, name: str) -> tuple[Netns, dict[int, str]]:
        """The namespace and the addresses of a container, a host, a member of etcd, or `outside`. Raises LabError."""
        if name in self.containers:
            return self.containers[name].netns, self.containers[name].addresses
        if name == "outside":
            return self.outside, WORLD
        for host in self.hosts:
            if host.name == name:
                return host.netns, host.addresses
        for netns, place in zip(self._members, etcd_places(len(self._members)), strict=True):
            if place.name == name:
                return netns, place.addresses
        raise LabError(f"there is no container, host or member of etcd called {name}")

    def members(self) -> dict[str, bool]:
        """Which members of etcd run, by name: e1 is the first."""
        return {netns.name: self.etcd.running(index) for index, netns in enumerate(self._members)}

    def member(self, name: str) -> int:
        """The number by which `etcd` knows the member of that name. Raises LabError."""
        if name not in self.members():
            raise LabError(f"there is no member {name} of etcd, only {', '.join(self.members()) or 'none'}")
        return list(self.members()).index(name)

    def network(
        self, name: str = OVERLAY, *, type: str = "vxlan", default_policy: Any = None, **config: Any
    ) -> list[Answer]:
        """Define a network on all hosts at once; what is left out is that of the network `overlay`. Raises LabError.

        With an IPv6 underlay each host is told which of its addresses that is.
        """
        document = {"name": name, "type": type, "default_policy": default_policy or {}}

        def define(host: Host) -> Answer:
            given = config
            if type == "vxlan":
                given = _OVERLAY | ({"underlay": host.address} if self._version == 6 else {}) | config
            return done(host.daemon.post("/networks", document | {"config": given}))

        with ThreadPoolExecutor(len(self.hosts)) as pool:
            return list(pool.map(define, self.hosts))

    def wait_until_joined(self, name: str = OVERLAY) -> None:
        """Return when each host has every other in the network, as far as etcd tells. Raises AssertionError if not."""

        def joined() -> bool:
            told = [host.daemon.get("/status").body.get("cluster") for host in self.hosts]
            return all(len(one["networks"].get(name, {}).get("hosts", ())) == len(self.hosts) for one in told)

        if self._members:
            eventually(joined, f"every host knows every other in the network {name}")

    # Faults. Each has an undo, and `restore` is that of them all.

    def cut(self, host: Host) -> None:
        """Lose every packet on the host's wire; daemon and containers live on. `heal` undoes it."""
        self._trouble(host, cut=True)

    def lose(self, host: Host, percent: float, delay_ms: float = 0.0) -> None:
        """Lose so many of the packets on the host's wire, at random, each way, and have the others late by so much each
        way. `heal` undoes it. Raises LabError when they are to be late and the kernel has no sch_netem.
        """
        if not 0 <= percent <= 100 or delay_ms < 0:
            raise LabError("packets are lost by 0 to 100 percent, and late by no less than 0 milliseconds")
        self._trouble(host, loss_percent=percent, delay_ms=delay_ms)

    def cut_etcd(self, host: Host | None = None) -> None:
        """Lose every packet between etcd and the host, or all hosts; they reach each other. `heal` undoes it."""
        for one in [host] if host is not None else self.hosts:
            self._let_to_etcd(one, "add")
            one.without_etcd = True

    def heal(self, host: Host | None = None) -> None:
        """Undo whatever happens to packets of the host, or all hosts."""
        for one in [host] if host is not None else self.hosts:
            one.trouble = Trouble()
            self._underlay.trouble(one.netns, one.place, one.trouble)
            if one.without_etcd:
                self._let_to_etcd(one, "delete")
                one.without_etcd = False

    def kill(self, host: Host) -> None:
        """End the daemon without warning; what it made stays. `start` undoes it."""
        host.daemon.kill()

    def stop(self, host: Host) -> None:
        """End the daemon as a service manager does; what it made stays. `start` undoes it."""
        host.daemon.stop()

    def start(self, host: Host) -> None:
        """Start the daemon unless it runs; returns when it is ready."""
        if not host.runs:
            host.start()

    def restart(self, host: Host) -> None:
        """Stop the daemon and start it again."""
        if host.runs:
            self.stop(host)
        self.start(host)

    def reboot(self, host: Host) -> None:
        """Lose everything of the host but its state directory: processes, containers, interfaces, rules.

        It comes back with the same addresses and another boot id; returns when its daemon is ready. What happened to
        its packets goes on.
        """
        if host.runs:
            host.daemon.kill()
        for container in list(host.containers.values()):
            container.netns.close()
        host.containers.clear()
        self._underlay.unplug(host.place)
        host.netns.close()
        host.netns = host.daemon.host = self._machine(host.place)
        self._underlay.trouble(host.netns, host.place, host.trouble)
        for path in (host.daemon.public_socket, host.daemon.private_socket):  # /run is empty after a boot
            path.unlink(missing_ok=True)
        host.boot()
        host.start()

    def restore(self) -> None:
        """Undo every fault: packets pass, etcd's members and the daemons run. Containers that are gone stay so."""
        self.heal()
        self.etcd.restore()
        for host in self.hosts:
            self.start(host)

    @contextlib.contextmanager
    def restored(self) -> Iterator[Lab]:
        """Every fault that is set within the block is undone at its end, also after a failure."""
        try:
            yield self
        finally:
            self.restore()

    def _trouble(self, host: Host, **changed: Any) -> None:
        before, host.trouble = host.trouble, replace(host.trouble, **changed)
        try:
            self._underlay.trouble(host.netns, host.place, host.trouble)
        except BaseException:
            host.trouble = before
            self._underlay.trouble(host.netns, host.place, before)
            raise

    def _let_to_etcd(self, host: Host, verb: str) -> None:
        elements = "".join(
            f"{verb} element inet lab hosts{version} {{ {address} }}\n" for version, address in host.addresses.items()
        )
        for member in self._members:
            member.run("nft", "-f", "-", input=elements)


_HOSTS_TO_DROP = """\
add table inet lab
add set inet lab hosts4 { type ipv4_addr; }
add set inet lab hosts6 { type ipv6_addr; }
add chain inet lab input { type filter hook input priority 0; }
add chain inet lab output { type filter hook output priority 0; }
add rule inet lab input ip saddr @hosts4 drop
add rule inet lab input ip6 saddr @hosts6 drop
add rule inet lab output ip daddr @hosts4 drop
add rule inet lab output ip6 daddr @hosts6 drop
"""
