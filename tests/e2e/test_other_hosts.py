"""Hosts that are routers already, have no uplink, get one later, or change the filter; and odd networks and handles."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from onehost import DENIED, DENY, DMZ, OUTSIDE, SERVICE, UP, Lab, build
from pytest_netns import Netns, NetnsFactory
from stream import Stream
from traffic import FLOWS, REFUSED, SILENT, Flow, Talk
from world import eventually

from conetd.kernel import iptables, nft

Make = Callable[..., Lab]
A_FEW = 10


def require(backend: str) -> None:
    """Skip the test where this backend cannot be had."""
    if not {"nftables": nft.available, "iptables": iptables.available}[backend]():
        pytest.skip(f"this host cannot run the {backend} backend")


@pytest.fixture
def make(netns: NetnsFactory, tmp_path: Path) -> Iterator[Make]:
    """Makes a lab on a host that is prepared first."""
    with contextlib.ExitStack() as stack:

        def start(backend: str, before: Callable[[Netns], object] = repr) -> Lab:
            require(backend)
            lab = build(netns, tmp_path, backend, before=before)
            stack.callback(lab.close)
            for flow in FLOWS:
                for machine in (lab.host, lab.outside, lab.dmz):
                    lab.serve(machine, flow)
            return lab

        yield start


@pytest.fixture(params=["nftables", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def routing(host: Netns) -> None:
    host.sysctl("net/ipv4/ip_forward", 1)
    host.sysctl("net/ipv6/conf/all/forwarding", 1)


def test_a_host_that_routed_before_goes_on_routing(make: Make, backend: str) -> None:
    lab = make(backend, routing)
    lab.daemon.network("blue", subnet6="fd00:10::/64")
    lab.container("a", "blue")
    for flow in FLOWS:
        assert lab.reach(lab.dmz, flow, OUTSIDE[flow.family]) == f"outside {DMZ[flow.family]}"
        assert lab.reach(lab.containers["a"], flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
    lab.remove(lab.containers["a"])
    assert lab.daemon.delete("/networks/blue").status == 204
    for flow in FLOWS:
        assert lab.reach(lab.dmz, flow, OUTSIDE[flow.family]) == f"outside {DMZ[flow.family]}"


def without_uplinks(host: Netns) -> None:
    for link in ("up0", "dmz0"):
        host.run("ip", "link", "set", link, "down")
        host.run("ip", "addr", "flush", "dev", link)


def test_containers_of_a_host_without_an_uplink_talk_and_use_it_once_it_is_there(make: Make, backend: str) -> None:
    lab = make(backend, without_uplinks)
    lab.daemon.network("blue", subnet6="fd00:10::/64")
    a, b = (lab.container(name, "blue") for name in "ab")
    for flow in FLOWS:
        lab.serve(b, flow)
        assert lab.reach(a, flow, b.addresses[flow.family]) == f"b {a.addresses[flow.family]}"
    lab.host.netns.run("ip", "link", "set", "up0", "up")
    for version in (4, 6):
        plain = (f"{UP[4]}/24",) if version == 4 else (f"{UP[6]}/64", "nodad")
        lab.host.netns.run("ip", "addr", "add", plain[0], "dev", "up0", *plain[1:])
        lab.host.netns.run("ip", f"-{version}", "route", "add", "default", "via", OUTSIDE[version])
    for flow in FLOWS:
        answer = f"outside {UP[flow.family]}"
        eventually(lambda f=flow, w=answer: lab.miss(a, f, OUTSIDE[f.family]) == w, f"{flow} finds the uplink")  # type: ignore[misc]


@pytest.mark.parametrize(("first", "second"), [("nftables", "iptables"), ("iptables", "nftables")])
def test_changing_the_filter_is_a_migration_without_a_hole(make: Make, first: str, second: str) -> None:
    require(second)
    lab = make(first)
    lab.daemon.network("blue", subnet6="fd00:10::/64", deny_networks=DENY)
    a = lab.container("a", "blue")
    lab.policy(a, blue={"net_in": [{"host_port": 7000, "container_port": SERVICE}]})
    lab.serve(a, Flow("tcp", 4))
    with contextlib.ExitStack() as stack:
        egress = stack.enter_context(Talk(a.netns, FLOWS[0], OUTSIDE[4], SERVICE))
        ingress = stack.enter_context(Talk(lab.outside.netns, FLOWS[0], UP[4], 7000))
        passes = [stack.enter_context(Stream(lab, a, OUTSIDE[version])) for version in (4, 6)]
        stopped = [stack.enter_context(Stream(lab, a, DENIED[version])) for version in (4, 6)]
        lab.daemon.stop()
        lab.daemon.settings = lab.daemon.settings.replace(first, second)
        lab.daemon.start()
        assert [talk.say() for talk in (egress, ingress)] == [egress.first, ingress.first]
        assert [one.arrived() for one in stopped] == [0, 0]
        # new tables let no new connection through until they are complete, which takes less than a millisecond
        assert [one.arrived() > one.sent - A_FEW for one in passes] == [True, True]
    assert lab.daemon.get("/status").body["filter"]["backend"] == second
    for flow in FLOWS:
        assert lab.reach(a, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
        assert lab.reach(a, flow, DENIED[flow.family]) == REFUSED
    assert lab.reach(lab.outside, FLOWS[0], UP[4], 7000) == f"a {OUTSIDE[4]}"
    tables = lab.host.netns.run("nft", "list", "tables").stdout
    saved = lab.host.netns.run("iptables-legacy-save").stdout + lab.host.netns.run("ip6tables-legacy-save").stdout
    assert ("conetd" in tables, "conetd" in saved) == (second == "nftables", second == "iptables")
    assert f"filter changed from={first} to={second}" in lab.daemon.log


def test_a_network_may_choose_its_gateway_range_bridge_and_addresses(make: Make, backend: str) -> None:
    lab = make(backend)
    lab.daemon.network(
        "own",
        subnet="10.60.0.0/22",
        gateway="10.60.3.254",
        range="10.60.1.10-10.60.1.11",
        subnet6="fd00:60::/64",
        gateway6="fd00:60::ffff",
        bridge="own.br",
    )
    first, second = lab.container("first", "own"), lab.container("second", "own")
    asked = lab.container("asked", {"network": "own", "ip": "10.60.2.2", "ifname": "net.7"})
    assert [one.addresses[4] for one in (first, second, asked)] == ["10.60.1.10", "10.60.1.11", "10.60.2.2"]
    for flow in FLOWS:
        lab.serve(asked, flow)
        assert lab.reach(first, flow, asked.addresses[flow.family]) == f"asked {first.addresses[flow.family]}"
        assert lab.reach(asked, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
    full = lab.factory.make("full")
    lab.daemon.join("full", "own")
    answer = lab.daemon.up("full", full)
    assert answer.status == 507
    assert "10.60.1.10" in answer.error["message"]
    assert lab.miss(lab.dmz, FLOWS[0], OUTSIDE[4]) == SILENT


def test_a_handle_of_any_length_and_character_works_and_is_logged(make: Make, backend: str) -> None:
    lab = make(backend)
    handle = "a.b_c:d@e-" * 25 + "fghij"
    assert len(handle) == 255
    lab.daemon.network("blue")
    container = lab.container(handle, "blue")
    lab.policy(container, blue={"net_out": [{"log": True}], "net_in": [{"host_port": 7000, "container_port": 1}]})
    assert lab.reach(container, Flow("udp", 4), OUTSIDE[4]) == f"outside {UP[4]}"
    eventually(lambda: f"handle={handle[:28]} " in lab.daemon.log, "the packet is logged")
    lab.remove(container)
