"""A host with an uplink and a running daemon, for the end-to-end tests."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from garden import Garden
from guardian import Guardian
from onehost import Lab, Machine, build
from played import guardian_on
from pytest_netns import Netns, NetnsFactory
from traffic import FLOWS, Flow, Services
from world import Daemon, World

from conetd.kernel import iptables, nft

_AVAILABLE = {"nftables": nft.available, "iptables": iptables.available}
_numbers = itertools.count(1)


@pytest.fixture(params=["nftables"])
def world(netns: NetnsFactory, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A host with an uplink (192.0.2.1, 2001:db8::1) towards an outside machine (.2), and a running daemon."""
    host, outside = netns.make("host"), netns.make("outside")
    host.connect(
        outside,
        "192.0.2.1/24",
        "192.0.2.2/24",
        name="up0",
        peer_name="eth0",
        extra={"2001:db8::1/64": "2001:db8::2/64"},
    )
    host.run("ip", "route", "add", "default", "via", "192.0.2.2")
    host.run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
    daemon = Daemon(host, tmp_path, f'filter = "{request.param}"')
    daemon.start()
    yield World(netns, host, outside, daemon)
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop()
    text = daemon.log
    assert "Traceback" not in text, text


@pytest.fixture
def guardian(world: World, tmp_path: Path) -> Guardian:
    """A Guardian on the world's host, whose network plugin is conet-hook."""
    return guardian_on(world, tmp_path)


@pytest.fixture
def services() -> Iterator[Services]:
    """Services for the length of the test."""
    with contextlib.closing(Services()) as services:
        yield services


@pytest.fixture(scope="module")
def prepare() -> Callable[[Netns], None]:
    """What is done to the lab's host before the daemon starts; for modules to override."""
    return lambda host: None


@pytest.fixture(scope="module", params=list(_AVAILABLE))
def bare_lab(
    netns_module: NetnsFactory,
    tmp_path_factory: pytest.TempPathFactory,
    prepare: Callable[[Netns], None],
    request: pytest.FixtureRequest,
) -> Iterator[Lab]:
    """What all tests of a module share, once for each filter backend: host, neighbours and daemon, no network yet."""
    if not _AVAILABLE[request.param]():
        pytest.skip(f"this host cannot run the {request.param} backend")
    lab = build(netns_module, tmp_path_factory.mktemp("lab"), request.param, before=prepare)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """The lab with the networks and containers of a module, which overrides this fixture."""
    return bare_lab


@pytest.fixture
def lab(built: Lab) -> Iterator[Lab]:
    """The module's lab at rest: no container has a policy of its own. What a test makes in it is gone afterwards."""
    built.reset()
    with built.restored():
        yield built


@pytest.fixture
def guests(lab: Lab) -> Callable[..., Machine]:
    """Makes containers, each of a name of its own."""

    def make(*networks: Any, netns: Netns | None = None) -> Machine:
        return lab.container(f"guest{next(_numbers)}", *networks, netns=netns)

    return make


@pytest.fixture
def a(lab: Lab) -> Machine:
    """The lab's container of that name, as far as its module has made one."""
    return lab.containers["a"]


@pytest.fixture
def b(lab: Lab) -> Machine:
    """See `a`."""
    return lab.containers["b"]


@pytest.fixture
def c(lab: Lab) -> Machine:
    """See `a`."""
    return lab.containers["c"]


@pytest.fixture
def garden(lab: Lab) -> Iterator[Garden]:
    """A client of Garden's; what it asked for is taken back after the test."""
    client = Garden(lab.daemon)
    yield client
    lab.revive()  # the test may have failed without a daemon
    client.reset()


@pytest.fixture(params=FLOWS, ids=str)
def flow(request: pytest.FixtureRequest) -> Flow:
    """TCP and UDP over IPv4 and IPv6."""
    found: Flow = request.param
    return found


@pytest.fixture(params=[0, 1], ids=["nf0", "nf1"])
def bridge_nf(built: Lab, request: pytest.FixtureRequest) -> Iterator[int]:
    """The host's bridge-nf-call-iptables and -ip6tables, off and on."""
    built.bridge_netfilter(request.param)
    yield request.param
    built.bridge_netfilter(0)
