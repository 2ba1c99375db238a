"""A host with two bridges, containers behind them and a neighbour outside: where the filter backends are judged.

    outside 192.0.2.2, .66 -- up0 [host] br0 -- a 10.1.0.2, b 10.1.0.3     network blue
    dmz 198.51.100.2 ------- dmz0 [    ] br1 -- c 10.2.0.2                 network green

and the same in IPv6. Links, addresses and routes are made with `ip`, so that nothing of ours is tested by itself.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from pytest_netns import Netns, NetnsFactory

from conetd.kernel.filter import FilterBackend
from conetd.model import AddressRange, IPAddress, PortRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, PortMapping

TCP, UDP = 6, 17
PATIENCE_S = 5.0  # what should come is waited for this long
SILENCE_S = 0.35  # what should not come is waited for this long; on veth pairs an answer takes microseconds
REFUSED, SILENT = "refused", "silent"
_REFUSALS = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES, errno.ENETUNREACH)


def both(first: str, second: str) -> dict[int, IPAddress]:
    """An IPv4 and an IPv6 address, by version."""
    return {4: ip_address(first), 6: ip_address(second)}


UP, UP_SECOND = both("192.0.2.1", "fd00::1"), both("192.0.2.3", "fd00::3")
OUTSIDE, DENIED = both("192.0.2.2", "fd00::2"), both("192.0.2.66", "fd00::66")
DMZ = both("198.51.100.2", "fd0d::2")
GATEWAY, GREEN_GATEWAY = both("10.1.0.1", "fd01::1"), both("10.2.0.1", "fd02::1")
SUBNETS = {"blue": ("10.1.0.0/24", "fd01::/64"), "green": ("10.2.0.0/24", "fd02::/64")}


@dataclass(frozen=True)
class Flow:
    """A protocol over an IP version."""

    protocol: int
    family: int

    def __str__(self) -> str:
        return f"{'tcp' if self.protocol == TCP else 'udp'}{self.family}"


FLOWS = [Flow(protocol, family) for family in (4, 6) for protocol in (TCP, UDP)]


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


# linux/in.h: IP_PKTINFO, linux/in6.h: IPV6_RECVPKTINFO
_PKTINFO_ON = {4: (socket.IPPROTO_IP, 8), 6: (socket.IPPROTO_IPV6, 49)}


def _from_the_same(control: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Ancillary data that sends a datagram from the address another one came to."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP:
            return [(level, kind, bytes(4) + data[8:12] + bytes(4))]
        return [(level, kind, data)]
    return []


class Server:
    """Answers each connection or datagram with the address it came from."""

    def __init__(self, netns: Netns, flow: Flow, port: int) -> None:
        self._flow = flow
        kind = socket.SOCK_STREAM if flow.protocol == TCP else socket.SOCK_DGRAM
        version = socket.AF_INET if flow.family == 4 else socket.AF_INET6
        self._socket = netns.call(socket.socket, version, kind)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if flow.family == 6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if flow.protocol == UDP:
            self._socket.setsockopt(*_PKTINFO_ON[flow.family], 1)
        self._socket.bind(("", port))
        self._stop = threading.Event()
        self._socket.settimeout(0.05)
        if flow.protocol == TCP:
            self._socket.listen(64)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        held: list[socket.socket] = []
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                if self._flow.protocol == UDP:
                    data, control, _, peer = self._socket.recvmsg(2048, 256)
                    # an answer to a source that cannot be reached is not this server's worry
                    with contextlib.suppress(OSError):
                        self._socket.sendmsg([peer[0].encode() + b" " + data], _from_the_same(control), 0, peer)
                else:
                    connection, peer = self._socket.accept()
                    connection.settimeout(PATIENCE_S)
                    held.append(connection)
                    threading.Thread(target=self._talk, args=(connection, peer[0]), daemon=True).start()
        for connection in held:
            connection.close()

    def _talk(self, connection: socket.socket, peer: str) -> None:
        with contextlib.suppress(OSError):
            while data := connection.recv(2048):
                connection.sendall(peer.encode() + b" " + data)

    def close(self) -> None:
        """Stop answering."""
        self._stop.set()
        self._thread.join()
        self._socket.close()


def ask(sock: socket.socket, patience: float) -> str:
    """Send a word over a connected socket: the address the other end sees, REFUSED or SILENT."""
    sock.settimeout(patience)
    try:
        sock.send(b"hello")
        return sock.recv(2048).split(b" ")[0].decode().removeprefix("::ffff:")
    except TimeoutError:
        return SILENT
    except OSError as err:
        if err.errno in _REFUSALS:
            return REFUSED
        raise


def connect(
    netns: Netns, flow: Flow, to: IPAddress, port: int, patience: float, source: tuple[str, int] | None = None
) -> tuple[socket.socket, str]:
    """A connected socket, and what `ask` said over it."""
    kind = socket.SOCK_STREAM if flow.protocol == TCP else socket.SOCK_DGRAM
    version = socket.AF_INET if flow.family == 4 else socket.AF_INET6
    sock = netns.call(socket.socket, version, kind)
    sock.settimeout(patience)
    try:
        if source is not None:
            sock.bind(source)
        sock.connect((str(to), port))
    except TimeoutError:
        return sock, SILENT
    except OSError as err:
        if err.errno in _REFUSALS:
            return sock, REFUSED
        sock.close()
        raise
    return sock, ask(sock, patience)


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
        self.put(EndpointPolicy(box.name, rules, tuple(ports), ingress, log_denied))

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


def mapping(box: Box, flow: Flow, host_port: int = 7000, to_port: int = 8080, **more: object) -> PortMapping:
    """A published port."""
    return PortMapping(flow.protocol, host_port, box.addresses[flow.family], to_port, **more)  # type: ignore[arg-type]


class Frames:
    """What arrives on a container's interface, seen below every protocol."""

    def __init__(self, netns: Netns, interface: str = "eth0") -> None:
        self._socket = netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind((interface, 3))
        self._socket.settimeout(SILENCE_S)

    def arrives(self, wanted: bytes) -> bool:
        """Whether a frame with these bytes in it comes within the silence."""
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if wanted in self._socket.recv(4096):
                    return True
        return False

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def send_frame(netns: Netns, frame: bytes) -> None:
    """Send a frame from a container as it is."""
    with netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        sock.send(frame.ljust(60, b"\0"))


def ethernet(to: str, source: str, kind: int, payload: bytes) -> bytes:
    """A frame."""
    return mac(to) + mac(source) + struct.pack(">H", kind) + payload


def mac(words: str) -> bytes:
    """Six bytes."""
    return bytes.fromhex(words.replace(":", ""))


def checksum(data: bytes) -> int:
    """The internet checksum."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip_packet(source: IPAddress, to: IPAddress, protocol: int, payload: bytes) -> bytes:
    """A packet with its header."""
    if isinstance(source, IPv6Address):
        return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 255) + source.packed + to.packed + payload
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    assert isinstance(source, IPv4Address)
    header += source.packed + to.packed
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + payload


def udp_packet(source: IPAddress, to: IPAddress, payload: bytes) -> bytes:
    """A datagram from and to port 9 with its headers."""
    length = 8 + len(payload)
    pseudo = (
        source.packed
        + to.packed
        + struct.pack(
            ">II" if source.version == 6 else ">HH", *((length, UDP) if source.version == 6 else (UDP, length))
        )
    )
    unsummed = struct.pack(">HHHH", 9, 9, length, 0) + payload
    datagram = struct.pack(">HHHH", 9, 9, length, checksum(pseudo + unsummed)) + payload
    return ip_packet(source, to, UDP, datagram)


def icmpv6_packet(source: IPAddress, to: IPAddress, body: bytes) -> bytes:
    """An ICMPv6 message (type, code and body, without its checksum) with its headers."""
    pseudo = source.packed + to.packed + struct.pack(">II", len(body) + 2, 58)
    summed = checksum(pseudo + body[:2] + b"\0\0" + body[2:])
    return ip_packet(source, to, 58, body[:2] + struct.pack(">H", summed) + body[2:])


class Log:
    """What is sent to an NFLOG group of a namespace."""

    def __init__(self, netns: Netns, group: int) -> None:
        self._socket = netns.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 12)
        bind = struct.pack("=HH", 5, 1) + b"\1\0\0\0"  # NFULA_CFG_CMD: NFULNL_CFG_CMD_BIND
        body = struct.pack(">BBH", 0, 0, group) + bind
        self._socket.send(struct.pack("=IHHII", 16 + len(body), 4 << 8 | 1, 5, 1, 0) + body)
        answer = self._socket.recv(4096)
        assert struct.unpack_from("=i", answer, 16) == (0,), "the kernel has no nfnetlink_log"

    def prefixes(self, count: int) -> list[str]:
        """The prefixes of that many records, and of more if there are more."""
        found: list[str] = []
        self._socket.settimeout(PATIENCE_S)
        while True:
            try:
                received = self._socket.recv(65536)
            except TimeoutError:
                return found
            found += _prefixes(received)
            if len(found) >= count:
                self._socket.settimeout(SILENCE_S)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def _prefixes(received: bytes) -> Iterator[str]:
    offset = 0
    while offset + 16 <= len(received):
        size, kind = struct.unpack_from("=IH", received, offset)
        at, end = offset + 20, offset + size
        while kind == 4 << 8 and at + 4 <= end:
            length, attribute = struct.unpack_from("=HH", received, at)
            if attribute & 0x3FFF == 10:
                yield received[at + 4 : at + length].rstrip(b"\0").decode()
            at += length + 3 & ~3
        offset += size + 3 & ~3


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
