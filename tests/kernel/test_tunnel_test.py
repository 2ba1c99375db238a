"""The test packet through a pair of VTEPs: what it finds, what it leaves behind; and what rp_filter would drop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.errors import KernelError
from conetd.kernel import links
from conetd.kernel.netlink import NETLINK_ROUTE, NLM_F_ACK, NLM_F_CREATE, Netlink, attribute, message
from conetd.kernel.tunnel_test import rp_filter_fault, tunnel_fault
from conetd.plan import Vxlan
from tests.kernel.overlay_lab import VTEP

KINDS = {
    "IPv4 underlay": VTEP,
    "IPv6 underlay": replace(VTEP, local=ip_address("2001:db8:7::1"), mtu=1430),
    "no marks": replace(VTEP, gbp=False),
    "large frames": replace(VTEP, mtu=8950),
}
SIX = KINDS["IPv6 underlay"]


@pytest.fixture
def host(netns: NetnsFactory) -> Netns:
    return netns.make("host")


@pytest.fixture
def born_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Vxlan], Vxlan], bytes], None]:
    """Have VTEPs made otherwise than they are planned, with a further setting."""

    def break_them(change: Callable[[Vxlan], Vxlan], setting: bytes) -> None:
        encode = links._vxlan_data
        monkeypatch.setattr(links, "_vxlan_data", lambda link: _with(encode(change(link)), setting))

    return break_them


def _with(nested: bytes, setting: bytes) -> bytes:
    return attribute(links.INFO_DATA | 0x8000, nested[4:] + setting)


def same(link: Vxlan) -> Vxlan:
    return link


@pytest.mark.parametrize("wanted", KINDS.values(), ids=KINDS)
def test_a_packet_comes_through(host: Netns, wanted: Vxlan) -> None:
    assert host.call(tunnel_fault, wanted) is None


def test_marks_that_get_lost_are_told(host: Netns, born_with: Any) -> None:
    born_with(lambda link: replace(link, gbp=False), b"")
    fault = host.call(tunnel_fault, VTEP)
    assert fault == "a packet sent through a VTEP arrives with the mark 0x0, not 0x1234"


def test_packets_without_a_checksum_that_the_other_host_drops_are_told_in_time(host: Netns, born_with: Any) -> None:
    born_with(same, attribute(19, b"\1"))  # IFLA_VXLAN_UDP_ZERO_CSUM6_TX
    before = time.monotonic()
    fault = host.call(tunnel_fault, SIX)
    assert fault == "a packet of 1430 bytes sent through a VTEP with the UDP port 4790 does not arrive"
    assert time.monotonic() - before < 2


def test_a_test_that_cannot_be_made_is_no_verdict(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = message(links.RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE, bytes(16))
    monkeypatch.setattr("conetd.kernel.batch.links.create_link", lambda *_: refused)
    with pytest.raises(KernelError, match="could not create link vx7: "):
        host.call(tunnel_fault, VTEP)


@pytest.mark.parametrize("gbp", [True, False], ids=["well", "ill"])
def test_nothing_is_left_behind(host: Netns, born_with: Any, gbp: bool) -> None:
    def look() -> object:
        threads = [thread.name for thread in threading.enumerate()]
        netns = os.readlink("/proc/thread-self/ns/net")  # noqa: PTH115
        return threads, len(list(Path("/proc/self/fd").iterdir())), netns, host.json("ip", "-j", "link")

    def run() -> None:
        before = look()
        if not gbp:
            born_with(lambda link: replace(link, gbp=False), b"")
        assert (tunnel_fault(VTEP) is None) is gbp
        assert look() == before

    host.call(run)


def judge(host: Netns, interface: str, source: str) -> str | None:
    def ask() -> str | None:
        with Netlink(NETLINK_ROUTE) as netlink:
            return rp_filter_fault(netlink, interface, ip_address(source))

    return host.call(ask)


@pytest.fixture
def underlay(host: Netns, netns: NetnsFactory) -> Netns:
    """A host with two uplinks and a default route by the first, whose rp_filter is off to begin with."""
    world = netns.make("world")
    for number in (0, 1):
        host.connect(world, f"192.0.{number}.1/24", f"192.0.{number}.2/24", name=f"up{number}", peer_name=f"up{number}")
    host.run("ip", "route", "add", "default", "via", "192.0.0.2")
    for name in ("all", "up0", "up1"):
        host.sysctl(f"net/ipv4/conf/{name}/rp_filter", 0)
    return host


STRICT = "rp_filter is 1 on up1, which drops packets from 203.0.113.7: the route back leads by another interface"
MODES = [
    ({"all": 0, "up1": 0}, "up1", "203.0.113.7", None),
    ({"all": 1, "up1": 0}, "up1", "203.0.113.7", STRICT),
    ({"all": 0, "up1": 1}, "up1", "203.0.113.7", STRICT),
    ({"all": 1, "up1": 2}, "up1", "203.0.113.7", None),
    ({"all": 1, "up1": 1}, "up1", "192.0.1.77", None),
    ({"all": 1, "up0": 1}, "up0", "203.0.113.7", None),
    ({"all": 1, "up1": 1}, "up1", "2001:db8::7", None),
]


@pytest.mark.parametrize(("modes", "interface", "source", "told"), MODES)
def test_what_rp_filter_would_drop_is_told(
    underlay: Netns, modes: dict[str, int], interface: str, source: str, told: str | None
) -> None:
    for name, mode in modes.items():
        underlay.sysctl(f"net/ipv4/conf/{name}/rp_filter", mode)
    assert judge(underlay, interface, source) == told


@pytest.mark.parametrize("mode", [1, 2])
def test_without_any_route_back_both_modes_drop(underlay: Netns, mode: int) -> None:
    underlay.run("ip", "route", "del", "default")
    underlay.sysctl("net/ipv4/conf/up1/rp_filter", mode)
    assert judge(underlay, "up1", "203.0.113.7") == (
        f"rp_filter is {mode} on up1, which drops packets from 203.0.113.7: no route leads back"
    )


def test_without_any_route_back_nothing_is_dropped_where_it_is_off(underlay: Netns) -> None:
    underlay.run("ip", "route", "del", "default")
    assert judge(underlay, "up1", "203.0.113.7") is None


@pytest.mark.parametrize("interface", ["up0", "up1"])
def test_each_way_of_a_route_with_several_is_good_for_rp_filter(underlay: Netns, interface: str) -> None:
    hops = "nexthop via 192.0.0.2 nexthop via 192.0.1.2"
    underlay.run("ip", "route", "add", "203.0.113.0/24", *hops.split())
    underlay.sysctl(f"net/ipv4/conf/{interface}/rp_filter", 1)
    assert judge(underlay, interface, "203.0.113.7") is None
