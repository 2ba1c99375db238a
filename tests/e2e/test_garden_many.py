"""Thousands of NetOut rules in one request: they are taken, they hold, and more of them can follow."""

from __future__ import annotations

from typing import Any

import pytest
from garden import TCP, TCP4, UDP, UDP4, Garden, events, listing, ports, refusal, to
from onehost import OUTSIDE, SERVICE, UP, Lab, Machine
from traffic import REFUSED, Flow, Talk

MANY = 3000
FIRST, SECOND = 20000, 30000  # port of the first rule of each lot
CHOSEN = (0, 1, 1499, 2998, 2999)
OPENED = f"outside {UP[4]}"


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a, b on blue, which denies everything."""
    lab = bare_lab
    lab.daemon.network("blue", deny_networks=["0.0.0.0/0"])
    for name in "ab":
        lab.container(name, "blue")
    lab.serve(lab.containers["a"], TCP4)
    for flow in (TCP4, UDP4):
        lab.serve(lab.outside, flow)
        for number in CHOSEN:
            for start in (FIRST, SECOND):
                lab.serve(lab.outside, flow, start + number)
    return lab


def lot(start: int, protocol: int = TCP, **more: Any) -> list[dict[str, Any]]:
    """So many rules, each for a port of its own at one of five addresses outside, every other one elsewhere as well."""
    rules = []
    for number in range(MANY):
        networks = [{"start": f"192.0.2.{65 + number % 5}"}]
        if number % 2:
            networks.append({"start": f"203.{number % 250}.113.7", "end": f"203.{number % 250}.113.77"})
        rules.append({"protocol": protocol, "networks": networks, "ports": ports(start + number), **more})
    return rules


def held(lab: Lab, who: Machine, start: int, flow: Flow = TCP4) -> bool:
    """Whether the chosen rules of a lot open what they say and nothing beside it."""
    for number in CHOSEN:
        port = start + number
        answers = [lab.reach(who, flow, f"192.0.2.{65 + (number + shift) % 5}", port) for shift in (0, 1)]
        if answers != [OPENED, REFUSED] or lab.reach(who, flow.other, f"192.0.2.{65 + number % 5}", port) != REFUSED:
            return False
    return True


def test_thousands_of_rules_come_into_force_at_once(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.bulk(a, lot(FIRST))
    assert held(lab, a, FIRST)
    assert len(garden.policy(a)["policy"]["net_out"]) == MANY
    assert lab.reach(lab.containers["b"], TCP4, "192.0.2.65", FIRST) == REFUSED


def test_as_many_others_can_follow(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.bulk(a, lot(FIRST))
    garden.bulk(a, lot(SECOND, UDP))
    assert held(lab, a, FIRST)
    assert held(lab, a, SECOND, UDP4)
    rules = garden.policy(a)["policy"]["net_out"]
    assert [rules[at]["ports"][0]["start"] for at in (0, MANY - 1, MANY, 2 * MANY - 1)] == [
        SECOND + MANY - 1,
        SECOND,
        FIRST + MANY - 1,
        FIRST,
    ]


def test_the_same_again_changes_nothing(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.bulk(a, lot(FIRST))
    before = (garden.policy(a), listing(lab))
    garden.bulk(a, lot(FIRST))
    assert (garden.policy(a), listing(lab)) == before


def test_single_rules_and_ports_go_with_them(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.bulk(a, lot(FIRST))
    with Talk(a.netns, TCP4, "192.0.2.65", FIRST) as talk:
        garden.net_out(a, to(OUTSIDE[4], log=True))
        garden.net_in(a, 7010, SERVICE)
        assert talk.say() == talk.first == OPENED
    since = len(lab.daemon.log)
    assert lab.reach(a, TCP4, OUTSIDE[4]) == OPENED
    assert lab.reach(lab.outside, TCP4, UP[4], 7010) == f"a {OUTSIDE[4]}"
    assert len(events(lab, since, 1)) == 1
    assert held(lab, a, FIRST)


def test_one_bad_rule_among_them_refuses_them_all(lab: Lab, garden: Garden, a: Machine) -> None:
    before = (garden.policy(a), listing(lab))
    assert refusal(garden.try_bulk(a, [*lot(FIRST), {"protocol": 52}])) == "invalid protocol: 52"
    assert (garden.policy(a), listing(lab)) == before
    assert lab.reach(a, TCP4, "192.0.2.65", FIRST) == REFUSED


def test_they_are_in_force_after_a_kill(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.bulk(a, lot(FIRST))
    garden.bulk(a, lot(SECOND, UDP))
    before = (garden.policy(a), listing(lab))
    lab.daemon.kill()
    assert held(lab, a, FIRST)
    lab.daemon.start()
    assert (garden.policy(a), listing(lab)) == before
    assert held(lab, a, FIRST)
    assert held(lab, a, SECOND, UDP4)


def test_a_put_takes_them_all_back(lab: Lab, garden: Garden, a: Machine) -> None:
    before = sorted(listing(lab))
    garden.bulk(a, lot(FIRST))
    lab.policy(a)
    assert sorted(listing(lab)) == before
    assert lab.reach(a, TCP4, "192.0.2.65", FIRST) == REFUSED


def test_hundreds_that_log_are_in_force_each(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.bulk(a, lot(FIRST, log=True)[:400])
    since = len(lab.daemon.log)
    for number in (0, 399):
        with Talk(a.netns, TCP4, f"192.0.2.{65 + number % 5}", FIRST + number) as talk:
            assert talk.first in (OPENED, REFUSED)  # at the last nothing answers
    assert [event["destination_port"] for event in events(lab, since, 2)] == [str(FIRST), str(FIRST + 399)]


@pytest.mark.parametrize("what", ["info", "metrics"])
def test_one_request_asks_about_all_the_containers_that_a_host_may_have(lab: Lab, a: Machine, what: str) -> None:
    handles = [str(a), *(f"app-instance-{number:024}-{number:012}" for number in range(1500))]
    answer = lab.daemon.call("GET", f"/garden/containers/bulk_{what}?handles={','.join(handles)}", private=True)
    assert answer.status == 200
    assert set(answer.body) == set(handles)
    assert [handle for handle, told in answer.body.items() if told["Err"] is None] == [str(a)]
