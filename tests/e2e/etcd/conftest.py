"""An etcd, or three members of one, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd import EtcdCluster, missing
from pytest_netns import Netns, NetnsFactory

from conetd.cluster.etcd import Etcd
from conetd.cluster.messages import delete_below


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where there is no etcd."""
    if (reason := missing()) is not None:
        for item in items:
            if "etcd" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def single(netns_module: NetnsFactory, tmp_path_factory: pytest.TempPathFactory) -> EtcdCluster:
    """An etcd of one member that no test harms."""
    cluster = EtcdCluster.on_loopback(netns_module.make("etcd"), tmp_path_factory.mktemp("etcd"), 1)
    cluster.start()
    return cluster


@pytest.fixture
def place(single: EtcdCluster) -> Iterator[Netns]:
    """Where that etcd is; the test is there too, and finds it empty."""
    netns = single.home
    with netns.inside():
        yield netns


@pytest.fixture
def etcd(single: EtcdCluster, place: Netns) -> Iterator[Etcd]:
    """A client of that etcd."""
    with Etcd(single.endpoints, timeout_s=5) as client:
        client.commit([], [delete_below("")])
        yield client


@pytest.fixture
def home(netns: NetnsFactory) -> Netns:
    """A namespace for members and clients."""
    return netns.make("etcd")


@pytest.fixture
def trio(home: Netns, tmp_path: Path) -> Iterator[EtcdCluster]:
    """Three members on one loopback, where the test is, too."""
    cluster = EtcdCluster.on_loopback(home, tmp_path)
    cluster.start()
    with home.inside():
        yield cluster


@pytest.fixture
def client(trio: EtcdCluster) -> Iterator[Etcd]:
    """A client of the three."""
    with Etcd(trio.endpoints, timeout_s=1) as client:
        yield client
