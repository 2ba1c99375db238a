"""Hosts with a daemon each on one etcd of three members, shared by the tests of a module, and empty for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clustered import clear, define, is_in_use, wait_for_members, wait_until_connected
from pytest_netns import missing as missing_for_namespaces

from lab.cluster import Lab
from lab.etcd import missing as missing_for_etcd
from lab.hosts import Host

TTL_S = 5


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where there can be no lab."""
    reason = missing_for_namespaces() or missing_for_etcd()
    for item in items:
        if reason is not None and "cluster" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def hosts() -> int:
    """How many hosts a module's lab has; for modules to override."""
    return 3


@pytest.fixture(scope="module")
def settings() -> str:
    """More of the daemons' settings, as TOML; for modules to override."""
    return ""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, hosts: int, settings: str) -> Iterator[Lab]:
    """The module's lab."""
    with Lab(hosts, tmp_path_factory.mktemp("lab"), ttl=TTL_S, settings=settings) as lab:
        yield lab
        for host in lab.hosts:
            assert [line for line in host.daemon.log.splitlines() if "Traceback" in line] == []


@pytest.fixture
def lab(built: Lab) -> Iterator[Lab]:
    """The lab without networks and containers; what a test did to it is undone."""
    with built.restored():
        wait_until_connected(built)
        if is_in_use(built):  # what the test before left could not be taken away
            clear(built)
        yield built
    wait_until_connected(built)
    clear(built)


@pytest.fixture
def overlay(lab: Lab) -> Lab:
    """The lab with the network `overlay` on all hosts."""
    assert {answer.status for answer in define(lab.hosts)} == {201}
    wait_for_members(lab.hosts)
    return lab


@pytest.fixture
def three(lab: Lab) -> list[Host]:
    """Of a lab of four the hosts that are on the network; the fourth is not."""
    assert {answer.status for answer in define(lab.hosts[:3])} == {201}
    wait_for_members(lab.hosts[:3])
    return lab.hosts[:3]


@pytest.fixture
def fourth(lab: Lab) -> Host:
    return lab.hosts[3]
