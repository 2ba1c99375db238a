"""Every refusal: its status, its code, the paths of the fields to blame, what it says, and that nothing changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pytest_netns import Netns, NetnsFactory
from world import Answer, World, open_world


@dataclass(frozen=True)
class Refused:
    """A request, and how it is refused."""

    method: str
    path: str
    document: Any
    status: int
    code: str
    fields: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    """Words of the message."""
    private: bool = False

    def __str__(self) -> str:
        shown = repr(self.document) if isinstance(self.document, bytes) else json.dumps(self.document)
        return f"{self.method} {self.path[:40]} {shown[:100]}"


def network(fields: str = "", *says: str, status: int = 422, **config: Any) -> Refused:
    document = {"name": "green", "type": "bridge", "config": {"subnet": "10.20.0.0/24"} | config}
    paths = tuple(f"config.{one}" for one in fields.split())
    return Refused("POST", "/networks", document, status, _CODES[status], paths, says)


def around(fields: str, *says: str, status: int = 422, without: str = "", **more: Any) -> Refused:
    document = {"name": "green", "type": "bridge", "config": {"subnet": "10.20.0.0/24"}} | more
    document.pop(without, None)
    return Refused("POST", "/networks", document, status, _CODES[status], tuple(fields.split()), says)


def config(fields: str, *says: str, **document: Any) -> Refused:
    return Refused("PUT", "/containers/new/config", document, 422, "invalid", tuple(fields.split()), says)


def join(fields: str, *says: str, **entry: Any) -> Refused:
    paths = " ".join(f"attach_to[0].{one}" for one in fields.split())
    return config(paths, *says, attach_to=[{"network": "blue"} | entry])


def policy(fields: str, *says: str, status: int = 422, **document: Any) -> Refused:
    paths = tuple(f"networks.blue.{one}" for one in fields.split())
    return Refused(
        "PUT", "/containers/web/policy", {"networks": {"blue": document}}, status, _CODES[status], paths, says
    )


def net_in(fields: str, *says: str, status: int = 422, **entry: Any) -> Refused:
    paths = " ".join(f"net_in[0].{one}" for one in fields.split()) or "net_in[0]"
    return policy(paths, *says, status=status, net_in=[entry])


def net_out(fields: str, *says: str, **entry: Any) -> Refused:
    return policy(" ".join(f"net_out[0].{one}" for one in fields.split()) or "net_out[0]", *says, net_out=[entry])


def up(fields: str, *says: str, status: int = 422, handle: str = "free", **document: Any) -> Refused:
    path = f"/containers/{handle}/up"
    return Refused("POST", path, document, status, _CODES[status], tuple(fields.split()), says, private=True)


_CODES = {404: "not_found", 409: "conflict", 422: "invalid", 507: "exhausted"}
POOL = "port_pool = { start = 61001, size = 1 }"
BLUE = {"subnet": "10.10.0.0/24", "subnet6": "fd00:10::/64", "bridge": "br-blue"}
PORT_80 = [{"start": 80, "end": 80}]
LIVE = "$LIVE"  # stands for the number of a process whose namespace a container can have


BODIES = [
    Refused("POST", "/networks", body, status, code, fields, says)
    for body, status, code, fields, says in (
        (b"", 400, "malformed_json", (), ("empty", "JSON object")),
        (b"{", 400, "malformed_json", (), ("line 1 column 2",)),
        (b'{"name": NaN}', 400, "malformed_json", (), ("NaN",)),
        (b'{"name": "a", "name": "b"}', 400, "malformed_json", (), ('"name"', "twice")),
        (b'{"name": "\xff"}', 400, "malformed_json", (), ("UTF-8", "byte 10")),
        (b'{"name": "\\ud800"}', 400, "malformed_json", (), ("surrogate",)),
        (b"[" * 100_000, 400, "malformed_json", (), ("nested too deeply",)),
        (b"[]", 422, "invalid", ("",), ("JSON object", "[]")),
        (b'"blue"', 422, "invalid", ("",), ("JSON object", '"blue"')),
        (b"null", 422, "invalid", ("",), ("JSON object", "null")),
    )
]

PATHS = [
    Refused("GET", "/", None, 404, "unknown_path", says=("nothing at /",)),
    Refused("GET", "/network", None, 404, "unknown_path", says=("/network",)),
    Refused("GET", "/networks/", None, 404, "unknown_path", says=("/networks/",)),
    Refused("PUT", "/containers//config", {"attach_to": []}, 404, "unknown_path", says=("/containers//config",)),
    Refused("POST", "/containers/web/up", {}, 404, "unknown_path", says=("/containers/web/up",)),
    Refused("GET", "/networks", None, 404, "unknown_path", says=("/networks",), private=True),
    Refused("GET", "/networks/none", None, 404, "not_found", says=('no network "none"',)),
    Refused("GET", "/networks/a%2Fb", None, 404, "not_found", says=('"a/b"',)),
    Refused("PUT", "/networks/none/default_policy", {}, 404, "not_found", says=('no network "none"',)),
    Refused("DELETE", "/networks/none", None, 404, "not_found", says=('no network "none"',)),
    Refused("GET", "/containers/none", None, 404, "not_found", says=('no container "none"',)),
    Refused("GET", "/containers/none/policy", None, 404, "not_found", says=('no container "none"',)),
    Refused("DELETE", "/containers/none", None, 404, "not_found", says=('no container "none"',)),
]

HANDLES = [
    Refused("PUT", f"/containers/{handle}/config", {"attach_to": []}, 422, "invalid", ("handle",), (says, "1 to 255"))
    for handle, says in (
        ("%2e", "'.'"),
        ("%2e%2e", "'..'"),
        ("a%20b", "'a b'"),
        ("a%2Fb", "'a/b'"),
        ("%2e%2e%2f%2e%2e%2fetc", "'../../etc'"),
        ("caf%C3%A9", "'café'"),
        ("a%00b", "'a\\x00b'"),
        ("a%0Ab", "'a\\nb'"),
        ("%252e", "'%2e'"),
        ("a" * 256, "'aaaa"),
    )
] + [
    Refused("GET", "/containers/a%20b", None, 422, "invalid", ("handle",), ("'a b'",)),
    Refused("GET", "/containers/a%20b/policy", None, 422, "invalid", ("handle",), ("'a b'",)),
    Refused("PUT", "/containers/a%20b/policy", {"networks": {}}, 422, "invalid", ("handle",), ("'a b'",)),
    Refused("DELETE", "/containers/a%20b", None, 422, "invalid", ("handle",), ("'a b'",)),
    Refused("POST", "/containers/a%20b/up", {"pid": 1}, 422, "invalid", ("handle",), ("'a b'",), private=True),
    Refused("POST", "/containers/a%20b/down", None, 422, "invalid", ("handle",), ("'a b'",), private=True),
]

NETWORKS = [
    around("name", "Missing", without="name"),
    around("type", "Missing", without="type"),
    around("name", "not a valid string", "5", name=5),
    around("type", "not a valid string", "[]", type=[]),
    around("config", "Not an object", '"x"', config="x"),
    around("default_policy", "Not an object", "1", default_policy=1),
    around("colour", "Unknown field", "red", "Known are config, default_policy, name, type", colour="red"),
    around("name", "1 to 128", "../green", name="../green"),
    around("name", "1 to 128", '""', name=""),
    around("name", "1 to 128", name="a" * 129),
    around("name", "beginning with a letter or digit", '"-a"', name="-a"),
    around("type", '"vxlan" is not enabled', "enabled: bridge", type="vxlan"),
    around("config.subnet", "Missing", config={}),
    around(
        "",
        'another network "blue"',
        "mtu",
        "1400",
        status=409,
        name="blue",
        config=BLUE | {"mtu": 1400},
    ),
    around(
        "",
        'another network "blue"',
        "isolated",
        status=409,
        name="blue",
        config=BLUE | {"isolated": True},
    ),
    around(
        "",
        'another network "blue"',
        "log_denied",
        status=409,
        name="blue",
        config=BLUE,
        default_policy={"log_denied": True},
    ),
    around("default_policy.colour", "Unknown field", default_policy={"colour": "red"}),
    around("default_policy.net_out[0].ports", "only for tcp and udp", default_policy={"net_out": [{"ports": PORT_80}]}),
    around(
        "default_policy.net_in[0].host_ip",
        "no subnet6",
        "2001:db8::1",
        default_policy={"net_in": [{"host_port": 80, "host_ip": "2001:db8::1"}]},
    ),
]

CONFIGS = [
    network("colour", "Unknown field", "red", "subnet6", colour="red"),
    network("subnet", "not a network such as", "5", subnet=5),
    network("subnet", "not a network such as", "10.20.0.0", subnet="10.20.0.0"),
    network("subnet", "host bits", "10.20.0.0/24", subnet="10.20.0.1/24"),
    network("subnet", "IPv4", subnet="fd00::/64"),
    network("subnet", "127.0.0.0/8", subnet="127.0.0.0/8"),
    network("subnet", "too small", "10.20.0.0/31", subnet="10.20.0.0/31"),
    network("subnet", 'overlaps 10.10.0.0/24 of network "blue"', status=409, subnet="10.10.0.128/25"),
    network("subnet", 'overlaps 10.10.0.0/24 of network "blue"', status=409, subnet="10.0.0.0/8"),
    network("subnet6", 'overlaps fd00:10::/64 of network "blue"', status=409, subnet6="fd00:10::/48"),
    network("subnet6", "IPv6", subnet6="10.21.0.0/24"),
    network("subnet6", "link-local", subnet6="fe80::/64"),
    network("gateway", "not an address for a host in 10.20.0.0/24", "10.21.0.1", gateway="10.21.0.1"),
    network("gateway", "not an address for a host in 10.20.0.0/24", "10.20.0.255", gateway="10.20.0.255"),
    network("gateway", "not an IP address", "first", gateway="first"),
    network("gateway6", "needs a subnet6", gateway6="fd00::1"),
    network("gateway6", "not an address for a host in fd00:20::/64", subnet6="fd00:20::/64", gateway6="fd00:21::1"),
    network("masquerade6", "needs a subnet6", masquerade6=True),
    network("range", "10.0.0.128/25 or 10.0.0.10-10.0.0.99", "5", range=5),
    network("range", "runs backwards", range="10.20.0.9-10.20.0.3"),
    network("range", "within 10.20.0.0/24", "10.30.0.0/24", range="10.30.0.0/24"),
    network("range", "no address", range="10.20.0.1-10.20.0.1"),
    network("bridge", "interface name: 1 to 15", "much-too-long-a-name", bridge="much-too-long-a-name"),
    network("bridge", "interface name", "a/b", bridge="a/b"),
    network("bridge", "interface name", "lo", bridge="lo"),
    network("bridge", "interface name", '""', bridge=""),
    network("bridge", 'bridge br-blue is already used by network "blue"', status=409, bridge="br-blue"),
    network("mtu", "from 576 to 65535", "100", mtu=100),
    network("mtu", "from 576 to 65535", "70000", mtu=70000),
    network("mtu", "from 1280", "IPv6", "1000", subnet6="fd00:20::/64", mtu=1000),
    network("mtu", "integer", '"big"', mtu="big"),
    network("mtu", "integer", "1500.5", mtu=1500.5),
    network("masquerade", "true or false", '"yes"', masquerade="yes"),
    network("masquerade6", "true or false", "1", masquerade6=1),
    network("allow_host_access", "null", "(got null)", allow_host_access=None),
    network("isolated", "true or false", "0", isolated=0),
    network("deny_networks", "list", deny_networks="10.0.0.0/8"),
    network("deny_networks[0] deny_networks[1]", "10.0.0.0/8", deny_networks=["10.0.0.1/8", "x"]),
    network("dns_servers[0]", "not an IP address", '"dns"', dns_servers=["dns"]),
    network("search_domains[1]", "domain name", '"-b"', search_domains=["a", "-b"]),
    network("search_domains[0]", "domain name", search_domains=["a\n"]),
]

ATTACH_TO = [
    config("attach_to", "Missing"),
    config("attach_to", "list", '"blue"', attach_to="blue"),
    config("attach_to[0]", "network's name, or an object with `network`", "5", attach_to=[5]),
    config("attach_to[0]", "1 to 128", '"/"', attach_to=["/"]),
    config("attach_to[1]", 'no network "none"', attach_to=["blue", "none"]),
    config("attach_to[1]", "network blue is named twice", attach_to=["blue", {"network": "blue", "ip": "10.10.0.9"}]),
    config(
        "attach_to[1]",
        "ifname net0 is named twice",
        attach_to=[{"network": "blue", "ifname": "net0"}, {"network": "red", "ifname": "net0"}],
    ),
    config("attach_to[0].network", "Missing", attach_to=[{}]),
    config("colour", "Unknown field", "Known are attach_to, labels", "red", attach_to=[], colour="red"),
    config("labels.tier", "string", "1", attach_to=[], labels={"tier": 1}),
    config("labels", "Not an object", "[]", attach_to=[], labels=[]),
    config("labels", "1 to 255", attach_to=[], labels={"a" * 256: "x"}),
    config("labels", "1 to 255", attach_to=[], labels={"a": "x" * 256}),
    config("labels", "1 to 255", attach_to=[], labels={"": "x"}),
    join("colour", "Unknown field", "Known are ifname, ip, ip6, mac, network", "red", colour="red"),
    join("ip", "not an IPv4 address", '"x"', ip="x"),
    join("ip", "not an IPv4 address", "fd00::1", ip="fd00::1"),
    join("ip", "string", "5", ip=5),
    join("ip6", "not an IPv6 address", "10.10.0.9", ip6="10.10.0.9"),
    join("mac", "0a:00:00:00:00:01", '"x"', mac="x"),
    join("mac", "multicast", "01:00:00:00:00:01", mac="01:00:00:00:00:01"),
    join("mac", "zeroes", mac="00:00:00:00:00:00"),
    join("ifname", "1 to 15", "a/b", ifname="a/b"),
    join("ifname", "not lo", ifname="lo"),
    join("ip ifname", "not an IPv4 address", ip="x", ifname=""),
]

POLICIES = [
    Refused("PUT", "/containers/web/policy", {}, 422, "invalid", ("networks",), ("Missing",)),
    Refused("PUT", "/containers/web/policy", {"networks": []}, 422, "invalid", ("networks",), ("Not an object",)),
    Refused(
        "PUT", "/containers/web/policy", {"networks": {"blue": 5}}, 422, "invalid", ("networks.blue",), ("object",)
    ),
    Refused("PUT", "/containers/web/policy", {"networks": {}, "colour": 1}, 422, "invalid", ("colour",), ("networks",)),
    Refused(
        "PUT",
        "/containers/web/policy",
        {"networks": {"blue": {}, "none": {}}},
        422,
        "invalid",
        ("networks.none",),
        ('no network "none"',),
    ),
    Refused(
        "PUT",
        "/containers/web/policy",
        {"networks": {"blue": {"net_in": 5}, "red": {"net_out": 5}, "none": {}}},
        422,
        "invalid",
        ("networks.blue.net_in", "networks.red.net_out", "networks.none"),
        ("networks.blue.net_in",),
    ),
    Refused("PUT", "/networks/blue/default_policy", {"colour": 1}, 422, "invalid", ("colour",), ('"blue"', "Unknown")),
    Refused(
        "PUT",
        "/networks/red/default_policy",
        {"net_in": [{"host_port": 80, "host_ip": "2001:db8::1"}]},
        422,
        "invalid",
        ("net_in[0].host_ip",),
        ("no subnet6",),
    ),
    policy("colour", "Unknown field", "Known are deny_networks, log_denied, net_in, net_out", colour=1),
    policy("net_in", "list", "5", net_in=5),
    policy("net_in[0]", "object", "5", net_in=[5]),
    policy("net_out", "list", "5", net_out=5),
    policy("net_out[1]", "object", "5", net_out=[{}, 5]),
    policy("deny_networks", "list", deny_networks="10.0.0.0/8"),
    policy("deny_networks[0]", "network such as", '"x"', deny_networks=["x"]),
    policy("log_denied", "true or false", '"x"', log_denied="x"),
    policy(
        "net_in[1].host_port", "entry [0]", "80", net_in=[{"host_port": 80}, {"host_port": 80, "host_ip": "192.0.2.1"}]
    ),
    net_in("host_port", "missing", "0 stands for any free port"),
    net_in("colour", "Unknown field", "Known are container_port, host_ip, host_port, protocol", host_port=80, colour=1),
    net_in("host_port", "from 0 to 65535", "65536", host_port=65536),
    net_in("host_port", "from 0 to 65535", "-1", host_port=-1),
    net_in("host_port", "from 0 to 65535", '"80"', host_port="80"),
    net_in("host_port", "from 0 to 65535", "true", host_port=True),
    net_in("container_port", "from 0 to 65535", "65536", host_port=80, container_port=65536),
    net_in("protocol", "tcp or udp", '"icmp"', host_port=80, protocol="icmp"),
    net_in("protocol", "tcp or udp", "3", host_port=80, protocol=3),
    net_in("host_ip", "loopback", "127.0.0.1", host_port=80, host_ip="127.0.0.1"),
    net_in("host_ip", "loopback", "::1", host_port=80, host_ip="::1"),
    net_in("host_ip", "leave host_ip out", host_port=80, host_ip="0.0.0.0"),
    net_in("host_ip", "multicast", host_port=80, host_ip="224.0.0.1"),
    net_in("host_ip", "not an IP address", '"here"', host_port=80, host_ip="here"),
    net_in("host_ip", "192.0.2.77", "not an address of this host", host_port=80, host_ip="192.0.2.77"),
    net_in("host_port", '8001/tcp is held by container "other"', status=409, host_port=8001),
    net_in("host_port", "9000/tcp is held by", "sleep", status=409, host_port=9000),
    policy(
        "", "pool is exhausted", "all 1 tcp ports from 61001", status=507, net_in=[{"host_port": 0}, {"host_port": 0}]
    ),
    net_out("colour", "Unknown field", "Known are icmps, log, networks, ports, protocol", colour=1),
    net_out("protocol", "all, tcp, udp, icmp, icmpv6", '"sctp"', protocol="sctp"),
    net_out("protocol", "0 to 4", "9", protocol=9),
    net_out("protocol", "0 to 4", "null", protocol=None),
    net_out("ports", "protocol all", "only for tcp and udp", ports=PORT_80),
    net_out("ports", "protocol icmp", "only for tcp and udp", protocol="icmp", ports=PORT_80),
    net_out("ports[0]", "runs backwards", protocol="tcp", ports=[{"start": 80, "end": 0}]),
    net_out("ports[0]", "both start and end", protocol="tcp", ports=[{"start": 80}]),
    net_out("ports[0].end", "from 0 to 65535", "65536", protocol="tcp", ports=[{"start": 80, "end": 65536}]),
    net_out("ports[0]", "object", '"80"', protocol="tcp", ports=["80"]),
    net_out(
        "ports[0].step",
        "Unknown field",
        "Known are end, start",
        protocol="tcp",
        ports=[{"start": 1, "end": 9, "step": 2}],
    ),
    net_out("ports", "list", protocol="tcp", ports="80"),
    net_out("networks[0]", "runs backwards", networks=[{"start": "10.0.0.9", "end": "10.0.0.3"}]),
    net_out("networks[0]", "mixes IPv4 and IPv6", networks=[{"start": "10.0.0.9", "end": "fd00::1"}]),
    net_out("networks[0].start", "not an IP address", '"x"', networks=[{"start": "x"}]),
    net_out("networks[0].cidr", "Unknown field", "Known are end, start", networks=[{"cidr": "10.0.0.0/8"}]),
    net_out("networks[0]", "object", networks=["10.0.0.0/8"]),
    net_out("icmps", "protocol tcp", "only for icmp and icmpv6", protocol="tcp", icmps={"type": 8}),
    net_out("icmps.type", "from 0 to 255", "300", protocol="icmp", icmps={"type": 300}),
    net_out("icmps.name", "Unknown field", "Known are code, type", protocol="icmp", icmps={"name": "echo"}),
    net_out("log", "true or false", "1", log=1),
]

STATES = [
    Refused("DELETE", "/containers/web", None, 409, "conflict", says=('"web" is up', "down")),
    Refused("DELETE", "/networks/blue", None, 409, "conflict", says=('container "web" is attached',)),
    Refused("DELETE", "/networks/red", None, 409, "conflict", says=('config of container "idle"',)),
    Refused(
        "PUT",
        "/containers/web/config",
        {"attach_to": [{"network": "blue", "ip": "10.10.0.9"}]},
        409,
        "conflict",
        ("attach_to[0].ip",),
        ('"web" is up on network "blue"', "another ip", "10.10.0.9"),
    ),
    Refused(
        "PUT",
        "/containers/web/config",
        {"attach_to": ["blue", {"network": "red", "ip": "10.10.0.9"}]},
        422,
        "invalid",
        ("attach_to[1].ip",),
        ("10.10.0.9", "10.11.0.0/24"),
    ),
    Refused(
        "PUT",
        "/containers/web/config",
        {"attach_to": ["blue", {"network": "red", "ifname": "eth0"}]},
        422,
        "invalid",
        ("attach_to[1].ifname",),
        ("eth0",),
    ),
]

UPS = [
    up("pid", "number of a running process"),
    up("pid", "number of a running process", "'12'", pid="12"),
    up("pid", "number of a running process", "True", pid=True),
    up("Pid", "number of a running process", "0", Pid=0),
    up("pid", "process 999999999 is gone", pid=999999999),
    up("", "no config was PUT", "network.attach_to", "default_attach_to", pid=LIVE),
    up("annotations", "object of strings", pid=LIVE, annotations={"a": 1}),
    up("Properties", "object of strings", Pid=LIVE, Properties=[1]),
    up("network.attach_to", "twice", "blue,blue", Pid=LIVE, Properties={"network.attach_to": "blue,blue"}),
    up("", '"free"', 'no network "none"', Pid=LIVE, Properties={"network.attach_to": "none"}),
    up("netin[0]", "must be an object", Pid=LIVE, Properties={"attach_to": "blue"}, netin=[1]),
    up("netin[0].host_port", "from 0 to 65535", Pid=LIVE, Properties={"attach_to": "blue"}, netin=[{"host_port": -1}]),
    up("", "no network whose policy can hold them", Pid=LIVE, Properties={"attach_to": ""}, netin=[{"host_port": 0}]),
    up("", 'network "tiny" is full', "10.12.0.1 to 10.12.0.2", status=507, handle="wants-room", pid=LIVE),
    up("", '"web" is up in another network namespace', status=409, handle="web", pid=LIVE),
    up(
        "attach_to[0].ip", "10.10.0.5 is already taken", 'container "web"', status=409, handle="wants-held-ip", pid=LIVE
    ),
    up("attach_to[0].mac", "already taken", 'container "web"', status=409, handle="wants-held-mac", pid=LIVE),
    up("attach_to[0].ip", "10.11.0.9", "10.10.0.0/24", handle="wants-foreign-ip", pid=LIVE),
    up("attach_to[0].ip", "gateway", handle="wants-gateway", pid=LIVE),
    up("attach_to[0].ip6", "no subnet6", handle="wants-ip6", pid=LIVE),
    up(
        "networks.blue.net_in[0].host_port",
        '8001/tcp is held by container "other"',
        status=409,
        handle="wants-port",
        pid=LIVE,
    ),
]

ALL = [*BODIES, *PATHS, *HANDLES, *NETWORKS, *CONFIGS, *ATTACH_TO, *POLICIES, *STATES, *UPS]
WISHES = {
    "wants-held-ip": {"network": "blue", "ip": "10.10.0.5"},
    "wants-held-mac": {"network": "blue", "mac": "0a:c0:0a:0a:00:05"},
    "wants-foreign-ip": {"network": "blue", "ip": "10.11.0.9"},
    "wants-gateway": {"network": "blue", "ip": "10.10.0.1"},
    "wants-ip6": {"network": "red", "ip6": "fd00:10::9"},
    "wants-port": {"network": "blue"},
    "wants-room": {"network": "tiny"},
}


@dataclass
class Scene:
    """A daemon with networks and containers that every refusal must leave as they are."""

    world: World
    free: Netns
    """A namespace no container has."""
    before: dict[str, Any] = field(default_factory=dict)

    def everything(self) -> dict[str, Any]:
        seen = {path: self.world.daemon.get(path).body for path in ("/networks", "/containers", "/status")}
        del seen["/status"]["rounds"]
        return seen | self.world.remains()

    def send(self, case: Refused) -> Answer:
        document = case.document
        if isinstance(document, bytes):
            return self.world.daemon.call(case.method, case.path, raw=document, private=case.private)
        if isinstance(document, dict):
            document = {key: self.free.pid if value == LIVE else value for key, value in document.items()}
        return self.world.daemon.call(case.method, case.path, document, private=case.private)


@pytest.fixture(scope="module")
def scene(netns_module: NetnsFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with open_world(netns_module, tmp_path_factory.mktemp("refusals"), POOL) as world:
        daemon = world.daemon
        daemon.start()
        daemon.network(**BLUE)
        daemon.network("red", subnet="10.11.0.0/24")
        daemon.bring_up("web", world.container("web"), {"network": "blue", "ip": "10.10.0.5"})
        assert daemon.policy("web", blue={"net_in": [{"host_port": 8000}]}).status == 200
        daemon.bring_up("other", world.container("other"), "blue")
        assert daemon.policy("other", blue={"net_in": [{"host_port": 8001}]}).status == 200
        daemon.network("tiny", subnet="10.12.0.0/30")
        daemon.bring_up("alone", world.container("alone"), "tiny")
        daemon.join("idle", "red")
        for handle, wish in WISHES.items():
            daemon.join(handle, wish)
        assert daemon.policy("wants-port", blue={"net_in": [{"host_port": 8001}]}).status == 200
        holder = "import socket,os; s=socket.socket(); s.bind(('',9000)); s.listen(); s.set_inheritable(True);"
        world.host.popen(["python3", "-c", f"{holder} os.execvp('sleep', ['sleep', 'infinity'])"])
        scene = Scene(world, world.container("free"))
        world.host.run("sh", "-c", "for n in $(seq 500); do ss -Hltn 'sport = 9000' | grep -q . && exit; done; exit 1")
        scene.before = scene.everything()
        yield scene


@pytest.mark.parametrize("case", ALL, ids=str)
def test_it_is_refused_in_words_a_newcomer_understands_and_changes_nothing(scene: Scene, case: Refused) -> None:
    answer = scene.send(case)
    error = answer.error
    assert (answer.status, error["code"]) == (case.status, case.code), answer
    assert tuple(error.get("fields", {})) == case.fields, error
    for words in case.says:
        assert words.lower() in error["message"].lower(), error
    assert answer.headers["Content-Type"] == "application/json"
    assert scene.everything() == scene.before


@pytest.mark.parametrize(
    ("method", "path", "allow", "private"),
    [
        ("PUT", "/networks", "GET,HEAD,POST", False),
        ("PATCH", "/networks/blue", "DELETE,GET,HEAD", False),
        ("GET", "/networks/blue/default_policy", "PUT", False),
        ("POST", "/containers", "GET,HEAD", False),
        ("PUT", "/containers/web", "DELETE,GET,HEAD", False),
        ("GET", "/containers/web/config", "PUT", False),
        ("DELETE", "/containers/web/policy", "GET,HEAD,PUT", False),
        ("POST", "/drivers", "GET,HEAD", False),
        ("POST", "/status", "GET,HEAD", False),
        ("GET", "/containers/web/up", "POST", True),
        ("DELETE", "/containers/web/down", "POST", True),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(scene: Scene, method: str, path: str, allow: str, private: bool) -> None:
    answer = scene.world.daemon.call(method, path, private=private)
    assert (answer.status, answer.error["code"], answer.headers["Allow"]) == (405, "method_not_allowed", allow)
    assert answer.error["message"] == f"{path} takes {allow.replace(',', ', ')}, not {method}"
    assert scene.everything() == scene.before


@pytest.mark.parametrize("size", [(8 << 20) + 1, 20 << 20])
def test_a_body_beyond_8_mib_is_refused(scene: Scene, size: int) -> None:
    curl = ["curl", "-sS", "--unix-socket", str(scene.world.daemon.public_socket), "http://conetd/networks"]
    told = scene.world.host.run(*curl, "-w", "%{http_code}", "--data-binary", "@-", input=" " * size).stdout
    body, status = json.loads(told[:-3]), told[-3:]
    assert (status, body["error"]["code"]) == ("413", "too_large")
    assert str(8 << 20) in body["error"]["message"]
    assert scene.everything() == scene.before


def test_a_body_beyond_8_mib_whose_length_is_not_told_is_refused(scene: Scene) -> None:
    curl = ["curl", "-sS", "--unix-socket", str(scene.world.daemon.public_socket), "http://conetd/networks"]
    chunked = [*curl, "-w", "%{http_code}", "-H", "Transfer-Encoding: chunked", "--data-binary", "@-"]
    told = scene.world.host.run(*chunked, input=" " * (9 << 20)).stdout
    assert (told[-3:], json.loads(told[:-3])["error"]["code"]) == ("413", "too_large")
    assert scene.everything() == scene.before


def test_a_body_of_8_mib_is_read(scene: Scene) -> None:
    body = b'{"networks": ' + b" " * ((8 << 20) - 22) + b"{}, }"
    answer = scene.world.daemon.call("PUT", "/containers/web/policy", raw=body)
    assert (answer.status, answer.error["code"]) == (400, "malformed_json")
