"""Whether networks that span hosts can stand in the settings, do without etcd, and are refused with iptables rules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clustered import (
    CONFIG,
    define,
    etcd_keys,
    kernel_of,
    mentions,
    network_of,
    reachable,
    reaches,
    told,
    wait_until_connected,
)

from conetd.kernel import iptables
from lab.cluster import Lab
from lab.daemon import eventually
from lab.hosts import OVERLAY, Host

DECLARED = f"""
[[networks]]
name = "{OVERLAY}"
type = "vxlan"
config = {{ vni = 100, subnet = "10.1.0.0/16", subnet6 = "fd00:10:1::/64" }}
"""
PEERS = [
    {"host": "h1", "underlay": "192.0.2.1", "subnet": "10.1.0.0/24"},
    {"host": "h2", "underlay": "198.51.100.2", "subnet": "10.1.9.0/24"},
]


@pytest.fixture(scope="module")
def hosts() -> int:
    return 2


@pytest.fixture
def declaring(lab: Lab) -> Iterator[Host]:
    """A stopped host whose settings have the network."""
    host = lab.hosts[1]
    settings = host.daemon.settings
    lab.stop(host)
    host.daemon.settings = settings + DECLARED
    yield host
    lab.etcd.restore()
    lab.stop(host)
    host.daemon.settings = settings
    lab.start(host)


def test_a_network_of_the_settings_waits_for_etcd_and_comes_up_when_it_does(lab: Lab, declaring: Host) -> None:
    assert define(lab.hosts[:1])[0].status == 201
    lab.etcd.kill()
    lab.start(declaring)

    status = declaring.daemon.get("/status")
    assert status.status == 503
    [waiting] = status.body["networks_not_as_wanted"]
    assert waiting["network"] == OVERLAY
    assert "waits for this host's part" in waiting["problem"]
    assert network_of(declaring)["lease"] is None
    declaring.daemon.put("/containers/early/config", {"attach_to": [OVERLAY]})
    early = declaring.daemon.up("early", lab.outside)
    assert (early.status, early.error["code"]) == (503, "unavailable")

    lab.etcd.start()
    eventually(lambda: network_of(declaring)["lease"], "it has its part")
    wait_until_connected(lab)
    one, other = (host.container(f"c{host.name}", {"app": "web"}) for host in lab.hosts)
    for each in (one, other):
        each.policy(policies=[{"direction": "ingress", "peer": {"labels": {"app": "web"}}}])
    reachable(one, other)
    reachable(other, one)
    assert mentions(declaring, "10.1.0.0/24") == {"routes": 1, "neighbours": 1, "fdb": 1, "rules": 3}
    eventually(lambda: declaring.daemon.get("/status").status == 200, "it is well")


def test_a_network_of_the_settings_joins_at_the_first_start(lab: Lab, declaring: Host) -> None:
    lab.start(declaring)
    eventually(lambda: network_of(declaring)["lease"], "it has its part")
    assert f"leases/{OVERLAY}/h2" in etcd_keys(lab)
    eventually(lambda: told(declaring)["pending"] == 0, "it has told everything")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", ""),
        ('config = { vni = 0, subnet = "10.1.0.0/16" }', "networks[0].config.vni"),
        ('config = { vni = 7, subnet = "10.1.0.0/16", host_prefix = 8 }', "networks[0].config.host_prefix"),
    ],
)
def test_settings_are_checked_without_etcd(tmp_path: Path, line: str, complaint: str) -> None:
    head = 'drivers = ["bridge", "vxlan"]\n[cluster]\netcd = ["http://192.0.2.99:2379"]\nhost = "h1"\n'
    network = DECLARED if not line else f'[[networks]]\nname = "n"\ntype = "vxlan"\n{line}\n'
    (tmp_path / "conetd.toml").write_text(head + network)
    command = [sys.executable, "-m", "conetd", "check", "--config", str(tmp_path / "conetd.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode == 0) == (not complaint), done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


# Without a store


def test_two_hosts_without_a_store_reach_each_other_by_their_list_of_peers(tmp_path: Path) -> None:
    def post(host: Host) -> None:
        document = {"name": OVERLAY, "type": "vxlan", "config": CONFIG | {"peers": PEERS}}
        answer = host.daemon.post("/networks", document)
        assert answer.status == 201, answer

    with Lab(2, tmp_path, etcd_members=0) as lab:
        for host in lab.hosts:
            post(host)
        one, other = (host.container(f"c{host.name}") for host in lab.hosts)
        assert (one.addresses[4], other.addresses[4]) == ("10.1.0.1", "10.1.9.1")
        assert not reaches(one, other)
        other.policy(
            policies=[{"direction": "ingress", "peer": {"cidr": one_part}} for one_part in both("10.1.0.0/24")]
        )
        assert reachable(one, other)
        assert not reaches(other, one)
        before = kernel_of(lab.hosts[1])
        lab.kill(lab.hosts[1])
        lab.start(lab.hosts[1])
        assert kernel_of(lab.hosts[1]) == before
        assert reaches(one, other)
        assert "cluster" not in lab.hosts[0].daemon.get("/status").body
        assert lab.hosts[0].daemon.delete("/cluster/hosts/h2").status == 404
        for container in (one, other):
            container.remove()
        for host in lab.hosts:
            assert host.daemon.delete(f"/networks/{OVERLAY}").status == 204
            assert mentions(host, "10.1.0.0/24") == mentions(host, "10.1.9.0/24")


def both(part: str) -> list[str]:
    return [part, "fd00:10:1::/120"]


@pytest.mark.skipif(not iptables.available(), reason="this host cannot run the iptables backend")
def test_the_iptables_backend_refuses_in_one_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    with Lab(1, tmp_path, etcd_members=1, settings='filter = "iptables"') as lab:
        [host] = lab.hosts
        before = kernel_of(host)
        [answer] = define([host])
        assert answer.status == 502
        message = answer.error["message"]
        assert "nftables" in message
        assert "filter" in message
        assert message.count(". ") == 0
        assert host.daemon.get(f"/networks/{OVERLAY}").status == 404
        after = kernel_of(host)
        assert {name: after[name] for name in ("links", "routes", "neighbours", "fdb")} == {
            name: before[name] for name in ("links", "routes", "neighbours", "fdb")
        }
        eventually(lambda: etcd_keys(lab) == {"hosts/h1"}, "etcd has nothing of it")
