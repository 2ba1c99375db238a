"""A host with two bridges, containers behind them and a neighbour outside: where the filter backends are judged.

    outside 192.0.2.2, .66 -- up0 [host] br0 -- a 10.1.0.2, b 10.1.0.3     network blue
    dmz 198.51.100.2 ------- dmz0 [    ] br1 -- c 10.2.0.2                 network green

and the same in IPv6. Links, addresses and routes are made with `ip`, so that nothing of ours is tested by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.kernel.filter import FilterBackend
from conetd.model import AddressRange, IPAddress, PortRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, PortMapping
from tests.kernel.traffic import PATIENCE_S, SILENCE_S, Flow, Server, connect


def both(first: str, second: str) -> dict[int, IPAddress]:
    """An IPv4 and an IPv6 address, by version."""
    return {4: ip_address(first), 6: ip_address(second)}


UP, UP_SECOND = both("192.0.2.1", "fd00::1"), both("192.0.2.3", "fd00::3")
OUTSIDE, DENIED = both("192.0.2.2", "fd00::2"), both("192.0.2.66", "fd00::66")
DMZ = both("198.51.100.2", "fd0d::2")
GATEWAY, GREEN_GATEWAY = both("10.1.0.1", "fd01::1"), both("10.2.0.1", "fd02::1")
SUBNETS = {"blue": ("10.1.0.0/24", "fd01::/64"), "green": ("10.2.0.0/24", "fd02::/64")}


@dataclass
class Box:
    """A namespace with an interface and addresses; of a container also its port and MAC."""

    netns: Netns
    addresses: dict[int, IPAddress]
    mac: str = ""
    port: str = ""
    network: str = ""
    name: str = ""

    @property
    def endpoint(self) -> Endpoint:
        """The container as the filter knows it."""
        interface = "br0" if self.network == "blue" else "br1"
        addresses = tuple(self.addresses.values())
        return Endpoint(self.name, self.network, f"handle-{self.name}", interface, addresses, self.mac, self.port)


@dataclass
class FilterLab:
    """The host, its containers, and a backend that holds `objects`."""

    host: Netns
    outside: Box
    dmz: Box
    a: Box
    b: Box
    c: Box
    backend: FilterBackend
    objects: list[FilterObject] = field(default_factory=list)
    servers: dict[tuple[int, Flow, int], Server] = field(default_factory=dict)
    blue: NetworkFilter = field(init=False)
    green: NetworkFilter = field(init=False)

    def __post_init__(self) -> None:
        denied = tuple(AddressRange(one, one) for one in DENIED.values())
        reject = (Rule(Verdict.REJECT, destinations=denied, origin="deny_networks[0]"),)
        for name, interface in (("blue", "br0"), ("green", "br1")):
            subnets = tuple(ip_network(one) for one in SUBNETS[name])
            setattr(self, name, NetworkFilter(name, subnets, interface, subnets, reject))

    def reset(self) -> None:
        """Every container may do what its network does not deny; no flow is remembered."""
        for version in (4, 6):
            self.backend.set_opened(version, ())
        boxes = (self.a, self.b, self.c)
        policies = [EndpointPolicy(box.name) for box in boxes]
        self.backend.sync([self.blue, self.green, *(box.endpoint for box in boxes), *policies])
        self.forget_flows()

    def forget_flows(self) -> None:
        """Empty the connection table."""
        self.host.run("conntrack", "-F")

    def put(self, *objects: FilterObject) -> None:
        """Apply objects."""
        self.backend.apply(put=objects)

    def policy(
        self,
        box: Box,
        *rules: Rule,
        ports: Sequence[PortMapping] = (),
        ingress: tuple[Rule, ...] | None = None,
        log_denied: bool = False,
    ) -> None:
        """Give a container this policy."""
        self.put(EndpointPolicy(box.name, rules, tuple(ports), ingress, log_denied=log_denied))

    def network(self, wanted: NetworkFilter, **changes: object) -> None:
        """Change a network."""
        self.put(replace(wanted, **changes))  # type: ignore[arg-type]

    def serve(self, netns: Netns, flow: Flow, port: int = 8080) -> None:
        """Have something answer there, on every address."""
        key = (netns.inode, flow, port)
        if key not in self.servers:
            self.servers[key] = Server(netns, flow, port)

    def reach(self, netns: Netns, flow: Flow, to: IPAddress, port: int = 8080) -> str:
        """What a client finds that expects an answer: the address it is seen with, or why there is none."""
        sock, said = connect(netns, flow, to, port, PATIENCE_S)
        sock.close()
        return said

    def miss(self, netns: Netns, flow: Flow, to: IPAddress, port: int = 8080) -> str:
        """What a client finds that expects silence."""
        sock, said = connect(netns, flow, to, port, SILENCE_S)
        sock.close()
        return said

    def close(self) -> None:
        """Stop the servers; the namespaces go with their fixture."""
        for server in self.servers.values():
            server.close()
        self.backend.remove_all()
        self.backend.close()


def accept(
    flow: Flow | None, to: IPAddress | None = None, ports: tuple[int, int] | None = None, *, log: bool = False
) -> Rule:
    """A rule that opens."""
    return Rule(
        Verdict.ACCEPT,
        flow.protocol if flow else None,
        (AddressRange(to, to),) if to is not None else (),
        ports=(PortRange(*ports),) if ports else (),
        log=log,
        origin="net_out[0]",
    )


def only_nftables(lab: FilterLab, why: str) -> None:
    """Skip the test where another backend cannot do what it asks for, and why."""
    if lab.backend.name != "nftables":
        pytest.skip(f"{lab.backend.name}: {why}")


def needs_frames_judged(lab: FilterLab) -> None:
    """Skip the test where frames from port to port are seen by nobody."""
    if lab.host.sysctl("net.bridge.bridge-nf-call-iptables") == "0":
        only_nftables(lab, "frames inside a bridge pass it by without br_netfilter")


def reject(to: str | None = None) -> Rule:
    """A rule that closes a network, or everything."""
    destinations = (AddressRange.of(ip_network(to)),) if to else ()
    return Rule(Verdict.REJECT, destinations=destinations, origin="deny_networks[0]")


def mapping(box: Box, flow: Flow, host_port: int = 7000, to_port: int = 8080, **more: object) -> PortMapping:
    """A published port."""
    return PortMapping(flow.protocol, host_port, box.addresses[flow.family], to_port, **more)  # type: ignore[arg-type]


def _bridge(host: Netns, name: str, address: str, gateway: dict[int, IPAddress]) -> None:
    host.run("ip", "link", "add", name, "address", address, "type", "bridge", "mcast_snooping", "0")
    for version, one in gateway.items():
        host.run("ip", "addr", "add", f"{one}/{24 if version == 4 else 64}", "dev", name, *_NODAD[version])
    host.run("ip", "link", "set", name, "up")


_NODAD = {4: (), 6: ("nodad",)}


def _container(
    factory: NetnsFactory, host: Netns, name: str, network: str, addresses: dict[int, IPAddress], *, locked: bool
) -> Box:
    netns = factory.make(name)
    bridge, gateway = ("br0", GATEWAY) if network == "blue" else ("br1", GREEN_GATEWAY)
    number = int(addresses[4]) & 0xFFFFFF
    box = Box(netns, addresses, f"02:00:0a:{number.to_bytes(3).hex(':')}", f"v{name}", network, name)
    peer = ("peer", "name", "eth0", "netns", str(netns.pid), "address", box.mac)
    host.run("ip", "link", "add", box.port, "type", "veth", *peer)
    host.run("ip", "link", "set", box.port, "master", bridge)
    # the lock is what keeps a MAC address on the iptables backend; nftables has to do without
    lock = ("locked", "on") if locked else ()
    host.run("bridge", "link", "set", "dev", box.port, "learning", "off", "hairpin", "on", *lock)
    host.run("bridge", "fdb", "replace", box.mac, "dev", box.port, "master", "static")
    host.run("ip", "link", "set", box.port, "up")
    for version, address in addresses.items():
        netns.run("ip", "addr", "add", f"{address}/{24 if version == 4 else 64}", "dev", "eth0", *_NODAD[version])
    netns.run("ip", "link", "set", "eth0", "up")
    for version in addresses:
        netns.run("ip", f"-{version}", "route", "add", "default", "via", str(gateway[version]))
    return box


def build(factory: NetnsFactory, open_backend: Callable[[], FilterBackend], bridge_nf: int) -> FilterLab:
    """Make the lab. `bridge_nf` is what the host's bridge-nf-call-iptables and -ip6tables are."""
    host = factory.make("host")
    backend = host.call(open_backend)
    for path, value in (
        ("net.ipv4.ip_forward", 1),
        ("net.ipv6.conf.all.forwarding", 1),
        ("net.bridge.bridge-nf-call-iptables", bridge_nf),
        ("net.bridge.bridge-nf-call-ip6tables", bridge_nf),
        # else the answer to a rejected packet may be left out
        ("net.ipv4.icmp_ratelimit", 0),
        ("net.ipv6.icmp.ratelimit", 0),
    ):
        host.sysctl(path, value)
    _bridge(host, "br0", "02:00:00:00:00:01", GATEWAY)
    _bridge(host, "br1", "02:00:00:00:00:02", GREEN_GATEWAY)
    outside = factory.make("outside")
    host.connect(
        outside,
        f"{UP[4]}/24",
        f"{OUTSIDE[4]}/24",
        name="up0",
        peer_name="eth0",
        extra={
            f"{UP[6]}/64": f"{OUTSIDE[6]}/64",
            f"{UP_SECOND[4]}/24": f"{DENIED[4]}/24",
            f"{UP_SECOND[6]}/64": f"{DENIED[6]}/64",
        },
    )
    for netns, link, second in ((host, "up0", UP_SECOND), (outside, "eth0", DENIED)):
        # IPv6 would else speak with whichever address is younger
        netns.run("ip", "addr", "change", f"{second[6]}/64", "dev", link, "preferred_lft", "0")
    dmz = factory.make("dmz")
    host.connect(
        dmz, "198.51.100.1/24", f"{DMZ[4]}/24", name="dmz0", peer_name="eth0", extra={"fd0d::1/64": f"{DMZ[6]}/64"}
    )
    for netns, via in ((outside, UP), (dmz, both("198.51.100.1", "fd0d::1"))):
        for version in (4, 6):
            netns.run("ip", f"-{version}", "route", "add", "default", "via", str(via[version]))
    locked = backend.name == "iptables"
    return FilterLab(
        host,
        Box(outside, OUTSIDE),
        Box(dmz, DMZ),
        _container(factory, host, "a", "blue", both("10.1.0.2", "fd01::2"), locked=locked),
        _container(factory, host, "b", "blue", both("10.1.0.3", "fd01::3"), locked=locked),
        _container(factory, host, "c", "green", both("10.2.0.2", "fd02::2"), locked=locked),
        backend,
    )
