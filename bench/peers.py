"""What the same costs with netavark and with the CNI reference plugins, where they are installed."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from bench.client import Command, Failed, Flight, commands_in_flight, timed_run
from bench.flight import WIDTHS
from bench.lab import Host, Lab, inside
from bench.scale import Scale
from bench.table import Report, Table, middle, p95

_NETAVARK = Path("/usr/lib/podman/netavark")
_PLUGINS = Path("/usr/lib/cni")
_CHAIN = ("bridge", "portmap", "firewall")
_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_FIRST = int(IPv4Address("10.89.0.2"))
_SINGLE = 12  # attaches one at a time
# at least that many times a peer's attaches a second, 32 in flight, nothing attached before
_WANTED = {"API": 5.0, "hook": 2.0}


def measure(lab: Lab, report: Report, scale: Scale, rates: dict[str, float]) -> None:
    """Measure the peers; `rates` are conetd's attaches a second, to compare with netavark's."""
    table = report.table("Peers", "peer", "attach p50 ms", "p95", "in flight", "attaches/s", "refused")
    table.note(f"One static address and one published port each, nothing attached before; {_SINGLE} one at a time.")
    if _NETAVARK.exists():
        rate = _netavark(lab, table, scale.peers)
        for way, ours in rates.items():
            what = f"attaches/s through the {way} / netavark's, {WIDTHS[-1]} in flight"
            report.at_least(what, ours / rate, _WANTED[way])
    else:
        table.note(f"netavark is not installed: there is no {_NETAVARK}.")
    missing = [name for name in (*_CHAIN, "host-local") if not (_PLUGINS / name).exists()]
    if missing:
        table.note(f"The CNI reference plugins are not installed: {_PLUGINS} lacks {', '.join(missing)}.")
    else:
        _cni(lab, table, scale.peers)


def _netavark(lab: Lab, table: Table, count: int) -> float:
    host = lab.host()
    directory = lab.directory / "netavark"
    directory.mkdir()
    version = subprocess.run([_NETAVARK, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    commands = [
        _netavark_command(directory, number, pid) for number, pid in enumerate(lab.namespaces(_SINGLE + count + 1))
    ]
    errors = directory / "errors"
    with inside(host.pid):
        timed_run(commands.pop(), errors)  # the first makes the bridge
        singles = [timed_run(one, errors) for one in commands[:_SINGLE]]
        flight = commands_in_flight(commands[_SINGLE:], WIDTHS[-1], errors)
    _tell(table, version, singles, flight)
    return flight.per_second


def _netavark_command(directory: Path, number: int, pid: int) -> Command:
    identity = sha256(str(number).encode()).hexdigest()
    network = {
        "name": "bench",
        "id": sha256(b"bench").hexdigest(),
        "driver": "bridge",
        "network_interface": "podman1",
        "subnets": [{"subnet": "10.89.0.0/16", "gateway": "10.89.0.1"}],
        "ipv6_enabled": False,
        "internal": False,
        "dns_enabled": False,
        "ipam_options": {"driver": "host-local"},
    }
    document = {
        "container_id": identity,
        "container_name": f"bench{number}",
        "networks": {"bench": {"static_ips": [str(IPv4Address(_FIRST + number))], "interface_name": "eth0"}},
        "network_info": {"bench": network},
        "port_mappings": [
            {"host_ip": "", "container_port": 8080, "host_port": 10000 + number, "protocol": "tcp", "range": 1}
        ],
    }
    stdin = directory / f"{number}.json"
    stdin.write_text(json.dumps(document))
    argv = (str(_NETAVARK), "--config", str(directory), "setup", f"/proc/{pid}/ns/net")
    return Command(argv, stdin, _ENV)


def _cni(lab: Lab, table: Table, count: int) -> None:
    host = lab.host()
    pids = lab.namespaces(_SINGLE + count + 1)
    _add(lab.directory, 0, pids[0], host)

    def timed(number: int) -> float:
        started = time.perf_counter()
        _add(lab.directory, number, pids[number], host)
        return (time.perf_counter() - started) * 1000

    singles = [timed(number) for number in range(1, _SINGLE + 1)]
    flight = _in_flight(timed, range(_SINGLE + 1, _SINGLE + 1 + count), WIDTHS[-1])
    said = subprocess.run([_PLUGINS / "bridge"], env=_ENV | {"CNI_COMMAND": "VERSION"}, capture_output=True, text=True)
    spoken = re.findall(r"\d+\.\d+\.\d+", said.stdout)
    name = f"CNI {', '.join(_CHAIN)} (spec {spoken[-1] if spoken else 'unknown'})"
    _tell(table, name, singles, flight)


def _in_flight(timed: Callable[[int], float], numbers: range, width: int) -> Flight:
    took: list[float] = []
    refused: list[str] = []

    def one(number: int) -> None:
        try:
            took.append(timed(number))
        except Failed as err:
            refused.append(str(err))

    began = time.perf_counter()
    with ThreadPoolExecutor(width) as threads:
        list(threads.map(one, numbers))
    return Flight(took, time.perf_counter() - began, refused)


def _add(directory: Path, number: int, pid: int, host: Host) -> None:
    """The chain for one container: each plugin gets what the one before it answered. Raises Failed."""
    env = _ENV | {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": f"bench{number}",
        "CNI_NETNS": f"/proc/{pid}/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(_PLUGINS),
    }
    result: Any = None
    for plugin in _CHAIN:
        document = json.dumps(_configuration(directory, plugin, number) | ({"prevResult": result} if result else {}))
        with inside(host.pid):
            done = subprocess.run([_PLUGINS / plugin], input=document, env=env, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{plugin}: {done.stdout.strip() or done.stderr.strip()}")
        result = json.loads(done.stdout)


def _configuration(directory: Path, plugin: str, number: int) -> dict[str, Any]:
    common: dict[str, Any] = {"cniVersion": "1.0.0", "name": "bench", "type": plugin}
    if plugin == "bridge":
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": "10.90.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(directory / "leases"),
        }
        return common | {"bridge": "cni0", "isGateway": True, "ipMasq": True, "ipam": ipam}
    if plugin == "portmap":
        mapping = {"hostPort": 10000 + number, "containerPort": 8080, "protocol": "tcp"}
        return common | {
            "capabilities": {"portMappings": True},
            "snat": True,
            "runtimeConfig": {"portMappings": [mapping]},
        }
    return common | {"backend": "iptables"}


def _tell(table: Table, name: str, singles: list[float], flight: Flight) -> None:
    refused = str(len(flight.refused))
    table.row(name, middle(singles), p95(singles), str(WIDTHS[-1]), flight.per_second, refused)
    if flight.refused:
        table.note(f"{name} refused {refused}, the first: {flight.refused[0][:200]}")
