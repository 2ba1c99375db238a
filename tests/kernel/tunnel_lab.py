"""Two hosts of an overlay and a stranger on one wire: where the filter of tunnels is judged.

    a 10.1.3.2, b 10.1.3.3 -- [one 192.0.2.1] up0 --+
    c 10.1.4.2, d 10.1.4.3 -- [two 192.0.2.2] up0 --+-- stranger 192.0.2.66 (eth0), absent 192.0.2.9: nobody there

and the same in IPv6. VNI 42 is the network's. Both hosts have a filter of ours; links, addresses and routes are made
with `ip`, so that nothing of ours is tested by itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network

from pytest_netns import Netns, NetnsFactory

from conetd.kernel.nft import NftablesBackend
from conetd.model import IPAddress, MarkRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, Tunnel, TunnelPeer
from tests.kernel.filter_lab import both
from tests.kernel.traffic import PATIENCE_S, SILENCE_S, Flow, Server, connect, ethernet, udp_packet

VNI, FOREIGN_VNI, PORT = 42, 43, 4789
SUBNETS = (ip_network("10.1.0.0/16"), ip_network("fd01::/112"))
TUNNEL = Tunnel("cx0", PORT, VNI, ((4, 24), (6, 120)))
NETWORK = NetworkFilter("net", SUBNETS, masquerade=SUBNETS, name="overlay", tunnel=TUNNEL)
UNDERLAY = {name: both(f"192.0.2.{n}", f"fd00::{n:x}") for name, n in (("one", 1), ("two", 2), ("absent", 9))}
STRANGER = both("192.0.2.66", "fd00::66")
PARTS = {"one": 3, "two": 4, "absent": 5}
MARKS = {"a": 0x000A, "b": 0x000B, "c": 0x800C, "d": 0x800D}
ANYBODY = Rule(Verdict.ACCEPT, origin="default_ingress")


def address(part: int, number: int = 0) -> dict[int, IPAddress]:
    """An address in a host's part of the network; number 0 is its VTEP's."""
    offset = part * 256 + number
    return {4: IPv4Address("10.1.0.0") + offset, 6: IPv6Address("fd01::") + offset}


def vtep_mac(host: str) -> str:
    """The MAC that a host's VTEP has."""
    return "ee:ee:" + address(PARTS[host])[4].packed.hex(":")


def peer(host: str, family: int = 4) -> TunnelPeer:
    """A host as the filters of the others know it; `family` is the underlay's."""
    parts = (ip_network(f"{address(PARTS[host])[4]}/24"), ip_network(f"{address(PARTS[host])[6]}/120"))
    return TunnelPeer(f"net-{host}", "cx0", PORT, VNI, UNDERLAY[host][family], vtep_mac(host), parts)


def of(*names: str) -> Rule:
    """What accepts packets that carry the identity of one of these containers."""
    return Rule(Verdict.ACCEPT, marks=tuple(MarkRange(MARKS[one], MARKS[one]) for one in names), origin="policies[0]")


@dataclass
class Container:
    """A container of the overlay."""

    name: str
    netns: Netns
    addresses: dict[int, IPAddress]
    mac: str

    @property
    def endpoint(self) -> Endpoint:
        """The container as the filter knows it."""
        addresses = tuple(self.addresses.values())
        link = f"cv{self.name}"
        return Endpoint(self.name, "net", f"handle-{self.name}", link, addresses, self.mac, mark=MARKS[self.name])


@dataclass
class TunnelHost:
    """A host, its filter, and its containers."""

    name: str
    netns: Netns
    backend: NftablesBackend
    containers: list[Container]
    others: tuple[str, ...]
    family: int  # of the underlay

    @property
    def objects(self) -> list[FilterObject]:
        """What is in force at rest: everybody may come in."""
        found: list[FilterObject] = [NETWORK, *(peer(one, self.family) for one in self.others)]
        for one in self.containers:
            found += [one.endpoint, EndpointPolicy(one.name, ingress=(ANYBODY,))]
        return found

    @property
    def mac(self) -> str:
        """The MAC of the uplink."""
        return str(self.netns.json("ip", "-j", "link", "show", "up0")[0]["address"])


@dataclass
class TunnelLab:
    """Both hosts and the stranger. `family` is the IP version of the underlay."""

    family: int
    one: TunnelHost
    two: TunnelHost
    stranger: Netns
    servers: dict[tuple[int, Flow, int], Server] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.a, self.b = self.one.containers
        self.c, self.d = self.two.containers

    def reset(self) -> None:
        """Everybody may reach everybody; no flow is remembered."""
        for host in (self.one, self.two):
            host.backend.sync(host.objects)
            host.netns.run("conntrack", "-F")

    def policy(
        self,
        one: Container,
        *rules: Rule,
        ingress: Sequence[Rule] | None = (ANYBODY,),
        inside: Sequence[Rule] | None = None,
        log_denied: bool = False,
    ) -> EndpointPolicy:
        """Give a container this policy."""
        host = self.one if one in self.one.containers else self.two
        said = tuple(ingress) if ingress is not None else None
        within = tuple(inside) if inside is not None else None
        wanted = EndpointPolicy(one.name, rules, ingress=said, inside=within, log_denied=log_denied)
        host.backend.apply(put=[wanted])
        return wanted

    def serve(self, netns: Netns, flow: Flow, port: int = 8080) -> None:
        """Have something answer there, on every address."""
        key = (netns.inode, flow, port)
        if key not in self.servers:
            self.servers[key] = Server(netns, flow, port)

    def reach(self, netns: Netns, flow: Flow, to: IPAddress, port: int = 8080) -> str:
        """What a client finds that expects an answer."""
        sock, said = connect(netns, flow, to, port, PATIENCE_S)
        sock.close()
        return said

    def miss(self, netns: Netns, flow: Flow, to: IPAddress, port: int = 8080) -> str:
        """What a client finds that expects silence."""
        sock, said = connect(netns, flow, to, port, SILENCE_S)
        sock.close()
        return said

    def encapsulate(
        self,
        source: IPAddress,
        to: IPAddress,
        word: bytes,
        *,
        sender: Netns | None = None,
        mac: str = vtep_mac("two"),
        vni: int = VNI,
        identity: int | None = None,
    ) -> None:
        """Send `one` a datagram with a word, encapsulated; by host two unless by another `sender`."""
        kind = 0x0800 if source.version == 4 else 0x86DD
        frame = ethernet(vtep_mac("one"), mac, kind, udp_packet(source, to, word))
        send_datagram((sender or self.two.netns), UNDERLAY["one"][self.family], vxlan(frame, vni, identity))

    def close(self) -> None:
        """Stop the servers; the namespaces go with their fixture."""
        for server in self.servers.values():
            server.close()
        for host in (self.one, self.two):
            host.backend.remove_all()
            host.backend.close()


def vxlan(frame: bytes, vni: int = VNI, identity: int | None = None) -> bytes:
    """A frame with its VXLAN header (RFC 7348), with an identity if it has one (draft-smith-vxlan-group-policy)."""
    flags = 0x08 if identity is None else 0x88
    return struct.pack(">BBHI", flags, 0, identity or 0, vni << 8) + frame


def send_datagram(netns: Netns, to: IPAddress, payload: bytes, port: int = PORT) -> None:
    """Send a UDP datagram, in fragments if it is long."""
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    with netns.call(socket.socket, family, socket.SOCK_DGRAM) as sock:
        sock.sendto(payload, (str(to), port))


_NODAD = {4: (), 6: ("nodad",)}
_GATEWAY = both("169.254.1.1", "fe80::1")


def _container(factory: NetnsFactory, host: Netns, name: str, part: int, number: int) -> Container:
    made = Container(name, factory.make(name), address(part, number), f"02:00:00:00:{part:02x}:{number:02x}")
    link, gateway_mac = f"cv{name}", "ee:ee:ee:ee:ee:ee"
    peer_words = ("peer", "name", "eth0", "netns", str(made.netns.pid), "address", made.mac)
    host.run("ip", "link", "add", link, "address", gateway_mac, "mtu", "1400", "type", "veth", *peer_words)
    made.netns.run("ip", "link", "set", "eth0", "mtu", "1400", "up")
    host.run("ip", "link", "set", link, "up")
    for version, own in made.addresses.items():
        flag = f"-{version}"
        made.netns.run("ip", "addr", "add", f"{own}/{own.max_prefixlen}", "dev", "eth0", *_NODAD[version])
        via, lladdr = str(_GATEWAY[version]), ("lladdr", gateway_mac, "dev", "eth0", "nud", "permanent")
        made.netns.run("ip", flag, "neigh", "replace", via, *lladdr)
        made.netns.run("ip", flag, "route", "add", "default", "via", via, "dev", "eth0", "onlink", "src", str(own))
        host.run("ip", flag, "route", "add", str(own), "dev", link)
        host.run("ip", flag, "neigh", "replace", str(own), "lladdr", made.mac, "dev", link, "nud", "permanent")
    return made


def _vtep(host: Netns, name: str, others: Sequence[str], family: int) -> None:
    local = str(UNDERLAY[name][family])
    kind = ("type", "vxlan", "id", str(VNI), "dstport", str(PORT), "local", local, "nolearning", "gbp")
    host.run("ip", "link", "add", "cx0", "address", vtep_mac(name), "mtu", "1400", *kind)
    own = address(PARTS[name])
    for version, one in own.items():
        host.run("ip", "addr", "add", f"{one}/{one.max_prefixlen}", "dev", "cx0", *_NODAD[version])
    host.run("ip", "link", "set", "cx0", "up")
    for other in others:
        mac = vtep_mac(other)
        host.run("bridge", "fdb", "append", mac, "dev", "cx0", "dst", str(UNDERLAY[other][family]))
        for version, there in address(PARTS[other]).items():
            flag = f"-{version}"
            host.run("ip", flag, "neigh", "replace", str(there), "lladdr", mac, "dev", "cx0", "nud", "permanent")
            part = f"{there}/{24 if version == 4 else 120}"
            via = ("via", str(there), "dev", "cx0", "onlink", "src", str(own[version]))
            host.run("ip", flag, "route", "add", part, *via)


def build(factory: NetnsFactory, family: int) -> TunnelLab:
    """Make the lab, on an underlay of that IP version."""
    wire = factory.make("wire")
    wire.run("ip", "link", "add", "wire0", "type", "bridge", "mcast_snooping", "0")
    wire.run("ip", "link", "set", "wire0", "up")
    hosts: list[TunnelHost] = []
    for name, containers in (("one", ("a", "b")), ("two", ("c", "d"))):
        host = factory.make(name)
        for path in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            host.sysctl(path, 1)
        _plug(wire, host, name, "up0", UNDERLAY[name])
        others = tuple(one for one in PARTS if one != name)
        _vtep(host, name, others, family)
        made = [_container(factory, host, one, PARTS[name], 2 + n) for n, one in enumerate(containers)]
        hosts.append(TunnelHost(name, host, host.call(NftablesBackend), made, others, family))
    stranger = factory.make("stranger")
    _plug(wire, stranger, "stranger", "eth0", STRANGER)
    for version, via in UNDERLAY["one"].items():
        stranger.run("ip", f"-{version}", "route", "add", "default", "via", str(via))
    for one in hosts:
        for version, via in STRANGER.items():
            one.netns.run("ip", f"-{version}", "route", "add", "default", "via", str(via))
    return TunnelLab(family, hosts[0], hosts[1], stranger)


def _plug(wire: Netns, host: Netns, name: str, link: str, addresses: dict[int, IPAddress]) -> None:
    wire.connect(host, name=name, peer_name=link)
    wire.run("ip", "link", "set", name, "master", "wire0")
    for version, one in addresses.items():
        host.run("ip", "addr", "add", f"{one}/{24 if version == 4 else 64}", "dev", link, *_NODAD[version])
