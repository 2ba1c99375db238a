"""From where a port that NetIn published is reached, as whom, and whose policy judges it."""

from __future__ import annotations

from typing import Any

import pytest
from garden import TCP, TCP4, TCP6, UDP4, Garden, ports, to
from onehost import DMZ, EVERYTHING, OUTSIDE, SERVICE, UP, UP_SECOND, Lab, Machine
from traffic import REFUSED

PUBLISHED = 7000
GATEWAY = "10.10.0.1"


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue; c on green; a publishes a port as long as nobody puts a policy for it."""
    lab = bare_lab
    lab.daemon.network("blue", subnet6="fd00:10::/64")
    lab.daemon.network("green", subnet="10.20.0.0/24")
    for name, network in {"a": "blue", "b": "blue", "c": "green"}.items():
        lab.container(name, network)
        lab.serve(lab.containers[name], TCP4)
    Garden(lab.daemon).net_in("a", PUBLISHED, SERVICE)
    return lab


# From other machines and from the host


def test_another_machine_is_seen_by_its_own_address(lab: Lab, bridge_nf: int) -> None:
    assert lab.reach(lab.outside, TCP4, UP[4], PUBLISHED) == f"a {OUTSIDE[4]}"
    assert lab.reach(lab.dmz, TCP4, UP[4], PUBLISHED) == f"a {DMZ[4]}"
    assert lab.reach(lab.outside, TCP6, UP[6], PUBLISHED) == f"a {OUTSIDE[6]}"


def test_the_host_is_seen_by_its_external_address(lab: Lab, bridge_nf: int) -> None:
    assert lab.daemon.get("/containers/a").body["external_ip"] == UP[4]
    assert lab.reach(lab.host, TCP4, UP[4], PUBLISHED) == f"a {UP[4]}"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_the_host_is_refused_by_loopback(lab: Lab, address: str) -> None:
    assert lab.reach(lab.host, TCP4, address, PUBLISHED) == REFUSED


@pytest.mark.parametrize("address", [UP_SECOND[4], "198.51.100.1", GATEWAY, "10.20.0.1"])
def test_the_host_reaches_it_by_every_other_address_of_its_own(lab: Lab, address: str, bridge_nf: int) -> None:
    assert lab.reach(lab.host, TCP4, address, PUBLISHED).startswith("a ")


def test_other_machines_reach_it_by_every_address_of_the_host(lab: Lab) -> None:
    for address in (UP_SECOND[4], "198.51.100.1"):
        assert lab.reach(lab.outside, TCP4, address, PUBLISHED) == f"a {OUTSIDE[4]}"


# From containers of other subnets


def test_a_container_of_another_subnet_is_seen_as_the_target_s_gateway(lab: Lab, c: Machine, bridge_nf: int) -> None:
    assert lab.reach(c, TCP4, UP[4], PUBLISHED) == f"a {GATEWAY}"


def test_it_is_judged_by_where_the_port_leads(lab: Lab, c: Machine, bridge_nf: int) -> None:
    lab.policy(c, green={"deny_networks": [f"{UP[4]}/32"]})
    assert lab.reach(c, TCP4, UP[4], PUBLISHED) == f"a {GATEWAY}"
    lab.policy(c, green={"deny_networks": ["10.10.0.0/24"]})
    assert lab.reach(c, TCP4, UP[4], PUBLISHED) == REFUSED


@pytest.mark.parametrize(
    ("rule", "opens"),
    [
        (to("10.10.0.2", protocol=TCP, ports=ports(SERVICE)), True),
        (to("10.10.0.2", protocol=TCP, ports=ports(PUBLISHED)), False),
        (to(UP[4], protocol=TCP, ports=ports(PUBLISHED)), False),
        (to(UP[4]), False),
    ],
    ids=["container", "host-port", "host", "host-address"],
)
def test_net_out_opens_it_by_the_container_s_address_and_port(
    lab: Lab, garden: Garden, a: Machine, c: Machine, rule: dict[str, Any], opens: bool
) -> None:
    assert a.addresses[4] == "10.10.0.2"
    lab.policy(c, green={"deny_networks": EVERYTHING})
    assert lab.reach(c, TCP4, UP[4], PUBLISHED) == REFUSED
    garden.net_out(c, rule)
    assert lab.reach(c, TCP4, UP[4], PUBLISHED) == (f"a {GATEWAY}" if opens else REFUSED)


# From the same subnet


def test_another_container_of_the_subnet_reaches_it(lab: Lab, b: Machine, bridge_nf: int) -> None:
    assert lab.reach(b, TCP4, UP[4], PUBLISHED) == f"a {GATEWAY}"


def test_its_own_policy_is_not_asked(lab: Lab, b: Machine, bridge_nf: int) -> None:
    lab.policy(b, blue={"deny_networks": EVERYTHING})
    assert lab.reach(b, TCP4, UP[4], PUBLISHED) == f"a {GATEWAY}"


def test_the_container_reaches_itself(lab: Lab, a: Machine, bridge_nf: int) -> None:
    assert lab.reach(a, TCP4, UP[4], PUBLISHED) == f"a {GATEWAY}"


def test_the_container_reaches_itself_with_everything_denied(lab: Lab, garden: Garden, bridge_nf: int) -> None:
    guest = lab.container("guest", "blue")
    lab.serve(guest, TCP4)
    lab.policy(guest, blue={"deny_networks": EVERYTHING})
    garden.net_in(guest, 7010, SERVICE)
    assert lab.reach(guest, TCP4, UP[4], 7010) == f"guest {GATEWAY}"
    lab.remove(guest)


# Without any mapping


@pytest.mark.parametrize("port", [SERVICE, 9090], ids=["mapped", "unmapped"])
def test_the_container_s_address_needs_no_mapping(lab: Lab, a: Machine, bridge_nf: int, port: int) -> None:
    lab.serve(a, TCP4, port)
    lab.serve(a, UDP4, port)
    for flow in (TCP4, UDP4):
        assert lab.reach(lab.host, flow, a.addresses[4], port) == f"a {GATEWAY}"
        assert lab.reach(lab.outside, flow, a.addresses[4], port) == f"a {OUTSIDE[4]}"
        assert lab.reach(lab.dmz, flow, a.addresses[4], port) == f"a {DMZ[4]}"
