"""Guardian, as far as a network plugin sees it: the same calls in the same order, with the same bytes.

Played is guardian's netplugin/external_networker.go with what gardener and the depot do around it. Containers are
network namespaces. Run as a program it plays one container's life against a daemon and shows every call.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JSON = dict[str, Any]
_NETWORK = "garden.network."
_LOOPBACK = re.compile(r"127\.\d{1,3}\.\d{1,3}\.\d{1,3}")
_LOOPBACK_ALONE = re.compile(r"\s*nameserver\s+127\.0\.0\.\d+\s*")
# what of the plugin's answers is read, and the JSON type it has to have; what a list or an object holds is strings
_READ = {"properties": dict, "dns_servers": list, "search_domains": list, "host_port": int, "container_port": int}


class GuardianError(Exception):
    """What Guardian's client is told."""


@dataclass(frozen=True)
class Call:
    """One run of the plugin."""

    argv: tuple[str, ...]
    stdin: bytes
    code: int
    stdout: bytes
    stderr: bytes


@dataclass
class Guardian:
    """A Guardian that has its networking done by `plugin`, called with `extra_args` before its own arguments."""

    plugin: Path
    depot: Path
    extra_args: Sequence[str] = ()
    external_ip: str = "192.0.2.1"
    dns_servers: Sequence[str] = ()
    additional_dns_servers: Sequence[str] = ()
    host_resolv_conf: str = ""
    properties_path: Path | None = None
    handles: set[str] = field(default_factory=set)
    """The containers that the runtime knows. They outlive Guardian."""
    properties: dict[str, dict[str, str]] = field(default_factory=dict)
    """Handle to name to value: what Guardian keeps of each container, in memory."""
    calls: list[Call] = field(default_factory=list)

    def create(
        self,
        handle: str,
        pid: int,
        *,
        netin: Sequence[JSON] = (),
        netout_rules: Sequence[JSON] = (),
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Create a container whose init has this pid; one that cannot be networked is destroyed again."""
        if handle in self.handles:
            raise GuardianError(f"Handle '{handle}' already in use")
        self.handles.add(handle)
        kept = self.properties[handle] = dict(properties or {})
        folder = self.depot / handle
        folder.mkdir(parents=True)
        for name in ("hosts", "resolv.conf"):
            (folder / name).touch()
        try:
            if pid == 0:
                raise GuardianError("container init PID was 0")
            self._network(handle, pid, netin, netout_rules)
        except GuardianError:
            with contextlib.suppress(GuardianError):  # then the container stays, to be destroyed later
                self.destroy(handle)
            raise
        kept["garden.state"] = "created"

    def net_in(self, handle: str, host_port: int, container_port: int) -> tuple[int, int]:
        """POST /containers/:handle/net/in."""
        inputs = {
            "HostIP": self.external_ip,
            "HostPort": host_port,
            "ContainerIP": self._container_ip(handle),
            "ContainerPort": container_port,
        }
        told = self._exec("net-in", handle, inputs)
        mapping = {"HostPort": told.get("host_port", 0), "ContainerPort": told.get("container_port", 0)}
        kept = self.properties[handle]
        mappings = [*json.loads(kept.get(_NETWORK + "mapped-ports", "[]")), mapping]
        kept[_NETWORK + "mapped-ports"] = _marshal(mappings).decode()
        return mapping["HostPort"], mapping["ContainerPort"]

    def net_out(self, handle: str, rule: JSON) -> None:
        """POST /containers/:handle/net/out."""
        self._exec("net-out", handle, {"container_ip": self._container_ip(handle), "netout_rule": _rule(rule)})

    def bulk_net_out(self, handle: str, rules: Sequence[JSON] | None) -> None:
        """POST /containers/:handle/net/out/bulk; None is Go's nil slice."""
        given = None if rules is None else [_rule(one) for one in rules]
        self._exec("bulk-net-out", handle, {"container_ip": self._container_ip(handle), "netout_rules": given})

    def info(self, handle: str) -> JSON:
        """What of ContainerInfo is about the network: read from the properties alone."""
        kept = self.properties.get(handle, {})
        try:
            mapped = json.loads(kept.get(_NETWORK + "mapped-ports", "[]"))
        except ValueError:
            mapped = []
        names = {"HostIP": "host-ip", "ContainerIP": "container-ip", "ContainerIPv6": "container-ipv6"}
        found: JSON = {field: kept.get(_NETWORK + name, "") for field, name in names.items()}
        found |= {"ExternalIP": kept.get(_NETWORK + "external-ip", ""), "MappedPorts": mapped}
        return found | {"Properties": dict(kept)}

    def metrics(self, handle: str, pid: int) -> JSON | None:
        """NetworkStat: the counters of the interface that the properties name, read in the container's namespace."""
        kept = self.properties.get(handle, {})
        interface = kept.get(_NETWORK + "interface", "")
        if not interface or kept.get("network.healthcheck") == "true":
            return None
        command = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-j", "-s", "link", "show", interface]
        read = subprocess.run(command, capture_output=True)
        if read.returncode:
            raise GuardianError(f"could not read container network statistics, {read.stderr.decode()}")
        [link] = json.loads(read.stdout)
        return {"RxBytes": link["stats64"]["rx"]["bytes"], "TxBytes": link["stats64"]["tx"]["bytes"]}

    def destroy(self, handle: str) -> None:
        """Destroy a container. Whoever killed its processes did that before; after a failure it may be tried again."""
        if handle not in self.handles:
            raise GuardianError(f"unknown handle: {handle}")
        self._exec("down", handle, None)
        folder = self.depot / handle
        for name in ("hosts", "resolv.conf"):
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir():
            folder.rmdir()
        self.handles.discard(handle)
        self.properties.pop(handle, None)

    def restart(self, *, crashed: bool = False) -> None:
        """Come back: properties are written at a graceful stop alone. No plugin is called for what lives on."""
        if self.properties_path is not None and not crashed:
            self.properties_path.write_text(_marshal(self.properties).decode())
        there = self.properties_path is not None and self.properties_path.exists()
        written = self.properties_path.read_text() if there and self.properties_path else ""
        self.properties = json.loads(written or "{}")

    def hosts(self, handle: str) -> str:
        """/etc/hosts inside the container."""
        return (self.depot / handle / "hosts").read_text()

    def resolv_conf(self, handle: str) -> str:
        """/etc/resolv.conf inside the container."""
        return (self.depot / handle / "resolv.conf").read_text()

    def _network(self, handle: str, pid: int, netin: Sequence[JSON], netout_rules: Sequence[JSON]) -> None:
        kept = self.properties[handle]
        kept[_NETWORK + "external-ip"] = self.external_ip
        forwarded = {
            name.removeprefix("network."): value
            for name, value in sorted(kept.items())
            if name.startswith("network.") or name == "log_config"
        }
        inputs: JSON = {"Pid": pid, "Properties": forwarded}
        if netout_rules:
            inputs["netout_rules"] = [_rule(one) for one in netout_rules]
        if netin:
            inputs["netin"] = [{"host_port": 0, "container_port": 0} | one for one in netin]
        told = self._exec("up", handle, inputs)
        kept |= told.get("properties") or {}
        ip = kept.get(_NETWORK + "container-ip")
        if ip is None:
            return
        ipv6 = kept.get(_NETWORK + "container-ipv6")
        name = handle.encode()[-49:].decode(errors="replace")
        lines = ["127.0.0.1 localhost", *(["::1 localhost"] if ipv6 else []), f"{ip} {name}"]
        lines += [f"{ipv6} {name}"] if ipv6 else []
        (self.depot / handle / "hosts").write_text("\n".join(lines) + "\n")
        resolv = self._resolv_conf(ip, told.get("dns_servers"), told.get("search_domains"))
        (self.depot / handle / "resolv.conf").write_text("".join(f"{line}\n" for line in resolv))

    def _resolv_conf(self, ip: str, servers: list[str] | None, domains: list[str] | None) -> list[str]:
        additional = [f"nameserver {one}" for one in self.additional_dns_servers]
        if servers is not None:
            lines = [f"nameserver {_ip(one)}" for one in servers]
        elif self.dns_servers:
            lines = [f"nameserver {one}" for one in self.dns_servers] + additional
        else:
            lines = self._of_host(ip, domains) + additional
        return lines if domains is None else [*lines, " ".join(["search", *domains])]

    def _of_host(self, ip: str, domains: list[str] | None) -> list[str]:
        if _LOOPBACK_ALONE.fullmatch(self.host_resolv_conf):
            return [f"nameserver {ip}"]
        lines = []
        for line in self.host_resolv_conf.splitlines():
            words = line.split()
            if not words or (words[0] == "search" and domains is not None):
                continue
            if words[0] == "nameserver" and (len(words) != 2 or _LOOPBACK.search(line)):
                continue
            lines.append(line)
        return lines

    def _container_ip(self, handle: str) -> str:
        ip = self.properties.get(handle, {}).get(_NETWORK + "container-ip")
        if ip is None:
            raise GuardianError(f"cannot find container [{handle}]\n")
        return ip

    def _exec(self, action: str, handle: str, inputs: JSON | None) -> JSON:
        argv = (str(self.plugin), *self.extra_args, "--action", action, "--handle", handle)
        stdin = _marshal(inputs)
        done = subprocess.run(argv, input=stdin, capture_output=True, process_group=0)
        self.calls.append(Call(argv, stdin, done.returncode, done.stdout, done.stderr))
        if done.returncode:
            raise GuardianError(
                f"external networker encountered an error running '{action}' action: exit status {done.returncode}"
            )
        if action not in ("up", "net-in") or not done.stdout:
            return {}
        return _unmarshal(done.stdout)


def _unmarshal(text: bytes) -> JSON:
    """As Go's json.Unmarshal into what the plugin may answer: other members are ignored, null is nothing."""
    complaint = "unmarshaling result from external networker: "
    try:
        told = json.loads(text)
    except ValueError as err:
        raise GuardianError(f"{complaint}{err}") from err
    if not isinstance(told, dict | None):
        raise GuardianError(f"{complaint}json: cannot unmarshal {told!r} into Go value")
    read = {name: value for name, value in (told or {}).items() if name in _READ and value is not None}
    for name, value in read.items():
        held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if type(value) is not _READ[name] or not all(isinstance(one, str) for one in held):
            raise GuardianError(f"{complaint}json: cannot unmarshal {value!r} into Go struct field {name}")
    return read


def _marshal(value: Any) -> bytes:
    """As Go's json.Marshal: compact, `<`, `>` and `&` escaped, no line end. Members are written in their order."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


def _rule(rule: JSON) -> JSON:
    """A NetOutRule as Go writes it, whatever its client wrote: members in the struct's order, none that is zero."""
    told = _struct(rule, "protocol", "networks", "ports", "icmps", "log", pointer="icmps")
    for name in {"networks", "ports"} & told.keys():
        told[name] = [_struct(one, "start", "end") for one in told[name]]
    if "icmps" in told:
        told["icmps"] = _struct(told["icmps"], "type", "code", pointer="code")
    return told


def _struct(value: JSON, *names: str, pointer: str = "") -> JSON:
    return {name: value[name] for name in names if value.get(name) or (name == pointer and value.get(name) is not None)}


def _ip(text: str) -> str:
    """As Go's net.ParseIP and back: what is no address is `<nil>`, one of IPv4 in IPv6 is of IPv4."""
    try:
        address = ipaddress.ip_address(text.replace("%", "no zone"))
    except ValueError:
        return "<nil>"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def main() -> int:
    """Play one container's life; 1 when Guardian's client is told of an error."""
    parser = argparse.ArgumentParser(description="Play one container's life as Guardian does, and show each call.")
    parser.add_argument("--network-plugin", type=Path, required=True)
    parser.add_argument("--network-plugin-extra-arg", action="append", default=[])
    parser.add_argument("--depot", type=Path, required=True, help="an empty directory")
    parser.add_argument("--handle", default="played")
    parser.add_argument("--pid", type=int, required=True, help="a process in a network namespace of its own")
    parser.add_argument("--property", action="append", default=[], help="NAME=VALUE, such as network.attach_to=apps")
    given = parser.parse_args()
    guardian = Guardian(given.network_plugin, given.depot, given.network_plugin_extra_arg)
    properties = dict(one.split("=", 1) for one in given.property)
    code = 0
    rule = {
        "protocol": 1,
        "networks": [{"start": "192.0.2.2", "end": "192.0.2.2"}],
        "ports": [{"start": 80, "end": 80}],
    }
    try:
        guardian.create(given.handle, given.pid, netin=[{"container_port": 8080}], properties=properties)
        guardian.net_in(given.handle, 0, 0)
        guardian.net_out(given.handle, rule)
        guardian.bulk_net_out(given.handle, [rule, {"protocol": 2}])
        print(json.dumps(guardian.info(given.handle), indent=2))
        print(json.dumps(guardian.metrics(given.handle, given.pid)))
        guardian.destroy(given.handle)
    except GuardianError as err:
        print(f"Guardian's client is told: {err}")
        code = 1
    for call in guardian.calls:
        print(f"{' '.join(call.argv)}\n  < {call.stdin.decode()}\n  > {call.code} {call.stdout.decode().rstrip()}")
        if call.stderr:
            print(f"  ! {call.stderr.decode().rstrip()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
