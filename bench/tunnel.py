"""How much passes from a container to one on another host, compared with tunnels made by hand, in turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.client import Failed
from bench.cluster import NETWORK, VXLAN, make_network
from bench.lab import Daemon, Host, Lab, inside, run
from bench.scale import Scale
from bench.table import Report, Table, middle
from bench.traffic import PORT, STREAM_PORT, connections, listening, throughput

_CONETD, _ROUTED, _BRIDGED = "conetd", "routed by hand", "bridged by hand"
_WAYS = (_CONETD, _ROUTED, _BRIDGED)
_LIMIT = 0.9
_MTU = 1450
_LEFT, _RIGHT = 0, 1
_INGRESS = {
    "policies": [
        {"direction": "ingress", "peer": {"network": NETWORK}, "protocol": 1, "ports": {"start": port, "end": port}}
        for port in (PORT, STREAM_PORT)
    ]
}
World = tuple[int, int, str]
"""The namespaces of a container on either host, and the address of the second."""


def measure(lab: Lab, report: Report, scale: Scale) -> None:
    """Measure streams and new connections between two hosts on one wire; each way to connect them has its own two."""
    table = report.table("Packets between hosts", "what", *_WAYS, "conetd / routed", "conetd / bridged")
    table.note(
        f"Medians; the ratios are medians of the ratios of neighbours in time. The MTU is {_MTU} everywhere. By hand "
        "there is no packet filter at all, and no connection tracking: hosts of conetd's track and judge every new "
        "connection. `routed` has conetd's shape: a VTEP, a pair for each container, routes, permanent neighbours; "
        "`bridged` has VTEP and pairs on a bridge that floods and learns. The first second of a stream does not count: "
        "by then conetd has it on the fast path."
    )
    worlds = {_CONETD: _conetd(lab), _ROUTED: _routed(lab), _BRIDGED: _bridged(lab)}
    with listening(*(right for _, right, _ in worlds.values())) as streams:
        if streams:
            ratio = _compare(table, worlds, scale, "throughput, Gbit/s, one TCP stream", throughput)
            report.at_least("throughput between hosts / a tunnel routed by hand", ratio, _LIMIT)
        else:
            table.note("iperf3 is not installed: no throughput.")
        _compare(table, worlds, scale, "new connections a second", connections)


def _compare(
    table: Table, worlds: dict[str, World], scale: Scale, what: str, one: Callable[[int, str], float]
) -> float:
    """Write a row; returns the median ratio to the tunnel routed by hand."""
    found: dict[str, list[float]] = {way: [] for way in _WAYS}
    for number in range(scale.streams + 1):
        for way in _WAYS if number % 2 else reversed(_WAYS):
            left, _, address = worlds[way]
            value = one(left, address)
            if number:  # the first warms up
                found[way].append(value)
    routed, bridged = (
        middle([ours / theirs for ours, theirs in zip(found[_CONETD], found[way], strict=True)])
        for way in (_ROUTED, _BRIDGED)
    )
    table.row(what, *(middle(found[way]) for way in _WAYS), routed, bridged)
    return routed


def _wire(lab: Lab) -> tuple[int, int]:
    """Two hosts, 192.0.2.1 and .2, joined by a pair."""
    left, right = lab.namespaces(2)
    commands = f"link set lo up\nlink add up0 type veth peer name up0 netns {right}\n"
    run(left, "ip", "-batch", "-", stdin=f"{commands}address add 192.0.2.1/24 dev up0\nlink set up0 up\n")
    run(right, "ip", "-batch", "-", stdin="link set lo up\naddress add 192.0.2.2/24 dev up0\nlink set up0 up\n")
    return left, right


def _conetd(lab: Lab) -> World:
    left, right = _wire(lab)
    containers = lab.namespaces(2)
    subnets = ["10.128.0.0/24", "10.128.1.0/24"]
    peers = [
        {"host": f"host-{place}", "underlay": f"192.0.2.{place + 1}", "subnet": subnets[place]}
        for place in (_LEFT, _RIGHT)
    ]
    address = ""
    for host, container in zip((Host(left, right), Host(right, left)), containers, strict=True):
        daemon = lab.daemon(host, VXLAN)
        make_network(daemon, default_policy=_INGRESS, peers=peers)
        address = _up(daemon, container)
    return containers[_LEFT], containers[_RIGHT], address


def _up(daemon: Daemon, pid: int) -> str:
    """Bring the only container of a daemon up; its IPv4 address."""
    document = {"Pid": pid, "Properties": {"network.attach_to": NETWORK}}
    [one] = daemon.call("POST", "/containers/only/up", document, private=True)["attachments"]
    if one["mtu"] != _MTU:
        raise Failed(f"MTU {_MTU} was wanted, {one['mtu']} it is")
    return str(one["addresses"][0]).partition("/")[0]


def _routed(lab: Lab) -> World:
    hosts, containers = _wire(lab), lab.namespaces(2)
    for place, (host, container) in enumerate(zip(hosts, containers, strict=True)):
        other = 1 - place
        mac, other_mac = (f"ee:ee:0a:80:0{one}:00" for one in (place, other))
        run(
            *(host, "ip", "-batch", "-"),
            stdin=_vtep(place, f"address {mac}") + f"address add 10.128.{place}.0/32 dev vx0\n"
            f"route add 10.128.{other}.0/24 via 10.128.{other}.0 dev vx0 onlink src 10.128.{place}.0\n"
            f"neighbour add 10.128.{other}.0 lladdr {other_mac} dev vx0 nud permanent\n"
            f"{_pair(container)}link set c0 address ee:ee:ee:ee:ee:ee up\n"
            f"route add 10.128.{place}.1/32 dev c0\n"
            f"neighbour add 10.128.{place}.1 lladdr 0a:00:00:00:00:01 dev c0 nud permanent\n",
        )
        run(host, "bridge", "fdb", "add", other_mac, "dev", "vx0", "dst", f"192.0.2.{other + 1}", "self", "permanent")
        run(
            *(container, "ip", "-batch", "-"),
            stdin="link set lo up\nlink set eth0 address 0a:00:00:00:00:01 up\n"
            f"address add 10.128.{place}.1/32 dev eth0\n"
            "neighbour add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent\n"
            "route add default via 169.254.1.1 dev eth0 onlink\n",
        )
        with inside(host):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    return containers[_LEFT], containers[_RIGHT], "10.128.1.1"


def _bridged(lab: Lab) -> World:
    hosts, containers = _wire(lab), lab.namespaces(2)
    for place, (host, container) in enumerate(zip(hosts, containers, strict=True)):
        commands = "link add br0 type bridge\nlink set br0 up\n"
        commands += f"{_vtep(place)}link set vx0 master br0\n{_pair(container)}link set c0 master br0 up\n"
        run(host, "ip", "-batch", "-", stdin=commands)
        everybody = ("00:00:00:00:00:00", "dev", "vx0", "dst", f"192.0.2.{2 - place}")
        run(host, "bridge", "fdb", "append", *everybody)
        commands = f"link set lo up\nlink set eth0 up\naddress add 10.129.0.{place + 1}/24 dev eth0\n"
        run(container, "ip", "-batch", "-", stdin=commands)
    return containers[_LEFT], containers[_RIGHT], "10.129.0.2"


def _vtep(place: int, more: str = "") -> str:
    return (
        f"link add vx0 mtu {_MTU} {more} type vxlan id 7 dstport 4789 local 192.0.2.{place + 1} nolearning\n"
        "link set vx0 up\n"
    )


def _pair(container: int) -> str:
    return f"link add c0 mtu {_MTU} type veth peer name eth0 mtu {_MTU} netns {container}\n"
