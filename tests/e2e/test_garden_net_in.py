"""NetIn: which ports it publishes, what it answers, who may have a port, and what a refusal leaves."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from garden import TCP4, TCP6, UDP4, Garden, bind, is_free, listing, refusal, translations
from onehost import DENY, OUTSIDE, SERVICE, UP, UP_SECOND, Lab, Machine
from traffic import REFUSED
from world import eventually

POOL = range(61001, 65535)


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue; `waiting` is configured and was never up."""
    lab = bare_lab
    lab.daemon.network("blue", subnet6="fd00:10::/64", deny_networks=DENY)
    for name in "ab":
        lab.container(name, "blue")
    lab.daemon.join("waiting", "blue")
    for machine in lab.containers.values():
        for port in (SERVICE, 9090):
            lab.serve(machine, TCP4, port)
        lab.serve(machine, UDP4)
    lab.serve(lab.host, UDP4)
    return lab


# Which ports


def test_no_port_asked_for_is_one_of_the_pool_on_both_sides(lab: Lab, garden: Garden, a: Machine) -> None:
    host_port, container_port = garden.net_in(a)
    assert host_port in POOL
    assert container_port == host_port
    lab.serve(a, TCP4, container_port)
    assert lab.reach(lab.outside, TCP4, UP[4], host_port) == f"a {OUTSIDE[4]}"


def test_no_host_port_asked_for_is_one_of_the_pool(lab: Lab, garden: Garden, a: Machine) -> None:
    host_port, container_port = garden.net_in(a, 0, SERVICE)
    assert host_port in POOL
    assert container_port == SERVICE
    assert lab.reach(lab.outside, TCP4, UP[4], host_port) == f"a {OUTSIDE[4]}"


def test_no_container_port_asked_for_is_the_host_port(lab: Lab, garden: Garden, a: Machine) -> None:
    assert garden.net_in(a, 9090, 0) == (9090, 9090)
    assert lab.reach(lab.outside, TCP4, UP[4], 9090) == f"a {OUTSIDE[4]}"


def test_both_ports_are_as_asked_for(lab: Lab, garden: Garden, a: Machine) -> None:
    assert garden.net_in(a, 7010, SERVICE) == (7010, SERVICE)
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == f"a {OUTSIDE[4]}"


def test_a_mapping_translates_to_the_container_s_port_and_no_other(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_in(a, 7010, 9099)  # nothing answers there
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == REFUSED


def test_the_highest_port_can_be_published(lab: Lab, garden: Garden, a: Machine) -> None:
    assert garden.net_in(a, 65535, SERVICE) == (65535, SERVICE)
    assert lab.reach(lab.outside, TCP4, UP[4], 65535) == f"a {OUTSIDE[4]}"


def test_several_mappings_are_listed_in_the_order_they_came(lab: Lab, garden: Garden, a: Machine) -> None:
    made = [garden.net_in(a, 7012, SERVICE), garden.net_in(a, 0, 9090), garden.net_in(a, 7010, SERVICE)]
    assert garden.mapped(a) == made
    assert [lab.reach(lab.outside, TCP4, UP[4], port) for port, _ in made] == [f"a {OUTSIDE[4]}"] * 3


def test_only_tcp_is_published(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_in(a, 7010, SERVICE)
    assert lab.reach(lab.outside, UDP4, UP[4], 7010) == REFUSED
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == f"a {OUTSIDE[4]}"
    bind(lab, 7010, "udp").close()


def test_a_host_port_of_udp_stays_the_host_s(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_in(a, SERVICE, SERVICE)
    assert lab.reach(lab.outside, UDP4, UP[4]) == f"host {OUTSIDE[4]}"
    assert lab.reach(lab.outside, TCP4, UP[4]) == f"a {OUTSIDE[4]}"


def test_a_network_with_ipv6_publishes_there_too(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_in(a, 7010, SERVICE)
    assert lab.reach(lab.outside, TCP6, UP[6], 7010) == f"a {OUTSIDE[6]}"


def test_a_published_port_is_bound_on_the_host(lab: Lab, garden: Garden, a: Machine) -> None:
    host_port, _ = garden.net_in(a)
    assert not is_free(lab, host_port)


# Asked for twice


def test_an_explicit_mapping_again_is_the_same_mapping(lab: Lab, garden: Garden, a: Machine) -> None:
    first = garden.net_in(a, 7010, SERVICE)
    before = (garden.policy(a), listing(lab))
    assert garden.net_in(a, 7010, SERVICE) == first
    assert garden.mapped(a) == [first]
    assert len(translations(lab, 7010)) == 1
    assert (garden.policy(a), listing(lab)) == before


def test_an_explicit_mapping_is_the_same_however_the_container_port_is_written(garden: Garden, a: Machine) -> None:
    for container_port in (0, 9090, 0):
        assert garden.net_in(a, 9090, container_port) == (9090, 9090)
    assert garden.mapped(a) == [(9090, 9090)]


def test_any_host_port_again_is_another_one(lab: Lab, garden: Garden, a: Machine) -> None:
    made = [garden.net_in(a, 0, SERVICE) for _ in range(3)]
    assert len(set(made)) == 3
    assert garden.mapped(a) == made
    assert [lab.reach(lab.outside, TCP4, UP[4], port) for port, _ in made] == [f"a {OUTSIDE[4]}"] * 3


def test_a_port_of_the_pool_asked_for_by_its_number_is_the_same_mapping(garden: Garden, a: Machine) -> None:
    picked = garden.net_in(a, 0, SERVICE)
    assert garden.net_in(a, picked[0], SERVICE) == picked
    assert garden.mapped(a) == [picked]


def test_a_request_that_is_repeated_under_its_key_is_answered_as_before(lab: Lab, garden: Garden, a: Machine) -> None:
    first = garden.try_net_in_once(a, "one", 0, SERVICE)
    assert first.status == 200
    assert garden.try_net_in_once(a, "one", 0, SERVICE) == first
    lab.daemon.kill()
    lab.daemon.start()
    assert garden.try_net_in_once(a, "one", 0, SERVICE) == first
    assert garden.mapped(a) == [(first.body["host_port"], SERVICE)]
    assert garden.try_net_in_once(a, "two", 0, SERVICE) != first
    assert len(garden.mapped(a)) == 2


def test_a_key_is_forgotten_with_what_was_answered_to_it(lab: Lab, garden: Garden, a: Machine) -> None:
    first = garden.try_net_in_once(a, "one", 0, SERVICE)
    lab.policy(a)
    second = garden.try_net_in_once(a, "one", 0, SERVICE)
    assert second.status == 200
    assert garden.mapped(a) == [(second.body["host_port"], SERVICE)]
    assert second != first


def test_two_host_ports_may_lead_to_one_container_port(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_in(a, 7010, SERVICE)
    garden.net_in(a, 7011, SERVICE)
    assert [lab.reach(lab.outside, TCP4, UP[4], port) for port in (7010, 7011)] == [f"a {OUTSIDE[4]}"] * 2


def test_many_at_once_get_a_port_each(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    who = [a, b] * 10
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda one: garden.net_in(one, 0, SERVICE), who))
    assert len({port for port, _ in made}) == 20
    for one in (a, b):
        mine = [mapping for whose, mapping in zip(who, made, strict=True) if whose is one]
        assert sorted(garden.mapped(one)) == sorted(mine)
        assert lab.reach(lab.outside, TCP4, UP[4], mine[-1][0]) == f"{one} {OUTSIDE[4]}"


def test_the_same_explicit_port_at_once_is_one_container_s(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: garden.try_net_in(one, 7010, SERVICE), [a, b] * 4))
    winner = "a" if answers[0].status == 200 else "b"
    assert [answer.status for answer in answers] == ([200, 500] if winner == "a" else [500, 200]) * 4
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == f"{winner} {OUTSIDE[4]}"


# Who has a port


def test_a_port_of_another_container_is_refused_naming_it(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    garden.net_in(a, 7010, SERVICE)
    assert refusal(garden.try_net_in(b, 7010, 9090)) == 'host port 7010/tcp is held by container "a"'
    assert garden.mapped(b) == []
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == f"a {OUTSIDE[4]}"


def test_a_port_of_the_container_itself_for_another_container_port_is_refused(
    lab: Lab, garden: Garden, a: Machine
) -> None:
    garden.net_in(a, 7010, SERVICE)
    assert refusal(garden.try_net_in(a, 7010, 9090)) == 'host port 7010/tcp is held by container "a"'
    assert garden.mapped(a) == [(7010, SERVICE)]
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == f"a {OUTSIDE[4]}"


def test_a_port_that_a_policy_publishes_is_refused(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    lab.policy(b, blue={"net_in": [{"host_port": 7010, "container_port": SERVICE}]})
    assert refusal(garden.try_net_in(a, 7010, SERVICE)) == 'host port 7010/tcp is held by container "b"'


def test_a_port_the_container_publishes_on_one_address_is_refused(lab: Lab, garden: Garden, a: Machine) -> None:
    lab.policy(a, blue={"net_in": [{"host_port": 7010, "container_port": SERVICE, "host_ip": UP_SECOND[4]}]})
    assert refusal(garden.try_net_in(a, 7010, SERVICE)) == 'host port 7010/tcp is held by container "a"'


def test_a_port_the_container_publishes_for_udp_is_free_for_tcp(lab: Lab, garden: Garden, a: Machine) -> None:
    lab.policy(a, blue={"net_in": [{"host_port": 7010, "container_port": SERVICE, "protocol": "udp"}]})
    garden.net_in(a, 7010, SERVICE)
    assert lab.reach(lab.outside, UDP4, UP[4], 7010) == f"a {OUTSIDE[4]}"
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == f"a {OUTSIDE[4]}"


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", UP[4]])
def test_a_port_of_a_process_is_refused_naming_pid_and_command(
    lab: Lab, garden: Garden, a: Machine, address: str
) -> None:
    script = (
        "import socket, sys, time\n"
        "s = socket.socket()\ns.bind((sys.argv[1], 7010))\ns.listen()\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    process = lab.host.netns.popen(["python3", "-c", script, address], stdout=-1, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        said = refusal(garden.try_net_in(a, 7010, SERVICE))
        assert re.fullmatch(rf"host port 7010/tcp is held by process {process.pid} \(python3[^)]*\).*", said), said
        assert garden.mapped(a) == []
    finally:
        process.kill()
        process.wait()
    garden.net_in(a, 7010, SERVICE)


def test_the_pool_passes_over_what_others_have(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    last, _ = garden.net_in(a)
    garden.net_in(b, last + 1, SERVICE)
    with bind(lab, last + 2):
        assert garden.net_in(a)[0] == last + 3


# What a refusal leaves


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((7010, 9090), 'host port 7010/tcp is held by container "b"'),
        ((70000, 0), "host_port: 70000 is no port: the highest is 65535"),
        ((65536, 80), "host_port: 65536 is no port: the highest is 65535"),
        ((0, 70000), "container_port: 70000 is no port: the highest is 65535"),
        ((7011, 4294967295), "container_port: 4294967295 is no port: the highest is 65535"),
    ],
    ids=str,
)
def test_what_is_refused_changes_nothing(
    lab: Lab, garden: Garden, a: Machine, b: Machine, asked: tuple[int, int], said: str
) -> None:
    garden.net_in(b, 7010, SERVICE)
    before = (garden.policy(a), garden.info(a), listing(lab))
    assert refusal(garden.try_net_in(a, *asked)) == said
    assert (garden.policy(a), garden.info(a), listing(lab)) == before
    assert garden.policy(a)["source"] == "default_policy"
    assert is_free(lab, 7011)


def test_a_refusal_takes_no_port_of_the_pool(garden: Garden, a: Machine, b: Machine) -> None:
    last, _ = garden.net_in(b)
    refusal(garden.try_net_in(a, last, SERVICE))
    refusal(garden.try_net_in(a, 0, 70000))
    assert garden.net_in(a)[0] == last + 1


# Who is there


def test_an_unknown_handle_is_told_so(garden: Garden) -> None:
    for answer in (
        garden.try_net_in("nobody", 7010, SERVICE),
        garden.try_net_out("nobody", {}),
        garden.try_bulk("nobody", []),
    ):
        assert refusal(answer, "ContainerNotFoundError", "nobody", 404) == "unknown handle: nobody"


def test_a_container_that_was_never_up_is_unknown(lab: Lab, garden: Garden) -> None:
    for answer in (
        garden.try_net_in("waiting", 7010, SERVICE),
        garden.try_net_out("waiting", {}),
        garden.try_bulk("waiting", [{}]),
    ):
        assert refusal(answer, "ContainerNotFoundError", "waiting", 404) == "unknown handle: waiting"
    assert is_free(lab, 7010)


def test_a_container_that_is_down_is_unknown(lab: Lab, garden: Garden) -> None:
    guest = lab.container("guest", "blue")
    garden.net_in(guest, 7010, SERVICE)
    assert lab.daemon.down("guest").status == 200
    for answer in (
        garden.try_net_in(guest, 7010, SERVICE),
        garden.try_net_out(guest, {}),
        garden.try_bulk(guest, []),
        lab.daemon.call("GET", "/garden/containers/guest/info", private=True),
        lab.daemon.call("GET", "/garden/containers/guest/metrics", private=True),
    ):
        assert refusal(answer, "ContainerNotFoundError", "guest", 404) == "unknown handle: guest"
    assert is_free(lab, 7010)
    lab.remove(guest)


def test_a_container_whose_process_ended_becomes_unknown(lab: Lab, garden: Garden) -> None:
    guest = lab.container("guest", "blue")
    garden.net_in(guest, 7010, SERVICE)
    guest.netns.close()
    eventually(lambda: garden.try_net_in(guest, 7011, SERVICE).status == 404, "its end is noticed")
    eventually(lambda: is_free(lab, 7010), "its port is free")
    lab.remove(guest)
