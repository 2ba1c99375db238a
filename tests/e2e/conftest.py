"""A host with an uplink and a running daemon, for the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_netns import NetnsFactory
from world import Daemon, World


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
