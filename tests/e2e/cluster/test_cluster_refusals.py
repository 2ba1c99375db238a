"""Whether what cannot be is refused in one sentence that names it, over the real API, and nothing of it is left."""

from __future__ import annotations

from typing import Any

import pytest
from clustered import CONFIG, define, etcd_keys, kernels, part_of, told, wait_for_members

from lab.cluster import Lab
from lab.daemon import Answer, eventually
from lab.hosts import OVERLAY, Host


@pytest.fixture(scope="module")
def hosts() -> int:
    return 2


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.hosts[0]


def post(host: Host, name: str = "n", **config: Any) -> Answer:
    given = {key: value for key, value in (CONFIG | config).items() if value is not None}
    return host.daemon.post("/networks", {"name": name, "type": "vxlan", "config": given})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"vni": 100, "subnet": "10.9.0.0/16", "subnet6": None}, "VNI 100"),
        ({"vni": 9, "subnet": "10.1.128.0/17", "subnet6": None}, "10.1.0.0/16"),
        ({"vni": 9, "subnet": "10.9.0.0/16", "subnet6": "fd00:10:1::/80"}, "fd00:10:1::/64"),
    ],
)
def test_what_cannot_stand_beside_another_network_is_409_naming_both(
    overlay: Lab, config: dict[str, Any], words: str
) -> None:
    host = overlay.hosts[0]
    before = kernels([host])
    answer = post(host, "second", **config)
    assert answer.status == 409
    assert words in answer.error["message"]
    assert '"overlay"' in answer.error["message"]
    assert kernels([host]) == before
    assert not any("second" in key for key in etcd_keys(overlay))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"vni": 101}, "config.vni is 100, not 101"),
        ({"port": 4790}, "config.port is 4789, not 4790"),
        ({"mtu": 1400}, "config.mtu is left out, not 1400"),
        ({"host_prefix": 25}, "config.host_prefix is 24, not 25"),
    ],
)
def test_another_definition_than_the_other_hosts_is_409_naming_the_field(
    lab: Lab, config: dict[str, Any], words: str
) -> None:
    one, other = lab.hosts
    assert define([one])[0].status == 201
    answer = post(other, OVERLAY, **config)
    assert answer.status == 409
    assert words in answer.error["message"]
    assert other.daemon.get(f"/networks/{OVERLAY}").status == 404
    assert f"leases/{OVERLAY}/{other.name}" not in etcd_keys(lab)


def test_another_default_policy_than_the_other_hosts_is_409_too(lab: Lab) -> None:
    one, other = lab.hosts
    assert define([one])[0].status == 201
    [answer] = define([other], policy={"log_denied": True})
    assert answer.status == 409
    assert "default_policy.log_denied is false, not true" in answer.error["message"]


def test_hosts_may_differ_in_their_underlay(lab: Lab) -> None:
    one, other = lab.hosts
    assert post(one, OVERLAY, underlay="eth0").status == 201
    assert post(other, OVERLAY, underlay=other.addresses[4]).status == 201
    wait_for_members(lab.hosts)


def test_addresses_that_are_not_of_this_hosts_part_are_refused(overlay: Lab) -> None:
    one, other = overlay.hosts
    theirs = part_of(other).replace(".0/24", "")

    def up(**asked: str) -> Answer:
        config = {"attach_to": [{"network": OVERLAY, **asked}]}
        assert one.daemon.put("/containers/c/config", config).status in (200, 201)
        return one.daemon.up("c", overlay.outside)

    before = kernels([one])
    for asked in ({"ip": f"{theirs}.7"}, {"ip": part_of(one).removesuffix("/24")}, {"ip6": "fd00:99::7"}):
        answer = up(**asked)
        assert answer.status == 422, asked
        assert next(iter(asked.values())) in answer.error["message"]
        assert kernels([one]) == before
    mine = part_of(one).replace(".0/24", "")
    made = one.container("c", networks=[{"network": OVERLAY, "ip": f"{mine}.77"}])
    assert made.addresses[4] == f"{mine}.77"


def test_a_second_host_of_the_same_name_joins_nothing_and_says_so(lab: Lab) -> None:
    one, other = lab.hosts
    assert define([one])[0].status == 201
    lab.stop(other)
    settings = other.daemon.settings
    try:
        other.daemon.settings = settings.replace('host = "h2"', 'host = "h1"')
        lab.start(other)
        eventually(lambda: 'another host calls itself "h1"' in told(other).get("problem", ""), "it says so")
        assert define([other])[0].status == 503
        assert other.daemon.get("/status").status == 503
        assert one.daemon.get("/status").status == 200
    finally:
        lab.stop(other)
        other.daemon.settings = settings
        lab.start(other)
