"""What the filter tests of both backends share: a lab with a backend in it, and the flows to try."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_netns import NetnsFactory

from tests.kernel.filter_lab import FilterLab, build
from tests.kernel.traffic import FLOWS, Flow

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
