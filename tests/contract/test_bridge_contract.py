"""The bridge driver keeps the contract, on paper and on a real kernel."""

from __future__ import annotations

import pytest
from conetd_bridge import BridgeDriver

from conetd.testing import DriverConformance, KernelConformance, Sample

SAMPLE = Sample(
    type="bridge",
    driver=BridgeDriver,
    config={"subnet": "10.1.0.0/24", "deny_networks": ["10.9.0.0/16"]},
    another_config={"subnet": "10.2.0.0/28", "subnet6": "fd00:2::/64", "isolated": True, "mtu": 1400},
    invalid_configs=[{}, {"subnet": "10.1.0.5/24"}, {"subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}],
    policies=[
        {"net_out": [{"protocol": 1, "networks": [{"start": "192.0.2.0", "end": "192.0.2.255"}]}]},
        {
            "net_in": [{"host_port": 8080, "container_port": 80}, {"host_port": 0, "protocol": "udp"}],
            "net_out": [
                {"protocol": 3, "icmps": {"type": 8, "code": 0}},
                {"protocol": 2, "ports": [{"start": 53, "end": 53}], "log": True},
            ],
            "deny_networks": ["0.0.0.0/0"],
            "log_denied": True,
        },
    ],
    invalid_policies=[{"net_out": [{"protocol": 9}]}, {"net_in": [{"host_port": 99999}]}],
)

SAMPLE6 = Sample(
    type="bridge",
    driver=BridgeDriver,
    config={"subnet": "10.3.0.0/24", "subnet6": "fd00:3::/64", "isolated": True},
    policies=[{"net_in": [{"host_port": 8080}], "deny_networks": ["::/0"], "net_out": [{"protocol": "icmpv6"}]}],
)


class TestContract(DriverConformance):
    sample = SAMPLE


class TestContractWithIpv6(DriverConformance):
    sample = SAMPLE6


class TestOnKernel(KernelConformance):
    sample = SAMPLE


class TestOnKernelWithIpv6(KernelConformance):
    sample = SAMPLE6


class TestOnIptables(KernelConformance):
    sample = SAMPLE
    filter = "iptables"

    @pytest.fixture(autouse=True)
    def _extra(self) -> None:
        pytest.importorskip("iptc", reason="needs the extra conetd[iptables]")
