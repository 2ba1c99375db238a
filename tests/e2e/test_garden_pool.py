"""The pool that NetIn takes host ports from: its order, its end, who gives ports back, and what a restart leaves."""

from __future__ import annotations

import pytest
from garden import TCP4, Garden, bind, is_free, listing, refusal, refusing_kernel, translations
from onehost import OUTSIDE, SERVICE, UP, Lab, Machine
from world import eventually

START, SIZE = 61001, 5
POOL = list(range(START, START + SIZE))


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue; the pool is small."""
    lab = bare_lab
    assert lab.daemon.stop() == 0
    lab.daemon.settings += f"\nport_pool = {{ start = {START}, size = {SIZE} }}\n"
    lab.daemon.start()
    lab.daemon.network("blue")
    for name in "ab":
        lab.container(name, "blue")
        lab.serve(lab.containers[name], TCP4)
    return lab


def after(port: int, steps: int = 1) -> int:
    """The port that the pool gives out so many steps later."""
    return POOL[(port - START + steps) % SIZE]


def take(garden: Garden, who: Machine, count: int) -> list[int]:
    """So many ports of the pool."""
    return [garden.net_in(who, 0, SERVICE)[0] for _ in range(count)]


# Order


def test_ports_come_one_after_the_other_and_from_the_start_again(garden: Garden, a: Machine) -> None:
    taken = take(garden, a, SIZE)
    assert taken == [after(taken[0], step) for step in range(SIZE)]


def test_a_port_that_was_given_back_comes_last(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    [given_back] = take(garden, a, 1)
    others = take(garden, b, SIZE - 2)
    lab.policy(a)
    assert take(garden, b, 2) == [after(others[-1]), given_back]


def test_a_port_of_the_pool_that_was_asked_for_by_number_is_passed_over(garden: Garden, a: Machine, b: Machine) -> None:
    [last] = take(garden, a, 1)
    assert garden.net_in(b, after(last, 2), SERVICE) == (after(last, 2), SERVICE)
    assert take(garden, a, 2) == [after(last, 1), after(last, 3)]


def test_a_port_of_the_pool_that_a_process_has_is_passed_over(lab: Lab, garden: Garden, a: Machine) -> None:
    [last] = take(garden, a, 1)
    with bind(lab, after(last)):
        assert take(garden, a, 1) == [after(last, 2)]


# Its end


def test_an_empty_pool_says_so_and_nothing_is_changed(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    take(garden, a, SIZE)
    before = (garden.policy(b), garden.info(b), listing(lab))
    for container_port in (0, SERVICE):
        assert refusal(garden.try_net_in(b, 0, container_port)) == "port pool is exhausted"
    assert (garden.policy(b), garden.info(b), listing(lab)) == before


def test_a_pool_whose_last_port_a_process_has_is_empty(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    taken = take(garden, a, SIZE - 1)
    with bind(lab, after(taken[-1])):
        assert refusal(garden.try_net_in(b)) == "port pool is exhausted"
    assert take(garden, b, 1) == [after(taken[-1])]


def test_an_empty_pool_does_not_keep_from_other_ports(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    take(garden, a, SIZE)
    refusal(garden.try_net_in(b))
    assert garden.net_in(b, 7010, SERVICE) == (7010, SERVICE)
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == f"b {OUTSIDE[4]}"


def test_what_an_empty_pool_refused_takes_no_port_once_there_is_one(
    lab: Lab, garden: Garden, a: Machine, b: Machine
) -> None:
    take(garden, a, SIZE)
    for _ in range(SIZE):
        refusal(garden.try_net_in(b))
    lab.policy(a)
    assert sorted(take(garden, b, SIZE)) == POOL


# What gives ports back


def test_a_container_s_end_frees_every_port_it_had(lab: Lab, garden: Garden, a: Machine) -> None:
    guest = lab.container("guest", "blue")
    [last] = take(garden, guest, 1)
    explicit = [7010, after(last, 2), 7011]
    for port in explicit:
        garden.net_in(guest, port, SERVICE)
    assert not any(is_free(lab, port) for port in (last, *explicit))
    assert lab.daemon.down("guest").status == 200
    assert all(is_free(lab, port) for port in (last, *explicit))
    assert not any(translations(lab, port) for port in (last, *explicit))
    assert sorted(take(garden, a, SIZE)) == POOL
    lab.remove(guest)


@pytest.mark.parametrize("asked", [0, 7010], ids=["pool", "explicit"])
def test_what_the_kernel_refuses_is_undone_and_its_port_given_back(
    lab: Lab, garden: Garden, a: Machine, b: Machine, asked: int
) -> None:
    [last] = take(garden, b, 1)
    port = asked or after(last)
    before = (garden.policy(a)["policy"], garden.info(a))
    with refusing_kernel(lab, "nat", "POSTROUTING"):
        said = refusal(garden.try_net_in(a, asked, SERVICE))
        assert any(words in said for words in ("Operation not permitted", "Invalid argument")), said
        assert (garden.policy(a)["policy"], garden.info(a)) == before
        assert garden.policy(a)["source"] == "default_policy"
        assert is_free(lab, port)
    assert translations(lab, port) == []
    eventually(lambda: lab.daemon.get("/status").status == 200, "all is as wanted")
    assert lab.reach(lab.outside, TCP4, UP[4], last) == f"b {OUTSIDE[4]}"
    assert garden.net_in(a, port, SERVICE) == (port, SERVICE)
    assert lab.reach(lab.outside, TCP4, UP[4], port) == f"a {OUTSIDE[4]}"


# Restarts


def test_the_pool_goes_on_where_it_stood(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    taken = take(garden, a, 2)
    lab.policy(a)
    assert lab.daemon.stop() == 0
    lab.daemon.start()
    assert take(garden, b, 1) == [after(taken[-1])]


@pytest.mark.parametrize("graceful", [True, False], ids=["stop", "kill"])
def test_mappings_are_there_and_their_ports_held_after_a_restart(
    lab: Lab, garden: Garden, a: Machine, b: Machine, graceful: bool
) -> None:
    made = [garden.net_in(a, 0, SERVICE), garden.net_in(a, 7010, SERVICE)]
    inside = after(made[0][0], 2)
    made.append(garden.net_in(a, inside, SERVICE))
    before = (garden.policy(a), listing(lab))
    if graceful:
        assert lab.daemon.stop() == 0
    else:
        lab.daemon.kill()
    assert [lab.reach(lab.outside, TCP4, UP[4], port) for port, _ in made] == [f"a {OUTSIDE[4]}"] * 3
    lab.daemon.start()
    assert garden.mapped(a) == made
    assert (garden.policy(a), listing(lab)) == before
    assert [lab.reach(lab.outside, TCP4, UP[4], port) for port, _ in made] == [f"a {OUTSIDE[4]}"] * 3
    for port, _ in made:
        assert refusal(garden.try_net_in(b, port, SERVICE)) == f'host port {port}/tcp is held by container "a"'
    assert sorted([*take(garden, b, SIZE - 2), made[0][0], inside]) == POOL
    refusal(garden.try_net_in(b))


def test_a_mapping_that_was_answered_outlives_a_kill(lab: Lab, garden: Garden, a: Machine, b: Machine) -> None:
    answered = garden.net_in(a, 0, SERVICE)
    lab.daemon.kill()
    lab.daemon.start()
    assert garden.mapped(a) == [answered]
    assert lab.reach(lab.outside, TCP4, UP[4], answered[0]) == f"a {OUTSIDE[4]}"
    assert answered[0] not in take(garden, b, SIZE - 1)


def test_a_mapping_that_stands_is_the_same_after_a_restart(lab: Lab, garden: Garden, a: Machine) -> None:
    made = [garden.net_in(a, 7010, SERVICE), garden.net_in(a, 0, SERVICE)]
    lab.daemon.kill()
    lab.daemon.start()
    assert [garden.net_in(a, *one) for one in made] == made
    assert garden.mapped(a) == made
    assert len(translations(lab, 7010)) == 1


def test_a_container_that_ended_meanwhile_gives_its_ports_back_at_start(lab: Lab, garden: Garden, a: Machine) -> None:
    guest = lab.container("guest", "blue")
    garden.net_in(guest, 7010, SERVICE)
    take(garden, guest, SIZE)
    lab.daemon.kill()
    guest.netns.close()
    lab.daemon.start()
    assert is_free(lab, 7010)
    assert sorted(take(garden, a, SIZE)) == POOL
    lab.remove(guest)


def test_a_port_that_a_process_took_while_the_daemon_was_away_is_not_given_out(
    lab: Lab, garden: Garden, a: Machine
) -> None:
    [last] = take(garden, a, 1)
    assert lab.daemon.stop() == 0
    with bind(lab, after(last)):
        lab.daemon.start()
        assert take(garden, a, 1) == [after(last, 2)]
