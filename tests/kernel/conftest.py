"""What the filter tests share: a lab with a backend of either kind in it, one with tunnels, and the flows to try."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_netns import NetnsFactory

from conetd.kernel import nft
from tests.kernel import tunnel_lab
from tests.kernel.filter_lab import FilterLab, build
from tests.kernel.traffic import FLOWS, Flow
from tests.kernel.tunnel_lab import TunnelLab

BACKENDS = {
    "nftables": ("conetd.kernel.nft", "NftablesBackend"),
    "iptables": ("conetd.kernel.iptables", "IptablesBackend"),
}


@pytest.fixture(
    scope="module", params=[(name, nf) for name in BACKENDS for nf in (0, 1)], ids=lambda p: f"{p[0]}-nf{p[1]}"
)
def built(request: pytest.FixtureRequest, netns_module: NetnsFactory) -> Iterator[FilterLab]:
    name, bridge_nf = request.param
    module, cls = BACKENDS[name]
    backend = pytest.importorskip(module, reason=f"what the {name} backend needs is not installed")
    if not backend.available():
        pytest.skip(f"this host cannot run the {name} backend")
    lab = build(netns_module, getattr(backend, cls), bridge_nf)
    yield lab
    lab.close()


@pytest.fixture
def lab(built: FilterLab) -> FilterLab:
    """Everything at rest: containers without a policy of their own, on networks that deny one address."""
    built.reset()
    return built


@pytest.fixture(params=FLOWS, ids=str)
def flow(request: pytest.FixtureRequest) -> Flow:
    """TCP and UDP over IPv4 and IPv6."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=[4, 6], ids=["underlay4", "underlay6"])
def built_tunnel(request: pytest.FixtureRequest, netns_module: NetnsFactory) -> Iterator[TunnelLab]:
    if not netns_module.make("asked").call(nft.available):
        pytest.skip("this kernel has no nf_tables")
    made = tunnel_lab.build(netns_module, request.param)
    yield made
    made.close()


@pytest.fixture
def tunnel(built_tunnel: TunnelLab) -> TunnelLab:
    """An overlay of two hosts at rest: everybody may reach everybody."""
    built_tunnel.reset()
    return built_tunnel
