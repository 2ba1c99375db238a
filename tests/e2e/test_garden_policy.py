"""Which policy NetIn and NetOut change, how long the change lasts, and what default and deny networks mean to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from garden import TCP, TCP4, UDP, UDP4, Garden, is_free, ports, refusal, to, translations
from onehost import DENIED, EVERYTHING, OUTSIDE, SERVICE, UP, Lab, Machine
from traffic import REFUSED, SILENT, Flow, Talk, echoes

DEFAULT: dict[str, Any] = {
    "net_in": [{"host_port": 0, "container_port": 9090, "protocol": "tcp"}],
    "net_out": [{"protocol": "all", "networks": [{"start": "192.0.2.65", "end": "192.0.2.65"}]}],
    "deny_networks": ["192.0.2.64/28"],
    "log_denied": True,
}
MAPPING = {"host_port": 7010, "container_port": SERVICE, "protocol": "tcp"}
OPEN_66 = {"protocol": "tcp", "networks": [{"start": "192.0.2.66", "end": "192.0.2.66"}]}
OPENED = f"outside {UP[4]}"


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue, which has a default policy; c on green, which denies all; d on red, which denies nothing."""
    lab = bare_lab
    lab.daemon.network("blue", default_policy=DEFAULT)
    lab.daemon.network("green", subnet="10.20.0.0/24", subnet6="fd00:20::/64", deny_networks=EVERYTHING)
    lab.daemon.network("red", subnet="10.40.0.0/24", subnet6="fd00:40::/64")
    for name, networks in {"a": ["blue"], "b": ["blue"], "c": ["green"], "e": ["green"], "d": ["red"]}.items():
        lab.container(name, *networks)
    for flow in (TCP4, UDP4, Flow("tcp", 6), Flow("udp", 6)):
        for machine in (lab.outside, *lab.containers.values()):
            lab.serve(machine, flow)
    for machine in lab.containers.values():
        lab.serve(machine, TCP4, 9090)
    return lab


@pytest.fixture
def d(lab: Lab) -> Machine:
    return lab.containers["d"]


def reached(lab: Lab, who: Machine, *numbers: int) -> list[bool]:
    """Which addresses of the machine outside the container reaches by TCP; the others are refused at once."""
    answers = [lab.reach(who, TCP4, f"192.0.2.{number}") for number in numbers]
    assert set(answers) <= {OPENED, REFUSED}, answers
    return [answer == OPENED for answer in answers]


# What is copied


def test_net_in_adds_to_a_copy_of_the_default_policy(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    before = garden.policy(a)
    assert (before["source"], before["policy"]) == ("default_policy", DEFAULT)
    garden.net_in(a, 7010, SERVICE)
    after = garden.policy(a)
    assert after["source"] == "garden"
    assert after["policy"] == DEFAULT | {"net_in": [*DEFAULT["net_in"], MAPPING]}
    assert after["generation"] > before["generation"]
    assert garden.policy(b)["source"] == "default_policy"
    assert lab.daemon.get("/networks/blue").body["default_policy"] == DEFAULT


def test_net_out_adds_to_a_copy_of_the_default_policy(lab: Lab, garden: Garden, a: Machine) -> None:
    assert reached(lab, a, 65, 66, 67) == [True, False, False]
    garden.net_out(a, to("192.0.2.66", protocol=TCP))
    after = garden.policy(a)
    assert after["source"] == "garden"
    assert after["policy"] == DEFAULT | {"net_out": [OPEN_66, *DEFAULT["net_out"]]}
    assert reached(lab, a, 65, 66, 67) == [True, True, False]


def test_net_in_adds_to_a_copy_of_what_a_client_put(lab: Lab, garden: Garden, a: Machine) -> None:
    own = {"net_in": [{"host_port": 7011, "container_port": SERVICE, "protocol": "udp", "host_ip": UP[4]}]}
    lab.policy(a, blue=own | {"deny_networks": ["192.0.2.66/32"]})
    garden.net_in(a, 7010, SERVICE)
    told = garden.policy(a)
    assert told["source"] == "garden"
    assert told["policy"]["net_in"] == [*own["net_in"], MAPPING]
    assert told["policy"]["deny_networks"] == ["192.0.2.66/32"]
    assert lab.reach(lab.outside, UDP4, UP[4], 7011).startswith("a ")
    assert lab.reach(lab.outside, TCP4, UP[4], 7010).startswith("a ")
    assert reached(lab, a, 65, 66, 67) == [True, False, True]


def test_net_out_adds_to_a_copy_of_what_a_client_put(lab: Lab, garden: Garden, a: Machine) -> None:
    lab.policy(a, blue={"deny_networks": ["192.0.2.0/24"], "net_out": [to("192.0.2.67")], "net_in": [MAPPING]})
    garden.bulk(a, [to("192.0.2.66", protocol=TCP)])
    told = garden.policy(a)
    assert told["source"] == "garden"
    assert told["policy"]["net_in"] == [MAPPING]
    assert [rule["networks"][0]["start"] for rule in told["policy"]["net_out"]] == ["192.0.2.66", "192.0.2.67"]
    assert reached(lab, a, 65, 66, 67) == [False, True, True]
    assert lab.reach(lab.outside, TCP4, UP[4], 7010).startswith("a ")


def test_later_changes_add_to_the_copy(garden: Garden, a: Machine) -> None:
    garden.net_in(a, 7010, SERVICE)
    garden.net_out(a, to("192.0.2.66", protocol=TCP))
    garden.net_in(a, 7011, SERVICE)
    changed = {
        "net_in": [*DEFAULT["net_in"], MAPPING, MAPPING | {"host_port": 7011}],
        "net_out": [OPEN_66, *DEFAULT["net_out"]],
    }
    assert garden.policy(a)["policy"] == DEFAULT | changed


def test_ports_of_the_copied_policy_keep_their_numbers_and_their_connections(
    lab: Lab, garden: Garden, a: Machine
) -> None:
    [(number, _)] = garden.mapped(a)
    with Talk(lab.outside.netns, TCP4, UP[4], number) as talk:
        assert talk.first.startswith("a ")
        garden.net_in(a, 7010, SERVICE)
        garden.net_out(a, to("192.0.2.66"))
        assert garden.mapped(a) == [(number, 9090), (7010, SERVICE)]
        assert talk.say() == talk.first
    assert lab.reach(lab.outside, TCP4, UP[4], number).startswith("a ")


def test_a_mapping_the_copied_policy_has_already_is_answered_and_kept_once(
    lab: Lab, garden: Garden, a: Machine
) -> None:
    lab.policy(a, blue={"net_in": [MAPPING]})
    assert garden.net_in(a, 7010, SERVICE) == (7010, SERVICE)
    told = garden.policy(a)
    assert (told["source"], told["policy"]["net_in"]) == ("garden", [MAPPING])
    assert garden.mapped(a) == [(7010, SERVICE)]
    assert len(translations(lab, 7010)) == 1


def test_a_change_ends_no_connection(lab: Lab, garden: Garden, c: Machine) -> None:
    garden.net_out(c, to(OUTSIDE[4]))
    with Talk(c.netns, TCP4, OUTSIDE[4], SERVICE) as out, Talk(lab.host.netns, TCP4, c.addresses[4], SERVICE) as inward:
        garden.net_in(c, 7010, SERVICE)
        garden.bulk(c, [to("203.0.113.1"), to("203.0.113.2", log=True)])
        assert [out.say(), inward.say()] == [out.first, inward.first] == [OPENED, "c 10.20.0.1"]


# How long it lasts


def test_a_default_policy_that_changes_reaches_only_who_has_no_copy(
    lab: Lab, garden: Garden, a: Machine, b: Machine
) -> None:
    garden.net_in(a, 7010, SERVICE)
    try:
        assert lab.daemon.put("/networks/blue/default_policy", {"deny_networks": EVERYTHING}).status == 200
        assert reached(lab, a, 65, 66, 2) == [True, False, True]
        assert reached(lab, b, 65, 66, 2) == [False, False, False]
        assert garden.policy(a)["policy"]["deny_networks"] == DEFAULT["deny_networks"]
        assert lab.reach(lab.outside, TCP4, UP[4], 7010).startswith("a ")
    finally:
        assert lab.daemon.put("/networks/blue/default_policy", DEFAULT).status == 200


def test_a_policy_that_is_put_replaces_the_copy(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_in(a, 7010, SERVICE)
    garden.net_in(a, 7011, SERVICE)
    garden.net_out(a, to("192.0.2.66", protocol=TCP))
    lab.policy(a, blue={"deny_networks": ["192.0.2.66/32"], "net_in": [MAPPING | {"host_port": 7011}]})
    told = garden.policy(a)
    assert told["source"] == "client"
    assert told["policy"]["net_out"] == []
    assert garden.mapped(a) == [(7011, SERVICE)]
    assert is_free(lab, 7010)
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == REFUSED
    assert lab.reach(lab.outside, TCP4, UP[4], 7011).startswith("a ")
    assert reached(lab, a, 65, 66, 67) == [True, False, True]


def test_a_policy_put_without_the_network_returns_it_to_its_default(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_in(a, 7010, SERVICE)
    garden.net_out(a, to("192.0.2.66", protocol=TCP))
    lab.policy(a)
    assert garden.policy(a)["source"] == "default_policy"
    assert is_free(lab, 7010)
    assert reached(lab, a, 65, 66) == [True, False]


def test_a_container_s_end_ends_what_was_added(lab: Lab, garden: Garden, b: Machine) -> None:
    guest = lab.container("guest", "blue")
    garden.net_in(guest, 7010, SERVICE)
    garden.net_out(guest, to("192.0.2.66", protocol=TCP))
    assert lab.daemon.down("guest").status == 200
    assert lab.daemon.up("guest", guest.netns).status == 200
    assert garden.policy(guest) | {"generation": 0} == garden.policy(b) | {"generation": 0}
    assert [port for _, port in garden.mapped(guest)] == [9090]
    assert reached(lab, guest, 65, 66) == [True, False]
    lab.remove(guest)


def test_what_a_client_put_before_is_in_force_again_in_the_next_life(lab: Lab, garden: Garden) -> None:
    guest = lab.container("guest", "blue")
    lab.policy(guest, blue={"deny_networks": ["192.0.2.66/32"]})
    garden.net_in(guest, 7010, SERVICE)
    garden.net_out(guest, to("192.0.2.66", protocol=TCP))
    assert reached(lab, guest, 65, 66, 67) == [True, True, True]
    assert lab.daemon.down("guest").status == 200
    assert lab.daemon.up("guest", guest.netns).status == 200
    told = garden.policy(guest)
    assert (told["source"], told["policy"]["deny_networks"]) == ("client", ["192.0.2.66/32"])
    assert garden.mapped(guest) == []
    assert reached(lab, guest, 65, 66, 67) == [True, False, True]
    lab.remove(guest)


# On which network


@pytest.mark.parametrize(("networks", "first"), [(["blue", "red"], "blue"), (["red", "blue"], "red")], ids=str)
def test_it_is_the_policy_of_the_first_network_that_changes(
    lab: Lab, garden: Garden, networks: list[str], first: str
) -> None:
    guest = lab.container("guest", *networks)
    lab.serve(guest, TCP4)
    garden.net_in(guest, 7010, SERVICE)
    garden.net_out(guest, to("192.0.2.66"))
    sources = {name: garden.policy(guest, name)["source"] for name in networks}
    assert sources == {name: "garden" if name == first else "default_policy" for name in networks}
    assert lab.reach(lab.outside, TCP4, UP[4], 7010).startswith("guest ")
    assert garden.info(guest)["ContainerIP"] == guest.addresses[4]
    lab.remove(guest)


def test_a_container_on_no_network_has_nothing_to_change(lab: Lab, garden: Garden) -> None:
    alone = lab.factory.make("alone")
    lab.daemon.join("alone")
    assert lab.daemon.up("alone", alone).status == 200
    said = 'container "alone" is on no network whose driver has the capability garden'
    assert refusal(garden.try_net_in("alone", 7010, SERVICE)) == said
    assert refusal(garden.try_net_out("alone", {})) == said
    assert refusal(garden.try_bulk("alone", [{}])) == said
    assert lab.daemon.down("alone").status == 200
    alone.close()


# What deny networks mean to it


def test_without_deny_networks_everything_is_open(lab: Lab, c: Machine, d: Machine, flow: Flow) -> None:
    assert lab.reach(d, flow, OUTSIDE[flow.family]) == f"outside {UP[flow.family]}"
    assert lab.reach(d, flow, c.addresses[flow.family]).startswith("c ")
    assert echoes(d.netns, flow.family, OUTSIDE[flow.family])


def test_denied_everything_the_outside_and_other_subnets_refuse_at_once(
    lab: Lab, c: Machine, d: Machine, flow: Flow, bridge_nf: int
) -> None:
    assert lab.reach(c, flow, OUTSIDE[flow.family]) == REFUSED
    assert lab.reach(c, flow, d.addresses[flow.family]) == REFUSED
    assert not echoes(c.netns, flow.family, OUTSIDE[flow.family])


def test_denied_everything_the_same_subnet_is_reached(lab: Lab, c: Machine, flow: Flow, bridge_nf: int) -> None:
    e = lab.containers["e"]
    assert lab.reach(c, flow, e.addresses[flow.family]) == f"e {c.addresses[flow.family]}"


def test_denied_everything_what_comes_in_is_answered(
    lab: Lab, garden: Garden, c: Machine, d: Machine, bridge_nf: int
) -> None:
    garden.net_in(c, 7010, SERVICE)
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == f"c {OUTSIDE[4]}"
    assert lab.reach(d, TCP4, UP[4], 7010) == "c 10.20.0.1"
    assert lab.reach(lab.host, TCP4, UP[4], 7010) == f"c {UP[4]}"
    assert lab.reach(c, TCP4, OUTSIDE[4]) == REFUSED


def test_nothing_that_comes_to_a_container_is_filtered(lab: Lab, c: Machine, d: Machine, flow: Flow) -> None:
    for who in (lab.outside, lab.dmz, lab.host, d):
        assert lab.reach(who, flow, c.addresses[flow.family]).startswith("c "), who
    assert echoes(lab.outside.netns, flow.family, c.addresses[flow.family])


def test_net_out_opens_another_subnet(lab: Lab, garden: Garden, c: Machine, d: Machine, bridge_nf: int) -> None:
    garden.net_out(c, to(d.addresses[4], protocol=TCP, ports=ports(SERVICE)))
    assert lab.reach(c, TCP4, d.addresses[4]).startswith("d ")
    assert lab.reach(c, UDP4, d.addresses[4]) == REFUSED
    assert lab.reach(c, TCP4, DENIED[4]) == REFUSED


# A resolver on the host


@pytest.mark.parametrize("server", ["10.70.0.1", UP[4]], ids=["gateway", "uplink"])
def test_a_resolver_on_the_host_is_reached_at_port_53_and_nothing_else(
    lab: Lab, garden: Garden, server: str, bridge_nf: int
) -> None:
    lab.daemon.network("named", subnet="10.70.0.0/24", deny_networks=EVERYTHING, dns_servers=[server])
    guest = lab.container("guest", "named")
    for flow in (TCP4, UDP4):
        for port in (53, 54, SERVICE):
            lab.serve(lab.host, flow, port)
    garden.bulk(guest, [to("203.0.113.1")])
    other = UP[4] if server != UP[4] else "10.70.0.1"
    for flow in (TCP4, UDP4):
        assert lab.reach(guest, flow, server, 53) == f"host {guest.addresses[4]}"
        assert [lab.reach(guest, flow, server, port) for port in (54, SERVICE)] == [REFUSED] * 2
        assert lab.reach(guest, flow, other, 53) == REFUSED
        assert lab.reach(lab.containers["a"], flow, server, 53) == REFUSED
    assert not echoes(guest.netns, 4, server)
    lab.remove(guest)
    assert lab.daemon.delete("/networks/named").status == 204


def test_a_resolver_elsewhere_is_denied_like_everything_there(lab: Lab, garden: Garden) -> None:
    lab.daemon.network("named", subnet="10.70.0.0/24", deny_networks=EVERYTHING, dns_servers=[OUTSIDE[4]])
    guest = lab.container("guest", "named")
    for flow in (TCP4, UDP4):
        lab.serve(lab.outside, flow, 53)
    garden.bulk(guest, [])
    assert [lab.reach(guest, flow, OUTSIDE[4], 53) for flow in (TCP4, UDP4)] == [REFUSED] * 2
    garden.net_out(guest, to(OUTSIDE[4], protocol=UDP, ports=ports(53)))
    assert [lab.reach(guest, flow, OUTSIDE[4], 53) for flow in (TCP4, UDP4)] == [REFUSED, OPENED]
    lab.remove(guest)
    assert lab.daemon.delete("/networks/named").status == 204


# A host that forwards nothing else


@pytest.fixture
def dropping(lab: Lab) -> Iterator[None]:
    """The host's own policy for what it forwards is to drop it."""
    tool = ["iptables-legacy", "-P", "FORWARD"]
    lab.host.netns.run(*tool, "DROP")
    yield
    lab.host.netns.run(*tool, "ACCEPT")


def test_on_a_host_that_drops_what_it_forwards_what_is_open_passes_or_is_seen_to_be_dropped(
    lab: Lab, garden: Garden, c: Machine, dropping: None
) -> None:
    garden.net_in(c, 7010, SERVICE)
    garden.net_out(c, to(OUTSIDE[4], protocol=TCP))
    if lab.backend == "iptables":
        assert lab.reach(c, TCP4, OUTSIDE[4]) == OPENED
        assert lab.reach(lab.outside, TCP4, UP[4], 7010) == f"c {OUTSIDE[4]}"
        assert lab.reach(c, UDP4, OUTSIDE[4]) == REFUSED
    else:  # an accept in nftables does not keep other tables from dropping
        assert lab.miss(c, TCP4, OUTSIDE[4]) == SILENT
        [drop] = lab.daemon.get("/status").body["foreign_drops"]
        assert "FORWARD" in drop["chain"]
