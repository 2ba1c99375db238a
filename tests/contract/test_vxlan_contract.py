"""The vxlan driver keeps the contract, on paper and on a real kernel."""

from __future__ import annotations

from conetd_vxlan import VxlanDriver

from conetd.testing import DriverConformance, KernelConformance, Sample

SAMPLE = Sample(
    type="vxlan",
    driver=VxlanDriver,
    config={"vni": 7, "subnet": "10.1.0.0/16", "deny_networks": ["10.9.0.0/16"], "dns_servers": ["192.0.2.1"]},
    another_config={"vni": 8, "subnet": "10.2.0.0/24", "subnet6": "fd00:2::/64", "port": 4790, "mtu": 1400},
    invalid_configs=[
        {},
        {"subnet": "10.1.0.0/16"},
        {"vni": 7, "subnet": "10.1.0.0/29"},
        {"vni": 0, "subnet": "10.1.0.0/16"},
    ],
    policies=[
        {"policies": [{"direction": "ingress", "peer": {"labels": {"app": "web"}}}], "log_denied": True},
        {
            "policies": [
                {
                    "direction": "ingress",
                    "peer": {"handle": "web"},
                    "protocol": "tcp",
                    "ports": {"start": 80, "end": 90},
                },
                {"direction": "ingress", "peer": {"network": "blue"}, "protocol": "udp", "log": True},
                {"direction": "egress", "peer": {"labels": {"app": "db"}}},
                {"direction": "egress", "peer": {"cidr": "198.51.100.0/24"}},
            ],
            "net_out": [{"protocol": 2, "ports": [{"start": 53, "end": 53}]}],
            "deny_networks": ["0.0.0.0/0"],
            "default_ingress": "allow",
        },
    ],
    invalid_policies=[
        {"policies": [{"direction": "ingress"}]},
        {"policies": [{"direction": "ingress", "peer": {"handle": "web", "cidr": "10.0.0.0/8"}}]},
        {"default_ingress": "maybe"},
    ],
)

SAMPLE6 = Sample(
    type="vxlan",
    driver=VxlanDriver,
    config={"vni": 9, "subnet": "10.3.0.0/16", "subnet6": "fd00:3::/64", "host_prefix": 26, "underlay": "up0"},
    policies=[{"policies": [{"direction": "ingress", "peer": {"cidr": "fd00::/8"}, "protocol": "icmpv6"}]}],
)
SAMPLE_WITHOUT_STORE = Sample(
    type="vxlan",
    driver=VxlanDriver,
    config={
        "vni": 11,
        "subnet": "10.5.0.0/16",
        "peers": [
            {"host": f"host-{number}", "underlay": f"192.0.2.{number}", "subnet": f"10.5.{number}.0/24"}
            for number in (1, 2, 3)
        ],
    },
)


class TestContract(DriverConformance):
    sample = SAMPLE


class TestContractWithIpv6(DriverConformance):
    sample = SAMPLE6


class TestContractWithoutAStore(DriverConformance):
    sample = SAMPLE_WITHOUT_STORE


class TestOnKernel(KernelConformance):
    sample = SAMPLE


class TestOnKernelWithIpv6(KernelConformance):
    sample = SAMPLE6


class TestOnKernelWithoutAStore(KernelConformance):
    sample = SAMPLE_WITHOUT_STORE
