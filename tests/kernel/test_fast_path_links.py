"""What becomes of connections beside the filter when a container's link goes, with real connections of two hosts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_netns import NetnsFactory

from conetd.kernel.nft import available
from tests.kernel import tunnel_lab
from tests.kernel.fast_path_lab import (
    Connection,
    elements,
    gauge,
    look,
    on_fast_path,
    raised,
    tables,
    take_up,
    watching,
)
from tests.kernel.tunnel_lab import TunnelLab

pytestmark = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def passing(netns: NetnsFactory) -> Iterator[TunnelLab]:
    """An overlay whose links may go."""
    if not netns.make("asked").call(available):
        pytest.skip("this kernel has no nf_tables")
    lab = tunnel_lab.build(netns, 4)
    lab.reset()
    yield lab
    lab.close()


def test_what_has_lost_its_link_is_not_taken_up(passing: TunnelLab, family: int) -> None:
    host = passing.one
    with (
        Connection(passing.c.netns, passing.a.netns, passing.a.addresses[family]) as connection,
        Connection(passing.d.netns, passing.b.netns, passing.b.addresses[family]) as other,
        watching(host) as busy,
    ):
        look(host, busy)
        for one in (connection, other):
            one.talk()
        host.netns.run("ip", "link", "delete", "cva")  # the way to a is that to the world now
        assert take_up(host, busy) == 2
        assert {one["val"]["concat"][0] for one in elements(host, family)} == {"cvb", "cx0"}
        assert not host.netns.call(host.backend.disturbed)
        other.talk()


def test_a_link_that_goes_takes_nothing_else_with_it(passing: TunnelLab, family: int) -> None:
    host = passing.one
    with Connection(passing.d.netns, passing.b.netns, passing.b.addresses[family]) as other:
        with on_fast_path(passing, family):
            assert raised(host, other) == 2
            host.netns.run("ip", "link", "delete", "cva")
            assert not host.netns.call(host.backend.disturbed)
        with gauge(host) as seen:
            other.talk()
            assert seen.segments == 0
        passing.one.backend.apply(drop=[("Endpoint", "a"), ("EndpointPolicy", "a")])
        assert not tables(host)
        assert raised(host, other) == 2
