"""Whether wrong documents are refused over the real API with the path of what is wrong, and nothing of them is left."""

from __future__ import annotations

from typing import Any

import pytest
from clustered import CONFIG, define, etcd_keys, kernels

from lab.cluster import Lab
from lab.daemon import Answer
from lab.hosts import OVERLAY, Host


@pytest.fixture(scope="module")
def hosts() -> int:
    return 1


@pytest.fixture
def host(built: Lab) -> Host:
    """It is left as it was, or the test fails."""
    return built.hosts[0]


@pytest.fixture(scope="module")
def standing(built: Lab) -> Lab:
    """The lab with the network `overlay`."""
    assert define(built.hosts)[0].status == 201
    return built


def post(host: Host, name: str = "n", **config: Any) -> Answer:
    given = {key: value for key, value in (CONFIG | config).items() if value is not None}
    return host.daemon.post("/networks", {"name": name, "type": "vxlan", "config": given})


PEER = {"host": "h1", "underlay": "192.0.2.1", "subnet": "10.1.0.0/24"}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"vni": None}, "config.vni"),
        ({"vni": 0}, "config.vni"),
        ({"vni": 1 << 24}, "config.vni"),
        ({"vni": "7"}, "config.vni"),
        ({"subnet": None}, "config.subnet"),
        ({"subnet": "10.1.0.1/16"}, "config.subnet"),
        ({"subnet": "10.1.0.0/29"}, "config.subnet"),
        ({"subnet6": "fd00::/120"}, "config.subnet6"),
        ({"host_prefix": 16}, "config.host_prefix"),
        ({"host_prefix": 31}, "config.host_prefix"),
        ({"port": 0}, "config.port"),
        ({"port": 65536}, "config.port"),
        ({"underlay": "10.1.0.9"}, "config.underlay"),
        ({"underlay": "127.0.0.1"}, "config.underlay"),
        ({"underlay": "203.0.113.9"}, "config.underlay"),  # another machine's
        ({"underlay": "nowhere0"}, "config.underlay"),
        ({"mtu": 1200}, "config.mtu"),  # too small for IPv6
        ({"mtu": 65536}, "config.mtu"),
        ({"peers": [PEER | {"host": "h9", "underlay": "192.0.2.9"}]}, "config.peers"),
        ({"peers": [PEER | {"subnet": "10.2.0.0/24"}]}, "config.peers[0].subnet"),
        ({"peers": [PEER, PEER | {"host": "h2", "underlay": "192.0.2.2"}]}, "config.peers[1].subnet"),
        ({"color": "red"}, "config.color"),
    ],
)
def test_a_wrong_config_is_422_with_its_path_and_leaves_nothing(
    built: Lab, host: Host, config: dict[str, Any], field: str
) -> None:
    before = kernels([host])
    answer = post(host, **config)

    assert (answer.status, answer.error["code"]) == (422, "invalid")
    assert list(answer.error["fields"]) == [field]
    assert host.daemon.get("/networks/n").status == 404
    assert kernels([host]) == before
    assert etcd_keys(built) == {"hosts/h1"}


INGRESS: dict[str, Any] = {"direction": "ingress", "peer": {"labels": {"app": "web"}}}
AT = f"networks.{OVERLAY}.policies[0]"


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"direction": "sideways"}, f"{AT}.direction"),
        ({"peer": {}}, f"{AT}.peer"),
        ({"peer": {"labels": {}}}, f"{AT}.peer.labels"),
        ({"peer": {"labels": {"app": 1}}}, f"{AT}.peer.labels"),
        ({"peer": {"handle": "a", "cidr": "10.0.0.0/8"}}, f"{AT}.peer"),
        ({"peer": {"handle": "no spaces"}}, f"{AT}.peer.handle"),
        ({"peer": {"cidr": "10.0.0.1/8"}}, f"{AT}.peer.cidr"),
        ({"peer": {"network": "nowhere"}}, f"{AT}.peer.network"),
        ({"peer": {"group": "a"}}, f"{AT}.peer.group"),
        ({"ports": {"start": 1, "end": 2}}, f"{AT}.ports"),
        ({"protocol": "icmp", "ports": {"start": 1, "end": 2}}, f"{AT}.ports"),
        ({"protocol": "tcp", "ports": {"start": 2, "end": 1}}, f"{AT}.ports"),
        ({"protocol": "tcp", "ports": {"start": 0, "end": 65536}}, f"{AT}.ports.end"),
        ({"protocol": "sctp"}, f"{AT}.protocol"),
        ({"color": "red"}, f"{AT}.color"),
    ],
)
def test_a_wrong_policy_is_422_with_its_path_and_changes_nothing(
    standing: Lab, entry: dict[str, Any], field: str
) -> None:
    daemon = standing.hosts[0].daemon
    answer = daemon.policy("web", **{OVERLAY: {"policies": [INGRESS | entry]}})
    assert (answer.status, answer.error["code"]) == (422, "invalid")
    assert any(one.startswith(field) for one in answer.error["fields"]), answer.error["fields"]
    assert daemon.get("/containers/web").status == 404
    assert not any(key.startswith("policies/") for key in etcd_keys(standing))
