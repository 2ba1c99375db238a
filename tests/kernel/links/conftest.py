"""A kernel in a fresh host namespace, a bridge in it, and two containers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.kernel import Kernel
from conetd.kernel.namespaces import NetNS, open_namespace
from conetd.plan import Plan
from tests.kernel.links_lab import ALIAS, NETWORK, NETWORK_ALIAS, OnHost, RememberingFilter, attachment


@pytest.fixture
def host(netns: NetnsFactory) -> Netns:
    return netns.make("host")


@pytest.fixture
def web(netns: NetnsFactory) -> Netns:
    return netns.make("web")


@pytest.fixture
def db(netns: NetnsFactory) -> Netns:
    return netns.make("db")


@pytest.fixture
def inside(host: Netns, web: Netns) -> Iterator[NetNS]:
    with host.call(open_namespace, web.pid) as opened:
        yield opened


@pytest.fixture
def other(host: Netns, db: Netns) -> Iterator[NetNS]:
    with host.call(open_namespace, db.pid) as opened:
        yield opened


@pytest.fixture
def filter() -> RememberingFilter:
    return RememberingFilter()


@pytest.fixture
def kernel(host: Netns, filter: RememberingFilter) -> Iterator[Kernel]:
    kernel = cast(Kernel, OnHost(host, filter))
    yield kernel
    kernel.close()


@pytest.fixture
def network(kernel: Kernel) -> Plan:
    """A bridge with an address of each family, in the kernel."""
    kernel.ensure(NETWORK, NETWORK_ALIAS)
    return NETWORK


@pytest.fixture
def plan(kernel: Kernel, network: Plan, inside: NetNS) -> Plan:
    """An attachment that is in the kernel."""
    made = attachment(2)
    kernel.ensure(made, ALIAS, inside)
    return made
