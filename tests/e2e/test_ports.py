"""Published ports: from where they are reached, who holds them, which number they get, and when they are free again."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from frames import IPV4, Capture, ethernet, segment, send
from onehost import DMZ, EVERYTHING, OUTSIDE, SERVICE, UP, UP_SECOND, Lab, Machine
from traffic import FLOWS, PATIENCE_S, REFUSED, SILENT, Flow, Talk
from world import eventually

PUBLISHED, ISOLATED, SECOND = 7000, 7001, 7002
POOL = 61001
WILDCARD = {4: "0.0.0.0", 6: "::"}
VANTAGES = ["outside", "dmz", "host", "b", "c", "a"]


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue; c on green; i, j on gray, isolated; m on blue and green, its default route by blue."""
    lab = bare_lab
    lab.daemon.network("blue", subnet6="fd00:10::/64")
    lab.daemon.network("green", subnet="10.20.0.0/24", subnet6="fd00:20::/64")
    lab.daemon.network("gray", subnet="10.30.0.0/24", subnet6="fd00:30::/64", isolated=True)
    for name, networks in {"a": ["blue"], "b": ["blue"], "c": ["green"], "i": ["gray"], "j": ["gray"]}.items():
        lab.container(name, *networks)
    lab.container("m", "blue", "green")
    for flow in FLOWS:
        for machine in (lab.host, *lab.containers.values()):
            lab.serve(machine, flow)
            lab.serve(machine, flow, 9090)
    return lab


def net_in(host_port: int, container_port: int = SERVICE, **more: Any) -> dict[str, Any]:
    """A policy that publishes one port."""
    return {"net_in": [entry(host_port, container_port, **more)]}


def entry(host_port: int, container_port: int = SERVICE, **more: Any) -> dict[str, Any]:
    return {"host_port": host_port, "container_port": container_port, **more}


def everything(host_port: int, container_port: int = SERVICE) -> dict[str, Any]:
    """A policy that publishes one port for TCP and UDP."""
    return {"net_in": [entry(host_port, container_port, protocol=protocol) for protocol in ("tcp", "udp")]}


def mapped(lab: Lab, handle: str) -> list[dict[str, Any]]:
    """The mapped ports of the container's first attachment."""
    found: list[dict[str, Any]] = lab.daemon.get(f"/containers/{handle}").body["attachments"][0]["mapped_ports"]
    return found


def bind(lab: Lab, port: int, flow: Flow = FLOWS[0]) -> socket.socket:
    """A socket of the host's own on that port."""
    sock = flow.open(lab.host.netns)
    try:
        sock.bind((WILDCARD[flow.family], port))
    except OSError:
        sock.close()
        raise
    return sock


# From where


@pytest.fixture(scope="module")
def published(built: Lab) -> Lab:
    """a publishes one port, i another, m a third on the network that does not give its default route."""
    built.reset()
    for handle, network, port in (("a", "blue", PUBLISHED), ("i", "gray", ISOLATED), ("m", "green", SECOND)):
        assert built.daemon.policy(handle, **{network: everything(port)}).status == 200
    return built


class TestReachableFrom:
    """The mappings stand while these run: none of them changes a policy."""

    @pytest.mark.parametrize("vantage", VANTAGES)
    def test_everywhere(self, published: Lab, vantage: str, flow: Flow, bridge_nf: int) -> None:
        client = getattr(published, vantage, None) or published.containers[vantage]
        assert published.reach(client, flow, UP[flow.family], PUBLISHED).startswith("a ")

    @pytest.mark.parametrize("vantage", ["outside", "host", "i", "j", "b"])
    def test_everywhere_in_front_of_an_isolated_network(
        self, published: Lab, vantage: str, flow: Flow, bridge_nf: int
    ) -> None:
        client = getattr(published, vantage, None) or published.containers[vantage]
        assert published.reach(client, flow, UP[flow.family], ISOLATED).startswith("i ")

    @pytest.mark.parametrize("vantage", ["outside", "host", "a", "c", "m"])
    def test_everywhere_on_a_network_without_the_default_route(
        self, published: Lab, vantage: str, flow: Flow, bridge_nf: int
    ) -> None:
        client = getattr(published, vantage, None) or published.containers[vantage]
        gateway = {4: "10.20.0.1", 6: "fd00:20::1"}[flow.family]
        assert published.reach(client, flow, UP[flow.family], SECOND) == f"m {gateway}"

    def test_other_machines_whose_address_is_kept(self, published: Lab, flow: Flow, bridge_nf: int) -> None:
        assert published.reach(published.outside, flow, UP[flow.family], PUBLISHED) == f"a {OUTSIDE[flow.family]}"
        assert published.reach(published.dmz, flow, UP[flow.family], PUBLISHED) == f"a {DMZ[flow.family]}"

    def test_every_local_address(self, published: Lab, flow: Flow) -> None:
        gateway = {4: "10.10.0.1", 6: "fd00:10::1"}[flow.family]
        dmz = {4: "198.51.100.1", 6: "2001:db8:d::1"}[flow.family]
        for address in (UP_SECOND[flow.family], dmz, gateway):
            assert published.reach(published.host, flow, address, PUBLISHED).startswith("a ")
        assert published.reach(published.outside, flow, UP_SECOND[flow.family], PUBLISHED).startswith("a ")
        assert published.reach(published.containers["b"], flow, gateway, PUBLISHED).startswith("a ")

    def test_but_not_loopback(self, published: Lab, flow: Flow) -> None:
        loopback = {4: "127.0.0.1", 6: "::1"}[flow.family]
        assert published.miss(published.host, flow, loopback, PUBLISHED) in (REFUSED, SILENT)
        if flow.family == 4:
            assert published.miss(published.host, flow, "127.0.0.2", PUBLISHED) in (REFUSED, SILENT)

    def test_only_by_the_published_number(self, published: Lab, flow: Flow) -> None:
        assert published.reach(published.outside, flow, UP[flow.family], SERVICE).startswith("host ")

    def test_a_flow_through_the_host_to_that_port_of_another_machine_is_let_be(
        self, published: Lab, flow: Flow
    ) -> None:
        published.serve(published.outside, flow, PUBLISHED)
        client = published.containers["b"]
        assert published.reach(client, flow, OUTSIDE[flow.family], PUBLISHED) == f"outside {UP[flow.family]}"


# Where and for what


def test_a_port_is_published_for_one_protocol(lab: Lab, a: Machine, flow: Flow) -> None:
    lab.policy(a, blue=net_in(7010, protocol=flow.protocol))
    assert lab.reach(lab.outside, flow, UP[flow.family], 7010).startswith("a ")
    assert lab.reach(lab.outside, flow.other, UP[flow.family], 7010) == REFUSED


@pytest.mark.parametrize("written", ["tcp", 1, "udp", 2], ids=str)
def test_a_protocol_by_name_and_by_number(lab: Lab, a: Machine, written: Any) -> None:
    lab.policy(a, blue=net_in(7010, protocol=written))
    protocol = "tcp" if written in ("tcp", 1) else "udp"
    assert [one["protocol"] for one in mapped(lab, "a")] == [protocol]
    assert lab.reach(lab.outside, Flow(protocol, 4), UP[4], 7010).startswith("a ")


def test_a_host_ip_is_the_only_address_it_is_published_on(lab: Lab, a: Machine, flow: Flow, bridge_nf: int) -> None:
    lab.policy(a, blue=net_in(7010, protocol=flow.protocol, host_ip=UP_SECOND[flow.family]))
    there = UP_SECOND[flow.family]
    for vantage in (lab.outside, lab.host, a, lab.containers["b"], lab.containers["c"]):
        assert lab.reach(vantage, flow, there, 7010).startswith("a "), vantage
    assert lab.reach(lab.outside, flow, UP[flow.family], 7010) == REFUSED


def test_one_port_on_two_addresses_leads_to_two_containers(lab: Lab, a: Machine, b: Machine, flow: Flow) -> None:
    lab.policy(a, blue=net_in(7010, protocol=flow.protocol, host_ip=UP[flow.family]))
    lab.policy(b, blue=net_in(7010, protocol=flow.protocol, host_ip=UP_SECOND[flow.family]))
    assert lab.reach(lab.outside, flow, UP[flow.family], 7010).startswith("a ")
    assert lab.reach(lab.outside, flow, UP_SECOND[flow.family], 7010).startswith("b ")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1"])
def test_a_loopback_host_ip_is_refused(lab: Lab, a: Machine, address: str) -> None:
    answer = lab.try_policy(a, blue=net_in(7010, host_ip=address))
    assert answer.status == 422
    assert list(answer.error["fields"]) == ["networks.blue.net_in[0].host_ip"]


def test_a_host_ip_of_another_host_is_refused(lab: Lab, a: Machine) -> None:
    answer = lab.try_policy(a, blue=net_in(7010, host_ip="192.0.2.99"))
    assert answer.status == 422
    assert "192.0.2.99" in answer.error["message"]
    assert mapped(lab, "a") == []


def test_container_port_0_is_the_host_port(lab: Lab, a: Machine, flow: Flow) -> None:
    lab.serve(a, flow, 7011)
    lab.policy(a, blue=net_in(7011, 0, protocol=flow.protocol))
    assert mapped(lab, "a")[0]["container_port"] == 7011
    assert lab.reach(lab.outside, flow, UP[flow.family], 7011).startswith("a ")


def test_several_ports_lead_to_one_and_one_container_to_several(lab: Lab, a: Machine, flow: Flow) -> None:
    ports = {7010: SERVICE, 7011: SERVICE, 7012: 9090}
    lab.policy(a, blue={"net_in": [entry(*pair, protocol=flow.protocol) for pair in ports.items()]})
    assert [lab.reach(lab.outside, flow, UP[flow.family], port).split()[0] for port in ports] == ["a"] * 3


# Who holds a port


def test_a_port_of_another_container_is_a_conflict_that_names_it(lab: Lab, a: Machine, b: Machine, flow: Flow) -> None:
    lab.policy(a, blue=net_in(7010, protocol=flow.protocol))
    answer = lab.try_policy(b, blue=net_in(7010, protocol=flow.protocol))
    assert answer.status == 409
    assert 'held by container "a"' in answer.error["message"]
    assert "7010" in answer.error["message"]
    assert list(answer.error["fields"]) == ["networks.blue.net_in[0].host_port"]
    assert lab.reach(lab.outside, flow, UP[flow.family], 7010).startswith("a ")
    assert lab.daemon.get("/containers/b/policy").body["networks"]["blue"]["policy"]["net_in"] == []


@pytest.mark.parametrize("held", [None, UP[4]], ids=["everywhere", "one-address"])
def test_a_port_on_one_address_and_on_every_address_exclude_each_other(
    lab: Lab, a: Machine, b: Machine, held: str | None
) -> None:
    one, other = net_in(7010), net_in(7010, host_ip=UP[4])
    lab.policy(a, blue=one if held is None else other)
    assert lab.try_policy(b, blue=other if held is None else one).status == 409


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "192.0.2.1", "::", "::1"])
def test_a_port_of_a_process_is_a_conflict_that_names_pid_and_command(lab: Lab, a: Machine, address: str) -> None:
    script = (
        "import socket, sys, time\n"
        "family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
        "s = socket.socket(family)\ns.bind((sys.argv[1], 7010))\ns.listen()\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    process = lab.host.netns.popen(["python3", "-c", script, address], stdout=-1, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        answer = lab.try_policy(a, blue=net_in(7010))
        assert answer.status == 409
        assert re.search(rf"process {process.pid} \(python3[^)]*\)", answer.error["message"]), answer.error
        assert mapped(lab, "a") == []
    finally:
        process.kill()
        process.wait()
    lab.policy(a, blue=net_in(7010))


def test_a_udp_port_of_a_process_is_a_conflict(lab: Lab, a: Machine) -> None:
    with bind(lab, 7010, Flow("udp", 4)):
        assert lab.try_policy(a, blue=net_in(7010, protocol="udp")).status == 409
        lab.policy(a, blue=net_in(7010, protocol="tcp"))
    lab.policy(a, blue=net_in(7010, protocol="udp"))


def test_a_held_port_is_bound(lab: Lab, a: Machine, flow: Flow) -> None:
    lab.policy(a, blue=net_in(7010, protocol=flow.protocol))
    with pytest.raises(OSError, match="Address already in use"):
        bind(lab, 7010, flow)


def test_a_refused_policy_changes_nothing(lab: Lab, a: Machine, b: Machine, flow: Flow) -> None:
    lab.policy(a, blue=net_in(7010, protocol=flow.protocol))
    lab.policy(b, blue=net_in(7011, protocol=flow.protocol))
    wanted = {"net_in": [entry(port, protocol=flow.protocol) for port in (7012, 7010)], "deny_networks": EVERYTHING}
    assert lab.try_policy(b, blue=wanted).status == 409
    assert [one["host_port"] for one in mapped(lab, "b")] == [7011]
    assert lab.reach(lab.outside, flow, UP[flow.family], 7011).startswith("b ")
    bind(lab, 7012, flow).close()
    assert lab.reach(b, flow, UP[flow.family], 7010).startswith("a ")


# The pool, and what is free again


def test_port_0_is_one_of_the_pool_and_keeps_its_number(lab: Lab, a: Machine, flow: Flow) -> None:
    lab.policy(a, blue=net_in(0, protocol=flow.protocol))
    [port] = mapped(lab, "a")
    number = port["host_port"]
    assert POOL <= number <= 65534
    assert lab.reach(lab.outside, flow, UP[flow.family], number).startswith("a ")
    with pytest.raises(OSError, match="Address already in use"):
        bind(lab, number, flow)
    lab.policy(a, blue=net_in(0, protocol=flow.protocol))
    lab.policy(a, blue=net_in(0, protocol=flow.protocol) | {"log_denied": True})
    more = [
        entry(7010, protocol=flow.protocol),
        entry(0, protocol=flow.protocol),
        entry(0, 9090, protocol=flow.protocol),
    ]
    lab.policy(a, blue={"net_in": more})
    assert [one["host_port"] for one in mapped(lab, "a")][:2] == [7010, number]
    lab.policy(a, blue={"net_in": more[1:2]})
    assert [one["host_port"] for one in mapped(lab, "a")] == [number]
    assert lab.reach(lab.outside, flow, UP[flow.family], number).startswith("a ")


def test_the_pool_passes_over_what_is_busy(lab: Lab, a: Machine, b: Machine) -> None:
    lab.policy(a, blue=net_in(0))
    [first] = mapped(lab, "a")
    with bind(lab, first["host_port"] + 1):
        lab.policy(b, blue=net_in(0))
        [second] = mapped(lab, "b")
    assert second["host_port"] not in (first["host_port"], first["host_port"] + 1)


def test_a_port_of_the_pool_can_be_asked_for_by_number(lab: Lab, a: Machine, b: Machine) -> None:
    lab.policy(a, blue=net_in(0))
    [port] = mapped(lab, "a")
    assert lab.try_policy(b, blue=net_in(port["host_port"])).status == 409
    lab.policy(b, blue=net_in(port["host_port"] + 1))
    lab.policy(a, blue={"net_in": [entry(0), entry(0, 9090)]})
    numbers = [one["host_port"] for one in mapped(lab, "a")]
    assert numbers[0] == port["host_port"]
    assert port["host_port"] + 1 not in numbers


def test_a_released_port_is_free_again(lab: Lab, a: Machine, b: Machine, flow: Flow) -> None:
    lab.policy(a, blue=net_in(7010, protocol=flow.protocol))
    lab.policy(a, blue={})
    assert lab.reach(lab.outside, flow, UP[flow.family], 7010) == REFUSED
    bind(lab, 7010, flow).close()
    lab.policy(b, blue=net_in(7010, protocol=flow.protocol))
    assert lab.reach(lab.outside, flow, UP[flow.family], 7010).startswith("b ")


@pytest.fixture
def guest(lab: Lab) -> Iterator[Machine]:
    """A container that may go down."""
    machine = lab.container("guest", "blue")
    yield machine
    lab.remove(machine)


def test_the_ports_of_a_container_are_free_once_it_is_down(lab: Lab, guest: Machine, flow: Flow) -> None:
    lab.policy(guest, blue={"net_in": [entry(0, protocol=flow.protocol), entry(7010, protocol=flow.protocol)]})
    numbers = [one["host_port"] for one in mapped(lab, "guest")]
    assert lab.daemon.down("guest").status == 200
    for number in numbers:
        bind(lab, number, flow).close()
        assert lab.reach(lab.outside, flow, UP[flow.family], number) == REFUSED


def test_the_next_life_publishes_again(lab: Lab, guest: Machine, flow: Flow) -> None:
    lab.serve(guest, flow)
    lab.policy(guest, blue=net_in(7010, protocol=flow.protocol))
    lab.daemon.down("guest")
    eventually(lambda: len(guest.netns.json("ip", "-j", "link")) == 1, "the link is gone")
    assert lab.daemon.up("guest", guest.netns).status == 200
    assert lab.reach(lab.outside, flow, UP[flow.family], 7010).startswith("guest ")


def test_an_up_answers_with_the_ports_it_mapped(lab: Lab, guest: Machine) -> None:
    lab.policy(guest, blue={"net_in": [entry(0), entry(7010, protocol="udp", host_ip=UP_SECOND[4])]})
    told = lab.daemon.up("guest", guest.netns).body
    picked = mapped(lab, "guest")[0]["host_port"]
    assert told["external_ip"] == UP[4]
    assert told["mapped_ports"] == [
        {"host_port": picked, "container_port": SERVICE, "protocol": "tcp", "network": "blue"},
        {"host_port": 7010, "container_port": SERVICE, "protocol": "udp", "host_ip": UP_SECOND[4], "network": "blue"},
    ]


# Entries that change


def test_two_entries_swap_their_targets_in_one_step(lab: Lab, a: Machine, flow: Flow) -> None:
    lab.serve(a, flow, 9091)
    for first, second in ((SERVICE, 9091), (9091, SERVICE)):
        entries = [entry(7010, first, protocol=flow.protocol), entry(7011, second, protocol=flow.protocol)]
        lab.policy(a, blue={"net_in": entries})
        assert [(one["host_port"], one["container_port"]) for one in mapped(lab, "a")] == [
            (7010, first),
            (7011, second),
        ]
        assert lab.reach(lab.outside, flow, UP[flow.family], 7010).startswith("a ")
    lab.policy(a, blue=net_in(7010, 9999, protocol=flow.protocol))
    assert lab.reach(lab.outside, flow, UP[flow.family], 7010) == REFUSED


def test_an_entry_moves_between_every_address_and_one(lab: Lab, a: Machine, flow: Flow) -> None:
    first, second = UP[flow.family], UP_SECOND[flow.family]
    everywhere = net_in(7010, protocol=flow.protocol)
    one = net_in(7010, protocol=flow.protocol, host_ip=second)
    for policy, reached in ((everywhere, "a "), (one, REFUSED), (everywhere, "a ")):
        lab.policy(a, blue=policy)
        assert lab.reach(lab.outside, flow, first, 7010).startswith(reached)
        assert lab.reach(lab.outside, flow, second, 7010).startswith("a ")


def test_an_entry_that_could_not_move_stays_where_it_was(lab: Lab, a: Machine, b: Machine, flow: Flow) -> None:
    lab.policy(b, blue=net_in(7011, protocol=flow.protocol))
    lab.policy(a, blue=net_in(7010, protocol=flow.protocol))
    moved = [entry(7010, protocol=flow.protocol, host_ip=UP_SECOND[flow.family]), entry(7011, protocol=flow.protocol)]
    assert lab.try_policy(a, blue={"net_in": moved}).status == 409
    assert lab.reach(lab.outside, flow, UP[flow.family], 7010).startswith("a ")
    with pytest.raises(OSError, match="Address already in use"):
        bind(lab, 7010, flow)
    assert "host_ip" not in mapped(lab, "a")[0]


def test_a_stray_segment_does_not_make_the_host_reset_a_published_connection(lab: Lab, a: Machine) -> None:
    """Connection tracking calls what is outside the window invalid: without translation it would reach the host."""
    lab.policy(a, blue=net_in(7010))
    with Talk(lab.outside.netns, Flow("tcp", 4), UP[4], 7010) as talk, Capture(lab.outside.netns) as capture:
        [arp] = [one for one in lab.outside.netns.json("ip", "-j", "neigh") if one["dst"] == UP[4]]
        [own] = lab.outside.netns.json("ip", "-j", "link", "show", "eth0")
        stray = segment(OUTSIDE[4], UP[4], talk.port, 7010, flags=0x10)
        send(lab.outside.netns, ethernet(arp["lladdr"], own["address"], IPV4, stray))
        assert talk.say() == talk.first
        seen = capture.until(lambda frame: b"a 192.0.2.2" in frame, PATIENCE_S)
    resets = [frame for frame in seen if frame[12:14] == b"\x08\x00" and frame[23] == 6 and frame[47] & 0x04]
    assert resets == []
