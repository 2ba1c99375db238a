"""The conformance suite for drivers: what every network type must do, as tests to inherit.

    from conetd.testing import DriverConformance, KernelConformance, Sample

    SAMPLE = Sample(type="acme", driver=AcmeDriver, config={"subnet": "10.1.0.0/24"})

    class TestContract(DriverConformance):
        sample = SAMPLE

    class TestOnKernel(KernelConformance):
        sample = SAMPLE

`DriverConformance` needs pytest and hypothesis, and no root. `KernelConformance` works on a real kernel in namespaces
of its own: it needs root, `ip`, `nft` and the plugin pytest-netns, and is skipped with the reason without root.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("conetd.testing.contract", "conetd.testing.on_kernel")

from conetd.testing.contract import DriverConformance  # noqa: E402  # only now are its assertions explained
from conetd.testing.on_kernel import KernelConformance  # noqa: E402
from conetd.testing.sample import Sample  # noqa: E402

__all__ = ["DriverConformance", "KernelConformance", "Sample"]
