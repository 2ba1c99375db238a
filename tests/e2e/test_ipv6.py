"""IPv6: usable at once where a network has it, silent where it has not, masqueraded where it must be."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

import pytest
from frames import IPV6, Capture
from onehost import OUTSIDE, UP, Lab
from traffic import FLOWS, REFUSED, SILENT, Flow, echoes
from world import eventually

FLOWS6 = [flow for flow in FLOWS if flow.family == 6]
QUIET_S = 1.5  # a link that has just come up says what it has to say about IPv6 in its first second


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """local6 has unique local addresses, global6 global ones, masked6 global ones masqueraded, plain4 none at all."""
    lab = bare_lab
    for name, number, more in (
        ("local6", 10, {"subnet6": "fd00:10::/64"}),
        ("global6", 11, {"subnet6": "2001:db8:11::/64"}),
        ("masked6", 12, {"subnet6": "2001:db8:12::/64", "masquerade6": True}),
        ("bare6", 13, {"subnet6": "fd00:13::/64", "masquerade": False}),
        ("plain4", 14, {}),
    ):
        lab.daemon.network(name, subnet=f"10.{number}.0.0/24", **more)
    for flow in FLOWS:
        lab.serve(lab.outside, flow)
        lab.serve(lab.host, flow)
    return lab


def test_it_works_from_the_answer_on(lab: Lab, guests: Any) -> None:
    container = guests("local6")
    answer = lab.reach(container, FLOWS6[1], OUTSIDE[6])  # the very first thing it does; UDP, so nothing is sent twice
    assert answer == f"outside {UP[6]}"


@pytest.mark.parametrize("where", ["container", "host"])
def test_no_address_is_tentative(lab: Lab, guests: Any, where: str) -> None:
    container = guests("local6")
    netns = container.netns if where == "container" else lab.host.netns
    told = [address for link in netns.json("ip", "-j", "-6", "addr") for address in link["addr_info"] if address]
    assert {ip_address(container.addresses[6]).compressed if where == "container" else "fd00:10::1"} <= {
        one["local"] for one in told
    }
    ours = [one for one in told if one["local"].startswith("fd00:10:")]
    assert [one for one in ours if one.get("tentative") or one.get("dadfailed")] == []


def test_it_does_not_look_for_duplicates(lab: Lab, guests: Any) -> None:
    with Capture(lab.host.netns, None, IPV6) as capture:
        container = guests("local6")
        frames = capture.until(lambda _: False, QUIET_S)
    address = ip_address(container.addresses[6])
    assert [one for one in frames if one[6:12].hex(":") == container.mac], "nothing was captured at all"
    # a neighbour solicitation from the unspecified address for the one that was given
    assert not [one for one in frames if one[22:38] == bytes(16) and address.packed in one]


@pytest.mark.parametrize("flow", FLOWS6, ids=str)
def test_a_unique_local_network_is_masqueraded(lab: Lab, guests: Any, flow: Flow) -> None:
    assert lab.reach(guests("local6"), flow, OUTSIDE[6]) == f"outside {UP[6]}"


@pytest.mark.parametrize("flow", FLOWS6, ids=str)
def test_a_global_network_is_not_masqueraded(lab: Lab, guests: Any, flow: Flow) -> None:
    container = guests("global6")
    assert lab.reach(container, flow, OUTSIDE[6]) == f"outside {container.addresses[6]}"
    assert lab.reach(container, Flow(flow.protocol, 4), OUTSIDE[4]) == f"outside {UP[4]}"


@pytest.mark.parametrize("flow", FLOWS6, ids=str)
def test_a_global_network_is_masqueraded_where_it_says_so(lab: Lab, guests: Any, flow: Flow) -> None:
    assert lab.reach(guests("masked6"), flow, OUTSIDE[6]) == f"outside {UP[6]}"


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_masquerade_false_leaves_every_address(lab: Lab, guests: Any, flow: Flow) -> None:
    container = guests("bare6")
    assert lab.reach(container, flow, OUTSIDE[flow.family]) == f"outside {container.addresses[flow.family]}"


def test_masquerade6_without_subnet6_is_refused(lab: Lab) -> None:
    document = {"name": "wrong", "type": "bridge", "config": {"subnet": "10.99.0.0/24", "masquerade6": True}}
    answer = lab.daemon.post("/networks", document)
    assert answer.status == 422
    assert list(answer.error["fields"]) == ["config.masquerade6"]


def test_without_subnet6_no_ipv6_packet_leaves_the_container_or_is_sent_to_it(lab: Lab, guests: Any) -> None:
    netns = lab.factory.make("silent")
    with Capture(lab.host.netns, None, IPV6) as outward, Capture(netns, None, IPV6) as inward:
        container = guests("plain4", netns=netns)
        assert lab.reach(container, Flow("udp", 4), OUTSIDE[4]) == f"outside {UP[4]}"
        assert lab.miss(container, Flow("udp", 6), OUTSIDE[6]) in (REFUSED, SILENT)
        link = netns.json("ip", "-j", "link", "show", "eth0")[0]
        sent = outward.until(lambda _: False, QUIET_S)
        received = inward.until(lambda _: False, 0.05)
    source = bytes.fromhex(link["address"].replace(":", ""))
    assert [one.hex() for one in sent if one[6:12] == source] == []
    assert [one.hex() for one in received] == []


def test_without_subnet6_the_container_has_no_ipv6_address(guests: Any) -> None:
    container = guests("plain4")
    told = container.netns.json("ip", "-j", "-6", "addr", "show", "dev", "eth0")
    assert [one for link in told or [] for one in link.get("addr_info", ()) if one] == []


def test_without_subnet6_the_bridge_speaks_no_ipv6(lab: Lab) -> None:
    bridges = lab.host.netns.json("ip", "-j", "addr", "show", "type", "bridge")
    [bridge] = [one for one in bridges if any(address["local"] == "10.14.0.1" for address in one["addr_info"])]
    assert [one for one in bridge["addr_info"] if one["family"] == "inet6"] == []


def test_the_hosts_end_of_a_link_has_no_ipv6_address(lab: Lab, guests: Any) -> None:
    guests("local6")
    guests("plain4")
    ends = [one for one in lab.host.netns.json("ip", "-j", "addr") if one["ifname"].startswith("cv")]
    assert len(ends) >= 2
    assert [one["ifname"] for one in ends if any(address["family"] == "inet6" for address in one["addr_info"])] == []


def test_a_container_on_both_kinds_of_network_speaks_ipv6_by_the_one_that_has_it(lab: Lab, guests: Any) -> None:
    container = guests("plain4", "local6")
    told = lab.daemon.get(f"/containers/{container.name}").body["attachments"]
    assert [one["default_route"] for one in told] == [["ipv4"], ["ipv6"]]
    assert lab.reach(container, FLOWS6[0], OUTSIDE[6]) == f"outside {UP[6]}"
    assert lab.reach(container, Flow("tcp", 4), OUTSIDE[4]) == f"outside {UP[4]}"


def test_neighbours_and_gateway_are_pinged(lab: Lab, guests: Any) -> None:
    one, other = guests("local6"), guests("local6")
    eventually(lambda: echoes(one.netns, 6, other.addresses[6]), "the neighbour answers")
    eventually(lambda: echoes(lab.host.netns, 6, one.addresses[6]), "the container answers its gateway")


def test_a_router_advertisement_by_a_neighbour_changes_no_routes(lab: Lab, guests: Any) -> None:
    one, other = guests("local6"), guests("local6")
    before = other.netns.run("ip", "-6", "route").stdout
    index = one.netns.call(socket.if_nametoindex, "eth0")
    with one.netns.call(socket.socket, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        for _ in range(2):
            sock.sendto(bytes((134, 0, 0, 0, 64, 0, 7, 8)) + bytes(8), ("ff02::1", 0, 0, index))
    assert echoes(one.netns, 6, other.addresses[6])  # which comes after it
    assert other.netns.run("ip", "-6", "route").stdout == before
    assert "default" not in lab.host.netns.run("ip", "-6", "route", "show", "proto", "ra").stdout
