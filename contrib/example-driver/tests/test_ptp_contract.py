"""The ptp driver keeps conetd's driver contract."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from conetd_ptp import PtpDriver

from conetd.driver import Attachment, Conflict, Exhausted, Invalid, Requested
from conetd.testing import DriverConformance, KernelConformance, Sample

SAMPLE = Sample(
    type="ptp",
    driver=PtpDriver,
    config={"subnet": "10.7.0.0/24"},
    another_config={"subnet": "10.8.0.0/30", "mtu": 1400, "masquerade": False},
    invalid_configs=[{}, {"subnet": "fd00::/64"}, {"subnet": "10.7.0.0/24", "mtu": 0}],
    policies=[{"allow": []}, {"allow": ["192.0.2.0/24", "10.7.0.0/24"]}],
    invalid_policies=[{"allow": "all"}, {"allow": ["10.7.0.1/24"]}],
)


class TestContract(DriverConformance):
    sample = SAMPLE


class TestOnKernel(KernelConformance):
    sample = SAMPLE


def allocate(requested: Requested, held: frozenset[str] = frozenset()) -> str:
    network = SAMPLE.network("red", SAMPLE.another_config)
    lease = PtpDriver().allocate(network, Attachment("red", "web", "key", "eth0", requested), held)
    return str(lease.data["ip"])


def test_every_address_of_the_subnet_is_for_a_container() -> None:
    held: frozenset[str] = frozenset()
    for wanted in ("10.8.0.0", "10.8.0.1", "10.8.0.2", "10.8.0.3"):
        assert allocate(Requested(), held) == wanted
        held |= {f"ip:{wanted}"}

    with pytest.raises(Exhausted, match=r'network "red" is full: all of 10.8.0.0/30 is taken'):
        allocate(Requested(), held)


def test_a_requested_address_is_given() -> None:
    assert allocate(Requested(ip=ip_address("10.8.0.2"))) == "10.8.0.2"


@pytest.mark.parametrize(
    ("requested", "field"),
    [
        (Requested(ip=ip_address("10.9.0.2")), "ip"),
        (Requested(ip6=ip_address("fd00::2")), "ip6"),
        (Requested(mac="02:00:00:00:00:01"), "mac"),
    ],
)
def test_what_cannot_be_had_is_refused_at_its_field(requested: Requested, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        allocate(requested)

    assert list(refused.value.fields) == [field]


def test_an_address_that_is_held_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="is already taken"):
        allocate(Requested(ip=ip_address("10.8.0.2")), frozenset({"ip:10.8.0.2"}))


def test_overlapping_subnets_are_a_conflict() -> None:
    blue = SAMPLE.network()

    with pytest.raises(Conflict, match='overlaps that of network "blue"'):
        PtpDriver().check_network(replace(blue, name="green"), [blue])
