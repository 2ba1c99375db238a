"""Garden's clients at the private socket of a lab's daemon, and what the host shows of what they asked for."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from onehost import Lab, Machine
from traffic import Flow
from world import Answer, Daemon, eventually

TCP4, UDP4, TCP6, UDP6 = Flow("tcp", 4), Flow("udp", 4), Flow("tcp", 6), Flow("udp", 6)
ALL, TCP, UDP, ICMP, ICMPV6 = range(5)
"""Garden's numbers of protocols."""
JSON = dict[str, Any]
Who = Machine | str
_CLOSED_LINKS = re.compile(r"^\tset closed\w* \{.*?^\t\}$", re.DOTALL | re.MULTILINE)
_COUNTERS = re.compile(r" ?\[\d+:\d+\]")


class Garden:
    """Asks what Garden's clients ask. Whose policy was changed is noted, so that `reset` can take it back."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._touched: set[str] = set()

    def try_net_in(self, who: Who, host_port: int = 0, container_port: int = 0) -> Answer:
        """POST net/in."""
        return self._post(who, "net/in", {"host_port": host_port, "container_port": container_port})

    def try_net_in_once(self, who: Who, key: str, host_port: int = 0, container_port: int = 0) -> Answer:
        """POST net/in with an Idempotency-Key, by which a repetition is told from another request."""
        self._touched.add(str(who))
        body = json.dumps({"host_port": host_port, "container_port": container_port})
        url = f"http://conetd/garden/containers/{who}/net/in"
        command = ["curl", "-sS", "--unix-socket", str(self._daemon.private_socket), "-w", "%{http_code}", url]
        said = self._daemon.host.run(*command, "-H", f"Idempotency-Key: {key}", "-d", body).stdout
        told, status = said.rsplit("\n", 1)
        return Answer(int(status), json.loads(told))

    def try_net_out(self, who: Who, rule: JSON | None) -> Answer:
        """POST net/out."""
        return self._post(who, "net/out", rule)

    def try_bulk(self, who: Who, rules: Sequence[JSON] | None) -> Answer:
        """POST net/out/bulk."""
        return self._post(who, "net/out/bulk", rules)

    def net_in(self, who: Who, host_port: int = 0, container_port: int = 0) -> tuple[int, int]:
        """Publish a port; returns host and container port as they were answered."""
        answer = self.try_net_in(who, host_port, container_port)
        assert answer.status == 200, (answer, self._daemon.log)
        assert list(answer.body) == ["host_port", "container_port"]
        return answer.body["host_port"], answer.body["container_port"]

    def net_out(self, who: Who, *rules: JSON | None) -> None:
        """Add rules, each by a request of its own."""
        for rule in rules:
            answer = self.try_net_out(who, rule)
            assert (answer.status, answer.body) == (200, {}), (answer, self._daemon.log)

    def bulk(self, who: Who, rules: Sequence[JSON] | None) -> None:
        """Add rules by one request."""
        answer = self.try_bulk(who, rules)
        assert (answer.status, answer.body) == (200, {}), (answer, self._daemon.log)

    def info(self, who: Who) -> JSON:
        """GET info."""
        answer = self._daemon.call("GET", f"/garden/containers/{who}/info", private=True)
        assert answer.status == 200, (answer, self._daemon.log)
        found: JSON = answer.body
        return found

    def mapped(self, who: Who) -> list[tuple[int, int]]:
        """The mapped ports of Info: host and container port."""
        return [(one["HostPort"], one["ContainerPort"]) for one in self.info(who)["MappedPorts"]]

    def policy(self, who: Who, network: str = "blue") -> JSON:
        """What `GET /containers/:handle/policy` says of one network: `policy`, `source`, `generation`."""
        answer = self._daemon.get(f"/containers/{who}/policy")
        assert answer.status == 200, answer
        found: JSON = answer.body["networks"][network]
        assert found["in_force"] is True, found
        return found

    def reset(self) -> None:
        """Have every container that was asked about go by its network's default policy again."""
        while self._touched:
            handle = self._touched.pop()
            if self._daemon.get(f"/containers/{handle}").status == 200:
                assert self._daemon.policy(handle).status == 200, self._daemon.log

    def _post(self, who: Who, path: str, document: Any) -> Answer:
        self._touched.add(str(who))
        raw = b"null" if document is None else None
        return self._daemon.call("POST", f"/garden/containers/{who}/{path}", document, private=True, raw=raw)


def to(start: str, end: str | None = None, **more: Any) -> JSON:
    """A NetOut rule for an address, or a range of them."""
    return {"networks": [{"start": start, "end": end or start}], **more}


def ports(*wanted: int) -> list[JSON]:
    """The `ports` of a rule, one range each."""
    return [{"start": one, "end": one} for one in wanted]


def refusal(answer: Answer, kind: str = "", handle: str = "", status: int = 500) -> str:
    """The message of an answer that is Garden's error object, with nothing in it that is not told here."""
    assert answer.status == status, answer
    message: str = answer.body["Message"]
    assert answer.body == {"Type": kind, "Message": message, "Handle": handle, "ProcessID": "", "Binary": ""}
    return message


def listing(lab: Lab) -> list[str]:
    """All rules of the host's packet filter, without counters and without the links that are about to go."""
    if lab.backend == "nftables":
        return _CLOSED_LINKS.sub("", lab.host.netns.run("nft", "-s", "list", "ruleset").stdout).splitlines()
    lines = [line for tool in ("iptables", "ip6tables") for line in _saved(lab, tool)]
    return [_COUNTERS.sub("", line) for line in lines]


def _saved(lab: Lab, tool: str) -> list[str]:
    saved = lab.host.netns.run(f"{tool}-legacy-save").stdout.splitlines()
    return [line for line in saved if not line.startswith("#")]


def translations(lab: Lab, host_port: int) -> list[str]:
    """What in the packet filter leads packets to that TCP port elsewhere, IPv4."""
    if lab.backend == "nftables":
        found = lab.host.netns.run("nft", "list", "map", "inet", "conetd", "published4").stdout
        return re.findall(rf"tcp \. {host_port} : [\d.]+ \. \d+", found)
    lines = lab.host.netns.run("iptables-legacy", "-t", "nat", "-S").stdout.splitlines()
    return [line for line in lines if f"-p tcp -m tcp --dport {host_port} " in line and "DNAT" in line]


def bind(lab: Lab, port: int, protocol: str = "tcp", address: str = "0.0.0.0") -> socket.socket:
    """A socket of the host's own on that port. Raises OSError when somebody has it."""
    sock = Flow(protocol, 4).open(lab.host.netns)
    try:
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def is_free(lab: Lab, port: int) -> bool:
    """Whether a process of the host could have the TCP port."""
    try:
        bind(lab, port).close()
    except OSError:
        return False
    return True


def events(lab: Lab, since: int, count: int, event: str = "packet allowed") -> list[dict[str, str]]:
    """What is said of each such event in the daemon's log from there on, once there are `count`."""

    def found() -> list[dict[str, str]]:
        lines = [line for line in lab.daemon.log[since:].splitlines() if f" {event} " in line]
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    eventually(lambda: len(found()) >= count, f"{count} times {event}: {lab.daemon.log[since:]}")
    return found()


@contextmanager
def refusing_kernel(lab: Lab, table: str, chain: str) -> Iterator[None]:
    """While this lasts the kernel takes no rules from the daemon.

    With iptables none in that table, by a rule in one of its built-in chains that leads to or from the host itself.
    """
    with _owned_table(lab) if lab.backend == "nftables" else _fixed_table(lab, table, chain):
        yield


@contextmanager
def _owned_table(lab: Lab) -> Iterator[None]:
    """Somebody else owns the table in our place: the kernel lets nobody but that process change it."""
    host = lab.host.netns
    shell = host.popen(["nft", "-i"], stdin=-1, stdout=-1, text=True, bufsize=1)
    assert shell.stdin is not None
    try:
        shell.stdin.write("delete table inet conetd; add table inet conetd { flags owner; }\n")
        eventually(lambda: "flags owner" in host.run("nft", "list", "table", "inet", "conetd").stdout, "it is owned")
        yield
    finally:
        shell.stdin.close()
        shell.wait(10)  # and the table goes with it, which the kernel does not count as a change
        eventually(lambda: "chain egress" in "\n".join(listing(lab)), "the table is ours again")


@contextmanager
def _fixed_table(lab: Lab, table: str, chain: str) -> Iterator[None]:
    """A rule in the table is of a control group that is gone: the kernel takes the table with it no more."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    root = next((Path(one[1]) for one in mounts if one[2] == "cgroup2" and "rw" in one[3].split(",")), None)
    if root is None:
        pytest.skip("there is no cgroup2 file system to make a control group in")
    group = root / f"conetd-test-{lab.host.netns.inode}"
    rule = [chain, "-m", "cgroup", "--path", group.name, "-j", "ACCEPT"]
    tool = ["iptables-legacy", "-t", table]
    group.mkdir()
    try:
        lab.host.netns.run(*tool, "-A", *rule)
    finally:
        group.rmdir()
    try:
        assert "Invalid argument" in lab.host.netns.run(*tool, "-A", chain, "-j", "RETURN", check=False).stderr
        yield
    finally:
        group.mkdir()
        try:
            lab.host.netns.run(*tool, "-D", *rule)
        finally:
            group.rmdir()
