"""What tests of a cluster look at: what hosts have in their kernels, what etcd has, and streams between containers."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from lab.cluster import Lab
from lab.daemon import Answer, eventually
from lab.hosts import OVERLAY, Container, Host
from lab.talk import SILENCE_S, ask

OWN = "/lab/"
CONFIG = {"vni": 100, "subnet": "10.1.0.0/16", "subnet6": "fd00:10:1::/64"}
SINK, CLOSED = 9000, 9
PACE_S = 0.002
_PROTO = "157"
_SO_RCVBUFFORCE = 33


def from_labels(**labels: str) -> dict[str, Any]:
    """A policy that lets in the containers of these labels."""
    return {"policies": [{"direction": "ingress", "peer": {"labels": labels}}]}


def define(hosts: Sequence[Host], name: str = OVERLAY, policy: Any = None, **config: Any) -> list[Answer]:
    """POST the same vxlan network on these hosts at the same instant."""
    document = {"name": name, "type": "vxlan", "config": CONFIG | config, "default_policy": policy or {}}
    return at_once(hosts, lambda host: host.daemon.post("/networks", document))


def at_once(items: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """What the work gives for each item, begun by all threads together."""
    barrier = threading.Barrier(len(items))

    def begin(item: Any) -> Any:
        barrier.wait()
        return work(item)

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(begin, items))


def all_of(hosts: Iterable[Host], check: Callable[[Host], object], what: str, seconds: float = 20.0) -> None:
    """Return when the check is true of each. Raises AssertionError, naming the host of which it is not in time."""
    for host in hosts:
        eventually(partial(check, host), f"{host.name} {what}", seconds)


# What a daemon says


def told(host: Host) -> dict[str, Any]:
    """The member `cluster` of its status."""
    found: dict[str, Any] = host.daemon.get("/status").body["cluster"]
    return found


def network_of(host: Host, name: str = OVERLAY) -> dict[str, Any]:
    """What its status says of a network; empty if it is not on it."""
    found: dict[str, Any] = told(host)["networks"].get(name, {})
    return found


def part_of(host: Host, name: str = OVERLAY) -> str:
    """Its part of the subnet."""
    return str(network_of(host, name)["lease"]["subnet"])


def wait_for_members(hosts: Sequence[Host], name: str = OVERLAY, seconds: float = 20.0) -> None:
    """Return when each of these hosts knows exactly these on the network."""
    wanted = sorted(host.name for host in hosts)
    all_of(hosts, lambda host: network_of(host, name).get("hosts") == wanted, f"knows {wanted} on {name}", seconds)


def wait_until_connected(lab: Lab, *hosts: Host) -> None:
    """Return when these hosts, or all, have etcd and have told it everything."""

    def well(host: Host) -> bool:
        said = told(host)
        return bool(said["state"] == "connected" and said["pending"] == 0 and "problem" not in said)

    try:
        all_of(hosts or lab.hosts, well, "has etcd and has told it everything")
    except AssertionError as err:
        raise AssertionError(f"{err}: {[told(host).get('problem') for host in hosts or lab.hosts]}") from None


# What etcd has


def etcd_content(lab: Lab) -> dict[str, str]:
    """Key, less the prefix, to value, of what hosts say of themselves and of networks."""
    found = json.loads(lab.etcd.ctl("get", "--prefix", OWN, "-w", "json")).get("kvs", ())
    texts = ((base64.b64decode(one["key"]).decode(), base64.b64decode(one.get("value", ""))) for one in found)
    return {key.removeprefix(OWN): value.decode() for key, value in texts if "/" in key.removeprefix(OWN)}


def etcd_keys(lab: Lab) -> set[str]:
    """The keys that conetd has there, less the prefix."""
    return set(etcd_content(lab))


def holders(lab: Lab, name: str = OVERLAY) -> dict[str, str]:
    """Claim to the host that has it, by etcd."""
    start = f"claims/{name}/"
    content = etcd_content(lab)
    return {key.removeprefix(start): json.loads(content[key])["host"] for key in content if key.startswith(start)}


def revision(lab: Lab) -> int:
    """What etcd is at now."""
    return int(json.loads(lab.etcd.ctl("get", "/lab", "-w", "json"))["header"]["revision"])


# What a kernel has


def kernel_of(host: Host) -> dict[str, list[str]]:
    """All of routes, neighbours, forwarding entries, links and rules that conetd makes, each in an order of its own."""

    def lines(*argv: str) -> list[str]:
        return sorted(line.strip() for line in host.netns.run(*argv).stdout.splitlines())

    vteps = [one["ifname"] for one in host.netns.json("ip", "-j", "link", "show", "type", "vxlan")]
    return {
        "links": sorted(one["ifname"] for one in host.netns.json("ip", "-j", "link")),
        "routes": [
            *lines("ip", "route", "show", "proto", _PROTO),
            *lines("ip", "-6", "route", "show", "proto", _PROTO),
        ],
        "neighbours": lines("ip", "neighbour", "show", "nud", "permanent"),
        "fdb": [f"{link} {line}" for link in vteps for line in lines("bridge", "fdb", "show", "dev", link)],
        "rules": sorted(_rules(host.netns.run("nft", "-s", "list", "ruleset").stdout)),
    }


def _rules(listed: str) -> Iterator[str]:
    """Each rule, and each element of a set, behind the name of what it is in: sets have no order.

    Links that are gone stay in the sets of those that are shut for some time.
    """
    within = ""
    for line in map(str.strip, listed.splitlines()):
        if line.endswith("{") and "=" not in line:
            within = line.removesuffix(" {")
        elif within.startswith(("set closed", "chain closed")):
            continue
        elif within.startswith("chain"):
            yield f"{within}: {line}"
        else:
            yield from (f"{within}: {one.strip()}" for one in re.split("[,{}]", line) if one.strip())


def kernels(hosts: Iterable[Host]) -> dict[str, dict[str, list[str]]]:
    """The same of each host, by name."""
    return {host.name: kernel_of(host) for host in hosts}


def mentions(host: Host, part: str) -> dict[str, int]:
    """How often a host's kernel names another's part (by its first address): in what, and how often."""
    first = part.partition("/")[0]
    mac = "ee:ee:" + ":".join(f"{int(one):02x}" for one in first.split("."))
    seen = kernel_of(host)
    return {
        "routes": sum(line.startswith(f"{part} via") for line in seen["routes"]),
        "neighbours": sum(line.startswith(f"{first} ") for line in seen["neighbours"]),
        "fdb": sum(f" {mac} " in line for line in seen["fdb"]),
        "rules": sum(mac in line for line in seen["rules"]),
    }


# What a store has


def rows(host: Host, sql: str) -> list[tuple[Any, ...]]:
    """What the host's store answers; it is only read."""
    with contextlib.closing(sqlite3.connect(f"file:{host.daemon.database}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


# Who reaches whom


def reaches(one: Container, other: Container) -> bool:
    """Whether a new connection gets there, of both IP versions, with its first packet: nobody listens, and says so."""
    return all(ask(one.netns, address, CLOSED, seconds=SILENCE_S) == "refused" for address in other.addresses.values())


def reachable(one: Container, other: Container) -> bool:
    """As `reaches`, in time."""
    return bool(eventually(lambda: reaches(one, other), f"{one.name} reaches {other.name}"))


class Stream:
    """Numbered datagrams from one container to another: every other one the first of its flow, the rest all of one."""

    def __init__(self, sender: Container, receiver: Container) -> None:
        self._sender, self._to = sender.netns, (receiver.addresses[4], SINK)
        self._sink = receiver.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._sink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        self._sink.bind(self._to)
        self._sink.settimeout(0.5)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._failed: BaseException | None = None
        self.sent = 0

    def _send(self) -> None:
        kept = self._sender.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        with kept:
            while not self._stop.wait(PACE_S):
                try:
                    if self.sent % 2:
                        kept.sendto(b"%d" % self.sent, self._to)
                    else:
                        with self._sender.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as fresh:
                            fresh.sendto(b"%d" % self.sent, self._to)
                except OSError as err:  # a route is missing, or a datagram before was refused
                    self._failed = err
                self.sent += 1

    def arrived(self) -> set[int]:
        """Stop sending; the numbers of those that arrived."""
        self._end()
        found = set()
        with contextlib.suppress(TimeoutError):
            while True:
                found.add(int(self._sink.recv(64)))
        assert self.sent > 10
        return found

    def lost(self) -> str:
        """Stop sending; empty if everything arrived, else what did not."""
        found = self.arrived()
        missing = sorted(set(range(self.sent)) - found)
        return f"{len(missing)} of {self.sent}, from {missing[0]} to {missing[-1]}: {self._failed}" if missing else ""

    def goes_on(self, seconds: float) -> None:
        """Let it run for so long."""
        deadline = time.monotonic() + seconds
        before = self.sent
        eventually(lambda: time.monotonic() > deadline and self.sent > before, "the stream goes on", seconds + 5)

    def _end(self) -> None:
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()
        self._sink.close()


@contextlib.contextmanager
def unbroken(*pairs: tuple[Container, Container]) -> Iterator[list[Stream]]:
    """Streams, one for each pair, of which nothing may be lost within the block."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(Stream(*pair)) for pair in pairs]
        yield streams
        lost = [found for found in (stream.lost() for stream in streams) if found]
        if lost:
            raise AssertionError(f"datagrams were lost: {'; '.join(lost)}")


# Taking it all away again


def clear(lab: Lab) -> None:
    """Leave no container and no network on any host, and nothing in etcd but who lives."""
    for container in list(lab.containers.values()):
        container.down()
    for host in lab.hosts:
        for one in host.daemon.get("/containers").body:
            host.daemon.down(one["handle"])
            host.daemon.delete(f"/containers/{one['handle']}")
        for network in host.daemon.get("/networks").body:
            answer = host.daemon.delete(f"/networks/{network['name']}")
            assert answer.status == 204, answer
    try:
        eventually(lambda: not left(lab), "etcd has forgotten the networks", 5)
    except AssertionError:
        found = left(lab)
        for key in found:  # so that the tests to come have none of it
            lab.etcd.ctl("del", OWN + key)
        raise AssertionError(f"etcd still has {found}") from None


def is_in_use(lab: Lab) -> bool:
    """Whether some host has a container or a network."""
    return any(host.daemon.get(f"/{what}").body for host in lab.hosts for what in ("containers", "networks"))


def left(lab: Lab) -> list[str]:
    """What etcd has beside who lives."""
    return sorted(key for key in etcd_keys(lab) if not key.startswith("hosts/"))
