"""What is said when another VTEP or program has the VNI or the UDP port that a VTEP needs."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from pytest_netns import Netns

from conetd.errors import KernelError
from conetd.kernel import Kernel
from conetd.plan import Plan
from tests.kernel.overlay_lab import ALIAS, NETWORK, VTEP

PLAN = Plan(links=(VTEP,))


def foreign(host: Netns, settings: str, *, up: bool = True) -> None:
    host.run(*f"ip link add foreign0 {'up' if up else ''} type vxlan local 192.0.2.9 {settings}".split())


def test_another_vtep_on_the_same_port_with_the_same_settings_is_fine(kernel: Kernel, host: Netns) -> None:
    foreign(host, "id 9 dstport 4790 gbp")
    kernel.ensure(NETWORK, ALIAS)
    assert kernel.diff(NETWORK, None, ALIAS) == []


def test_two_vteps_of_ours_share_a_port(kernel: Kernel) -> None:
    second = Plan(links=(replace(VTEP, name="vx8", vni=8, mac="ee:ee:0a:90:00:00"),))
    kernel.ensure(PLAN, ALIAS)
    kernel.ensure(second, ALIAS)
    assert kernel.diff(PLAN) == kernel.diff(second) == []


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_a_vni_that_is_taken_is_told_with_its_holder(kernel: Kernel, host: Netns, up: bool) -> None:
    foreign(host, "id 7 dstport 4790 gbp", up=up)
    with pytest.raises(KernelError) as failure:
        kernel.ensure(PLAN, ALIAS)
    assert str(failure.value) == (
        "could not create link vx7: File exists (VNI 7 on UDP port 4790 is taken by link foreign0)"
    )


@pytest.mark.parametrize("times", [1, 2], ids=["at first", "again"])
def test_a_port_held_with_other_settings_is_told_with_its_holder(kernel: Kernel, host: Netns, times: int) -> None:
    foreign(host, "id 9 dstport 4790")
    for _ in range(times):
        with pytest.raises(KernelError) as failure:
            kernel.ensure(PLAN, ALIAS)
    assert str(failure.value) == (
        "could not settle link vx7: Address already in use "
        "(UDP port 4790 is held by link foreign0, a VTEP without group policy marks)"
    )


def test_a_port_held_by_a_program_is_told_whatever_vteps_there_are_on_others(kernel: Kernel, host: Netns) -> None:
    foreign(host, "id 7 dstport 4791 gbp")
    with host.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.bind(("0.0.0.0", 4790))
        with pytest.raises(KernelError, match=r"\(UDP port 4790 is held by another program\)"):
            kernel.ensure(PLAN, ALIAS)


def test_a_vtep_that_was_refused_works_once_the_way_is_free(kernel: Kernel, host: Netns) -> None:
    foreign(host, "id 9 dstport 4790")
    with pytest.raises(KernelError):
        kernel.ensure(NETWORK, ALIAS)
    host.run("ip", "link", "del", "foreign0")
    kernel.ensure(NETWORK, ALIAS)
    assert kernel.diff(NETWORK, None, ALIAS) == []


def test_a_strangers_vtep_of_the_wanted_name_is_told_as_a_strangers(kernel: Kernel, host: Netns) -> None:
    host.run(*["ip", "link", "add", "vx7", "type", "vxlan", "id", "9", "dstport", "4791", "local", "192.0.2.9"])
    with pytest.raises(KernelError, match=r"could not create link vx7: File exists \(it is somebody else's"):
        kernel.ensure(PLAN, ALIAS)
