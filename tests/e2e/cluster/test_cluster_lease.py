"""How long a host may be silent before the others take it for dead."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from clustered import OWN

from lab.cluster import Lab
from lab.daemon import eventually

TTL_S = 15  # kept alive every 5 s


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(1, tmp_path_factory.mktemp("lab"), etcd_members=1, ttl=TTL_S) as lab:
        yield lab


def left_s(lab: Lab) -> int:
    """The seconds that the lease of the host has left."""
    [record] = json.loads(lab.etcd.ctl("get", f"{OWN}hosts/h1", "-w", "json"))["kvs"]
    return int(json.loads(lab.etcd.ctl("lease", "timetolive", f"{record['lease']:x}", "-w", "json"))["ttl"])


def test_a_daemon_that_stops_leaves_all_of_its_time_to_the_next(lab: Lab) -> None:
    [host] = lab.hosts
    eventually(lambda: left_s(lab) <= TTL_S - 3, "some of the time is over")
    lab.stop(host)
    assert left_s(lab) > TTL_S - 3
    lab.start(host)


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_daemon_stops_also_without_etcd(lab: Lab, how: str) -> None:
    [host] = lab.hosts
    getattr(lab.etcd, how)()
    assert host.daemon.stop() == 0
    assert "Traceback" not in host.daemon.log
    lab.etcd.restore()
    lab.start(host)
