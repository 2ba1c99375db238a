"""The network the hosts are on: two halves with a router between them, and the world behind it.

    h1, h2 …  192.0.2.0/24     2001:db8:1::/64 -- [half0        ]
                                                  [   router    ] -- outside 203.0.113.2, 2001:db8:3::2
    … h3      198.51.100.0/24  2001:db8:2::/64 -- [half1        ]

All that goes wrong with packets is done at the router's ends of the wires, so that a host's own rules are its daemon's.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from pytest_netns import Netns, NetnsFactory

from lab.errors import LabError

MTU = 1500
WORLD = {4: "203.0.113.2", 6: "2001:db8:3::2"}
MAX_HOSTS = 200
_HALVES: tuple[dict[int, IPv4Network | IPv6Network], ...] = (
    {4: IPv4Network("192.0.2.0/24"), 6: IPv6Network("2001:db8:1::/64")},
    {4: IPv4Network("198.51.100.0/24"), 6: IPv6Network("2001:db8:2::/64")},
)
_WORLD_ROUTER = {4: "203.0.113.254", 6: "2001:db8:3::fe"}
_ETCD, _ROUTER = 200, 254  # the last number in the address: hosts are below 201, members of etcd from there on


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine is: its name, which is that of the router's end of its wire, its half, and its number there."""

    name: str
    half: int
    number: int

    @property
    def addresses(self) -> dict[int, str]:
        """By IP version."""
        return {version: str(network[self.number]) for version, network in _HALVES[self.half].items()}

    @property
    def mac(self) -> str:
        """A machine has the same after a reboot."""
        return f"02:00:5e:00:{self.half:02x}:{self.number:02x}"


def host_places(count: int) -> list[Place]:
    """Hosts h1 to hn: the first half of them, and one more if they are odd, on the one side."""
    return [Place(f"h{number}", int(number > (count + 1) // 2), number) for number in range(1, count + 1)]


def etcd_places(count: int) -> list[Place]:
    """Members e1 to en, by turns on either side."""
    return [Place(f"e{number}", (number - 1) % 2, _ETCD + number) for number in range(1, count + 1)]


@dataclass(slots=True)
class Trouble:
    """What happens to packets on a wire: all lost, or some of them, or each late by so many milliseconds each way."""

    cut: bool = False
    loss_percent: float = 0.0
    delay_ms: float = 0.0

    def __str__(self) -> str:
        said = ["cut off"] if self.cut else []
        said += [f"loses {self.loss_percent:g} %"] if self.loss_percent else []
        said += [f"{self.delay_ms:g} ms late"] if self.delay_ms else []
        return ", ".join(said)


class Underlay:
    """The router and the world, to which machines are plugged."""

    def __init__(self, factory: NetnsFactory) -> None:
        self.router = factory.make("router")
        self.outside = factory.make("outside")
        for path in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.router.sysctl(path, 1)
        self.router.run("ip", "-batch", "-", input="".join(_half(number) for number in (0, 1)))
        wire = {"name": "outside", "peer_name": "eth0"}
        self.router.connect(
            self.outside,
            f"{_WORLD_ROUTER[4]}/24",
            f"{WORLD[4]}/24",
            extra={f"{_WORLD_ROUTER[6]}/64": f"{WORLD[6]}/64"},
            **wire,
        )
        for version, router in _WORLD_ROUTER.items():
            self.outside.run("ip", f"-{version}", "route", "add", "default", "via", router)

    def plug(self, netns: Netns, place: Place) -> None:
        """Give the machine its wire, called eth0 there, its addresses, and default routes by the router."""
        network = _HALVES[place.half]
        addresses = {version: f"{address}/{network[version].prefixlen}" for version, address in place.addresses.items()}
        self.router.connect(netns, name=place.name, peer_name="eth0", extra={"": addresses[4]})
        self.router.run("ip", "link", "set", place.name, "mtu", str(MTU), "master", f"half{place.half}")
        commands = [f"link set eth0 address {place.mac} mtu {MTU}", f"address add {addresses[6]} dev eth0 nodad"]
        commands += [f"-{version} route add default via {network[version][_ROUTER]}" for version in network]
        for command in commands:
            netns.run("ip", *command.split())

    def unplug(self, place: Place) -> None:
        """Pull its wire: both ends are gone when this returns."""
        self.router.run("ip", "link", "delete", place.name)

    def trouble(self, netns: Netns, place: Place, trouble: Trouble) -> None:
        """Let this happen on the wire of the machine from now on, and nothing else. Raises LabError."""
        drop = "drop" if trouble.cut else f"numgen random mod 10000 < {round(trouble.loss_percent * 100)} drop"
        rules = [f"add table netdev {place.name}", f"delete table netdev {place.name}"]  # so it need not be there
        if trouble.cut or trouble.loss_percent:
            rules += [f"add table netdev {place.name}"]
            for hook in ("ingress", "egress"):
                chain = f"netdev {place.name} {hook}"
                rules += [
                    f'add chain {chain} {{ type filter hook {hook} device "{place.name}" priority 0; }}',
                    f"add rule {chain} {drop}",
                ]
        self.router.run("nft", "-f", "-", input="\n".join(rules) + "\n")
        for where, link in ((self.router, place.name), (netns, "eth0")):
            _delay(where, link, trouble.delay_ms)


def _half(number: int) -> str:
    router = {version: f"{network[_ROUTER]}/{network.prefixlen}" for version, network in _HALVES[number].items()}
    return (
        f"link add half{number} type bridge mcast_snooping 0\n"
        f"address add {router[4]} dev half{number}\naddress add {router[6]} dev half{number} nodad\n"
        f"link set half{number} up\n"
    )


def _delay(where: Netns, link: str, milliseconds: float) -> None:
    if not milliseconds:
        if "netem" in where.run("tc", "qdisc", "show", "dev", link).stdout:
            where.run("tc", "qdisc", "delete", "dev", link, "root")
        return
    try:
        where.run("tc", "qdisc", "replace", "dev", link, "root", "netem", "delay", f"{milliseconds}ms")
    except subprocess.CalledProcessError as err:
        raise LabError(f"packets cannot be late: this kernel has no sch_netem ({err.stderr.strip()})") from err
