"""What else the dataplane owes its host: MTU, a bridge that stays itself, strangers let be, repair."""

from __future__ import annotations

import errno
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from onehost import DENIED, DENY, DMZ, OUTSIDE, SERVICE, UP, Lab, Machine
from pytest_netns import Netns
from traffic import FLOWS, REFUSED, SILENT, Flow, Talk
from world import eventually

UPLINK_MTU = 1420
PORT = 7000
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14  # linux/in.h


@pytest.fixture(scope="module")
def prepare() -> Callable[[Netns], None]:
    """The uplink's MTU is not the usual one, and somebody has a firewall."""

    def strangers(host: Netns) -> None:
        host.run("ip", "link", "set", "up0", "mtu", str(UPLINK_MTU))
        host.run("nft", "-f", "-", input=FOREIGN_NFT)
        for command in FOREIGN_IPTABLES:
            host.run(*command.split())

    return strangers


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue, which denies; b has a published port."""
    lab = bare_lab
    lab.daemon.network("blue", subnet6="fd00:10::/64", deny_networks=DENY)
    for name in ("a", "b"):
        lab.container(name, "blue")
    entries = [{"host_port": PORT, "container_port": SERVICE, "protocol": protocol} for protocol in ("tcp", "udp")]
    assert lab.daemon.policy("b", blue={"net_in": entries}).status == 200
    for flow in FLOWS:
        for machine in (lab.host, lab.outside, lab.dmz, *lab.containers.values()):
            lab.serve(machine, flow)
    return lab


def bridge(lab: Lab, gateway: str = "10.10.0.1") -> dict[str, Any]:
    """The link that has the gateway's address."""
    told = lab.host.netns.json("ip", "-j", "addr")
    [found] = [one for one in told if any(address.get("local") == gateway for address in one["addr_info"])]
    assert isinstance(found, dict)
    return found


def link(machine: Machine, name: str = "eth0") -> dict[str, Any]:
    [found] = machine.netns.json("ip", "-j", "link", "show", name)
    assert isinstance(found, dict)
    return found


# MTU, and a bridge that stays itself


def test_the_mtu_is_that_of_the_interface_with_the_default_route(lab: Lab, a: Machine) -> None:
    assert bridge(lab)["mtu"] == link(a)["mtu"] == UPLINK_MTU
    [attachment] = lab.daemon.get("/containers/a").body["attachments"]
    assert attachment["mtu"] == UPLINK_MTU
    ends = [one["mtu"] for one in lab.host.netns.json("ip", "-j", "link") if one["ifname"].startswith("cv")]
    assert ends == [UPLINK_MTU] * 2


@pytest.mark.parametrize("family", [4, 6])
def test_a_packet_of_that_size_passes_unfragmented(lab: Lab, a: Machine, family: int) -> None:
    headers = {4: 28, 6: 48}[family]
    with Flow("udp", family).open(a.netns) as sock:
        if family == 4:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, 23, IP_PMTUDISC_DO)  # linux/in6.h: IPV6_MTU_DISCOVER
        sock.settimeout(5)
        sock.connect((OUTSIDE[family], SERVICE))
        sock.send(bytes(UPLINK_MTU - headers))
        assert sock.recv(100).startswith(b"outside ")
        with pytest.raises(OSError) as refused:  # noqa: PT011  # the number is looked at
            sock.send(bytes(UPLINK_MTU - headers + 1))
        assert refused.value.errno == errno.EMSGSIZE


def test_a_network_may_have_an_mtu_of_its_own(lab: Lab, guests: Callable[..., Machine]) -> None:
    lab.daemon.network("small", subnet="10.40.0.0/24", mtu=1300)
    container = guests("small")
    assert bridge(lab, "10.40.0.1")["mtu"] == link(container)["mtu"] == 1300
    lab.remove(container)
    assert lab.daemon.delete("/networks/small").status == 204


def test_the_bridge_keeps_mac_and_mtu_while_containers_come_and_go(lab: Lab) -> None:
    lab.daemon.network("other", subnet="10.41.0.0/24", bridge="other0")

    def now() -> tuple[str, int]:
        found = bridge(lab, "10.41.0.1")
        assert found["ifname"] == "other0"
        return found["address"], found["mtu"]

    first = now()
    seen = []
    low = {"network": "other", "mac": "02:00:00:00:00:01"}  # lower than any: a bridge would take it as its own
    for _ in range(2):
        containers = [lab.container("low", low), lab.container("plain", "other")]
        seen.append(now())
        for one in containers:
            lab.remove(one)
            seen.append(now())
    assert seen == [first] * 6
    assert lab.daemon.delete("/networks/other").status == 204


def test_a_full_size_stream_passes(lab: Lab, b: Machine, a: Machine) -> None:
    size = 4 << 20
    server = Flow("tcp", 4).open(b.netns)
    with server:
        server.bind(("", 9001))
        server.listen()
        server.settimeout(10)
        client = Flow("tcp", 4).open(a.netns)
        with client:
            client.settimeout(10)
            client.connect((b.addresses[4], 9001))
            accepted, _ = server.accept()
            with accepted:
                accepted.settimeout(10)
                accepted.setblocking(False)
                client.setblocking(False)
                assert _carry(client, accepted, size) == size


def _carry(client: socket.socket, server: socket.socket, size: int) -> int:
    sent = received = 0
    chunk = bytes(65536)

    def step() -> bool:
        nonlocal sent, received
        try:
            while sent < size:
                sent += client.send(chunk[: size - sent])
        except BlockingIOError:
            pass
        try:
            while received < size:
                received += len(server.recv(65536))
        except BlockingIOError:
            pass
        return received == size

    eventually(step, "everything arrived")
    return received


# Strangers on the host

FOREIGN_NFT = """
table inet stranger {
    set names { type ipv4_addr; elements = { 203.0.113.1, 203.0.113.2 }; }
    chain forward { type filter hook forward priority 10; policy accept; ip saddr @names drop comment "mine"; }
    chain input { type filter hook input priority 10; policy accept; }
}
table bridge stranger {
    chain forward { type filter hook forward priority 10; policy accept; }
}
table ip nat2 {
    chain pre { type nat hook prerouting priority 0; tcp dport 1 redirect to :2; }
}
"""
FOREIGN_IPTABLES = [
    "iptables-legacy -N STRANGER",
    "iptables-legacy -A STRANGER -s 203.0.113.7 -p tcp --dport 22 -m comment --comment mine -j DROP",
    "iptables-legacy -A FORWARD -j STRANGER",
    "iptables-legacy -I INPUT -s 203.0.113.8 -j REJECT",
    "iptables-legacy -t nat -A POSTROUTING -s 203.0.113.9 -j MASQUERADE",
    "iptables-legacy -t mangle -A PREROUTING -s 203.0.113.9 -j MARK --set-mark 7",
    "ip6tables-legacy -A FORWARD -s 2001:db8:99::/64 -j DROP",
]


def foreign(lab: Lab) -> list[str]:
    """Everything in the packet filter that is not ours, in its order."""
    found = []
    for family, name in (("inet", "stranger"), ("bridge", "stranger"), ("ip", "nat2")):
        found += lab.host.netns.run("nft", "-s", "list", "table", family, name).stdout.splitlines()
    for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
        for line in lab.host.netns.run(tool).stdout.splitlines():
            if not line.startswith("#") and "conetd" not in line:
                found.append(line.partition(" [")[0] if line.startswith(":") else line)
    return found


def test_foreign_rules_are_as_they_were_through_a_container_s_life(lab: Lab) -> None:
    text = "\n".join(foreign(lab))
    assert FOREIGN_NFT.count("comment") + text.count("--comment") >= 2
    before = foreign(lab)
    lab.daemon.network("brief", subnet="10.42.0.0/24", subnet6="fd00:42::/64", isolated=True)
    container = lab.container("brief", "brief")
    assert foreign(lab) == before
    lab.policy(container, brief={"deny_networks": DENY, "net_in": [{"host_port": 7100}], "log_denied": True})
    assert foreign(lab) == before
    lab.remove(container)
    assert lab.daemon.delete("/networks/brief").status == 204
    assert foreign(lab) == before


def test_no_policy_of_a_built_in_chain_is_changed(lab: Lab) -> None:
    saved = lab.host.netns.run("iptables-legacy-save").stdout + lab.host.netns.run("ip6tables-legacy-save").stdout
    policies = {line.split()[1] for line in saved.splitlines() if line.startswith(":") and line.split()[1] != "-"}
    assert policies == {"ACCEPT"}


def test_the_bridge_netfilter_switch_is_not_touched(lab: Lab, a: Machine, bridge_nf: int) -> None:
    lab.policy(a, blue={"deny_networks": DENY})
    for name in ("iptables", "ip6tables"):
        assert lab.host.netns.sysctl(f"net/bridge/bridge-nf-call-{name}") == str(bridge_nf)


def test_a_host_that_routed_nothing_does_not_become_a_router(lab: Lab, a: Machine, flow: Flow) -> None:
    assert lab.reach(a, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
    assert lab.reach(a, flow, DMZ[flow.family]).startswith("dmz ")
    assert lab.miss(lab.dmz, flow, OUTSIDE[flow.family]) == SILENT
    assert lab.miss(lab.outside, flow, DMZ[flow.family]) == SILENT
    assert lab.reach(lab.dmz, flow, UP[flow.family]) == f"host {DMZ[flow.family]}"  # the host itself is still there


def test_a_bridge_of_somebody_else_is_let_be(lab: Lab) -> None:
    """Containers of another engine on a bridge of its own talk as before, with br_netfilter on and off."""
    host = lab.host.netns
    host.run("ip", "link", "add", "their0", "type", "bridge")
    host.run("ip", "link", "set", "their0", "up")
    machines = []
    try:
        for number in (2, 3):
            netns = lab.factory.make(f"their{number}")
            host.connect(netns, None, f"10.50.0.{number}/24", name=f"their{number}", peer_name="eth0")
            host.run("ip", "link", "set", f"their{number}", "master", "their0")
            machines.append(Machine(f"their{number}", netns, {4: f"10.50.0.{number}"}))
        for value in (0, 1):
            lab.bridge_netfilter(value)
            for flow in FLOWS[:2]:
                lab.serve(machines[1], flow)
                assert lab.reach(machines[0], flow, "10.50.0.3") == "their3 10.50.0.2"
    finally:
        lab.bridge_netfilter(0)
        for machine in machines:
            machine.netns.close()
        host.run("ip", "link", "del", "their0")


# Repair


def whole(lab: Lab) -> bool:
    """Whether all is open and closed as it should be: egress, deny, neighbours and the published port."""
    a, b = lab.containers["a"], lab.containers["b"]
    for flow in FLOWS:
        family = flow.family
        if not (
            lab.miss(a, flow, DENIED[family]) == REFUSED
            and lab.miss(a, flow, OUTSIDE[family]) == f"outside {UP[family]}"
            and lab.miss(a, flow, b.addresses[family]) == f"b {a.addresses[family]}"
            and lab.miss(lab.outside, flow, UP[family], PORT) == f"b {OUTSIDE[family]}"
        ):
            return False
    return True


def healthy(lab: Lab) -> bool:
    return lab.daemon.get("/status").status == 200


def flush_nftables(host: Netns) -> None:
    host.run("nft", "flush", "ruleset")


def delete_our_tables(host: Netns) -> None:
    for family in ("inet", "bridge"):
        host.run("nft", "delete", "table", family, "conetd", check=False)


def flush_iptables(host: Netns) -> None:
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        for table in ("filter", "nat", "mangle", "raw"):
            host.run(tool, "-t", table, "-F")
            host.run(tool, "-t", table, "-X")


def flush_built_in_chains(host: Netns) -> None:
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        for table, chain in (("filter", "FORWARD"), ("nat", "PREROUTING"), ("raw", "PREROUTING")):
            host.run(tool, "-t", table, "-F", chain)


BREAKS = {
    "nftables": [flush_nftables, delete_our_tables],
    "iptables": [flush_iptables, flush_built_in_chains],
}


@pytest.mark.parametrize("number", [0, 1], ids=["everything", "ours"])
def test_flushed_rules_come_back(lab: Lab, number: int) -> None:
    assert whole(lab)
    BREAKS[lab.backend][number](lab.host.netns)
    eventually(lambda: whole(lab), "the rules are back", seconds=5)
    eventually(lambda: healthy(lab), "the status is well")
    assert "filter repaired" in lab.daemon.log


def test_a_flow_that_was_open_goes_on_after_the_repair(lab: Lab, a: Machine) -> None:
    with Talk(a.netns, FLOWS[0], OUTSIDE[4], SERVICE) as talk:
        BREAKS[lab.backend][0](lab.host.netns)
        eventually(lambda: whole(lab), "the rules are back", seconds=5)
        assert talk.say() == talk.first


def test_a_deleted_link_comes_back(lab: Lab, a: Machine) -> None:
    [name] = _by_peer(lab, a)
    lab.host.netns.run("ip", "link", "del", name)
    eventually(lambda: _there(a) and whole(lab), "the link is back", seconds=8)
    eventually(lambda: healthy(lab), "the status is well")


def _by_peer(lab: Lab, machine: Machine) -> list[str]:
    index = link(machine)["link_index"]
    return [one["ifname"] for one in lab.host.netns.json("ip", "-j", "link") if one["ifindex"] == index]


def _there(machine: Machine) -> bool:
    return any(one["ifname"] == "eth0" for one in machine.netns.json("ip", "-j", "link"))


def test_a_link_deleted_from_inside_comes_back(lab: Lab, a: Machine) -> None:
    a.netns.run("ip", "link", "del", "eth0")
    eventually(lambda: _there(a) and whole(lab), "the link is back", seconds=8)


def test_a_deleted_bridge_comes_back_with_its_containers(lab: Lab) -> None:
    before = bridge(lab)
    lab.host.netns.run("ip", "link", "del", before["ifname"])
    eventually(lambda: whole(lab), "the bridge is back", seconds=10)
    assert bridge(lab)["address"] == before["address"]
    eventually(lambda: healthy(lab), "the status is well")


def test_a_link_set_down_or_taken_from_the_bridge_is_put_back(lab: Lab, a: Machine) -> None:
    [name] = _by_peer(lab, a)
    for command in (("set", name, "nomaster"), ("set", name, "down"), ("set", bridge(lab)["ifname"], "down")):
        lab.host.netns.run("ip", "link", *command)
        eventually(lambda: whole(lab), f"repaired after ip link {' '.join(command)}", seconds=10)


def test_a_restarted_daemon_leaves_everything_in_place(lab: Lab, a: Machine, b: Machine) -> None:
    if lab.backend == "nftables":
        before = lab.host.netns.run("nft", "-s", "list", "ruleset").stdout
    with (
        Talk(a.netns, FLOWS[0], OUTSIDE[4], SERVICE) as egress,
        Talk(lab.outside.netns, FLOWS[0], UP[4], PORT) as ingress,
    ):
        assert lab.daemon.stop() == 0
        assert [talk.say() for talk in (egress, ingress)] == [egress.first, ingress.first]
        assert whole(lab)
        lab.daemon.start()
        eventually(lambda: healthy(lab), "the status is well")
        assert [talk.say() for talk in (egress, ingress)] == [egress.first, ingress.first]
    assert whole(lab)
    if lab.backend == "nftables":
        assert lab.host.netns.run("nft", "-s", "list", "ruleset").stdout == before
    with closing(sqlite3.connect(lab.daemon.database)) as db:
        assert db.execute("SELECT count(*) FROM attachments").fetchone() == (2,)
