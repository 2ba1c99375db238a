"""NetOut and BulkNetOut as changes: in which order rules stand, what is refused, and that a refusal leaves no trace."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from garden import ALL, ICMP, ICMPV6, TCP, TCP4, UDP, UDP4, Garden, listing, ports, refusal, refusing_kernel, to
from onehost import OUTSIDE, SERVICE, UP, Lab, Machine
from traffic import REFUSED
from world import eventually

GOOD = to(OUTSIDE[4], protocol=TCP, ports=ports(SERVICE))
OTHER = to(OUTSIDE[4], protocol=UDP, ports=ports(SERVICE))


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a on blue, which denies everything and has no IPv6; s on six, which has it."""
    lab = bare_lab
    lab.daemon.network("blue", deny_networks=["0.0.0.0/0"])
    lab.daemon.network("six", subnet="10.60.0.0/24", subnet6="fd00:60::/64", deny_networks=["0.0.0.0/0", "::/0"])
    lab.container("a", "blue")
    lab.container("s", "six")
    for flow in (TCP4, UDP4):
        lab.serve(lab.outside, flow)
    return lab


@pytest.fixture
def s(lab: Lab) -> Machine:
    return lab.containers["s"]


def net_out(garden: Garden, who: Machine, network: str = "blue") -> list[str]:
    """Which addresses the container's rules begin with, in the order in which they are judged."""
    return [rule["networks"][0]["start"] for rule in garden.policy(who, network)["policy"]["net_out"]]


def numbered(*numbers: int) -> list[dict[str, Any]]:
    return [to(f"203.0.113.{number}") for number in numbers]


def addresses(*numbers: int) -> list[str]:
    return [f"203.0.113.{number}" for number in numbers]


# Order


def test_the_newest_rule_stands_on_top(garden: Garden, a: Machine) -> None:
    garden.net_out(a, *numbered(1, 2, 3))
    assert net_out(garden, a) == addresses(3, 2, 1)


def test_the_last_rule_of_a_bulk_stands_on_top(garden: Garden, a: Machine) -> None:
    garden.bulk(a, numbered(1, 2, 3))
    assert net_out(garden, a) == addresses(3, 2, 1)


def test_a_bulk_stands_above_what_came_before_and_below_what_comes_after(garden: Garden, a: Machine) -> None:
    garden.net_out(a, *numbered(1, 2))
    garden.bulk(a, numbered(3, 4))
    garden.net_out(a, *numbered(5))
    garden.bulk(a, numbered(6, 7))
    assert net_out(garden, a) == addresses(7, 6, 5, 4, 3, 2, 1)


def test_rules_stand_above_those_of_the_policy_they_were_added_to(lab: Lab, garden: Garden, a: Machine) -> None:
    lab.policy(a, blue={"net_out": numbered(1, 2)})
    garden.net_out(a, *numbered(3))
    garden.bulk(a, numbered(4, 5))
    assert net_out(garden, a) == addresses(5, 4, 3, 1, 2)


def test_a_rule_that_stands_on_top_already_changes_nothing(lab: Lab, garden: Garden, a: Machine) -> None:
    garden.net_out(a, *numbered(1, 2))
    before = (garden.policy(a), listing(lab))
    garden.net_out(a, *numbered(2))
    garden.bulk(a, numbered(1, 2))
    assert (garden.policy(a), listing(lab)) == before


def test_a_rule_that_stands_further_down_comes_on_top_again(garden: Garden, a: Machine) -> None:
    garden.net_out(a, *numbered(1, 2, 1))
    assert net_out(garden, a) == addresses(1, 2, 1)


def test_rules_that_come_at_once_all_stand(garden: Garden, a: Machine) -> None:
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda number: garden.net_out(a, *numbered(number)), range(20)))
    assert sorted(net_out(garden, a)) == sorted(addresses(*range(20)))


def test_rules_and_ports_that_come_at_once_all_stand(garden: Garden, a: Machine) -> None:
    with ThreadPoolExecutor(10) as pool:
        rules = pool.map(lambda number: garden.bulk(a, numbered(number, number + 100)), range(10))
        ports = pool.map(lambda number: garden.net_in(a, 7100 + number, SERVICE), range(10))
        made = (list(rules), sorted(ports))[1]
    assert sorted(net_out(garden, a)) == sorted(addresses(*range(10), *range(100, 110)))
    assert sorted(garden.mapped(a)) == made


# Nothing to do


@pytest.mark.parametrize("rules", [[], None], ids=["empty", "null"])
def test_a_bulk_without_rules_changes_nothing(lab: Lab, garden: Garden, a: Machine, rules: list[Any] | None) -> None:
    before = (garden.policy(a), listing(lab))
    garden.bulk(a, rules)
    assert (garden.policy(a), listing(lab)) == before
    assert garden.policy(a)["source"] == "default_policy"


def test_a_rule_that_can_match_nothing_changes_nothing(lab: Lab, garden: Garden, a: Machine) -> None:
    before = (garden.policy(a), listing(lab))
    garden.net_out(a, to("203.0.113.9", "203.0.113.1"))
    assert (garden.policy(a), listing(lab)) == before


@pytest.mark.parametrize("rule", [{}, None], ids=["empty", "null"])
def test_a_rule_that_says_nothing_opens_everything(
    lab: Lab, garden: Garden, a: Machine, rule: dict[str, Any] | None
) -> None:
    garden.net_out(a, rule)
    assert [lab.reach(a, flow, OUTSIDE[4]) for flow in (TCP4, UDP4)] == [f"outside {UP[4]}"] * 2


# What is refused

REFUSALS = [
    ({"protocol": ALL, "ports": ports(80)}, "Ports cannot be specified for Protocol ALL"),
    ({"ports": [{}]}, "Ports cannot be specified for Protocol ALL"),
    ({"protocol": ICMP, "ports": ports(80)}, "Ports cannot be specified for Protocol ICMP"),
    ({"protocol": ICMPV6, "ports": ports(80)}, "Ports cannot be specified for Protocol "),
    ({"protocol": 52, "ports": ports(80)}, "Ports cannot be specified for Protocol "),
    ({"protocol": ICMPV6}, "invalid protocol: 4"),
    ({"protocol": 5}, "invalid protocol: 5"),
    ({"protocol": 52}, "invalid protocol: 52"),
    ({"protocol": 255}, "invalid protocol: 255"),
    ({"protocol": ALL, "icmps": {"type": 8}}, "icmps: cannot be specified for Protocol ALL"),
    ({"protocol": TCP, "icmps": {}}, "icmps: cannot be specified for Protocol TCP"),
    ({"protocol": UDP, "icmps": {"type": 8}}, "icmps: cannot be specified for Protocol UDP"),
    ({"protocol": TCP, "ports": [{"start": 80}]}, "ports[0]: 80:0: invalid portrange (min > max)"),
    ({"protocol": UDP, "ports": [*ports(53), {"start": 9, "end": 8}]}, "ports[1]: 9:8: invalid portrange (min > max)"),
    (to("2001:db8::2"), "networks[0]: host/network 2001:db8::2 not found: the network has no IPv6"),
    (
        {"networks": [{"start": "192.0.2.2"}, {"end": "2001:db8::2"}]},
        "networks[1]: host/network 2001:db8::2 not found: the network has no IPv6",
    ),
]
SIX_REFUSALS = [
    ({"protocol": ICMPV6, "ports": ports(80)}, "Ports cannot be specified for Protocol "),
    ({"protocol": 5}, "invalid protocol: 5"),
    (to("192.0.2.2", "2001:db8::2"), "networks[0]: bad IP range 192.0.2.2-2001:db8::2: one is IPv4, the other IPv6"),
    (to("2001:db8::2", "192.0.2.2"), "networks[0]: bad IP range 2001:db8::2-192.0.2.2: one is IPv4, the other IPv6"),
    (to("2001:db8::2", protocol=ICMP), "networks[0]: host/network 2001:db8::2 not found: it has no Protocol ICMP"),
    (to("192.0.2.2", protocol=ICMPV6), "networks[0]: host/network 192.0.2.2 not found: it has no Protocol ICMPV6"),
]


@pytest.mark.parametrize(("rule", "said"), REFUSALS, ids=str)
def test_a_refused_rule_changes_nothing(lab: Lab, garden: Garden, a: Machine, rule: dict[str, Any], said: str) -> None:
    garden.net_out(a, GOOD)
    before = (garden.policy(a), garden.info(a), listing(lab))
    assert refusal(garden.try_net_out(a, rule)) == said
    assert (garden.policy(a), garden.info(a), listing(lab)) == before


@pytest.mark.parametrize(("rule", "said"), SIX_REFUSALS, ids=str)
def test_a_refused_rule_changes_nothing_where_there_is_ipv6(
    lab: Lab, garden: Garden, s: Machine, rule: dict[str, Any], said: str
) -> None:
    before = (garden.policy(s, "six"), listing(lab))
    assert refusal(garden.try_net_out(s, rule)) == said
    assert (garden.policy(s, "six"), listing(lab)) == before


@pytest.mark.parametrize(("rule", "said"), REFUSALS, ids=str)
def test_one_refused_rule_refuses_its_whole_bulk(
    lab: Lab, garden: Garden, a: Machine, rule: dict[str, Any], said: str
) -> None:
    garden.net_out(a, OTHER)
    before = (garden.policy(a), listing(lab))
    for rules, number in (([GOOD, rule], 1), ([rule, GOOD], 0)):
        gardens_own = said.startswith(("Ports cannot", "invalid protocol"))
        assert refusal(garden.try_bulk(a, rules)) == (said if gardens_own else f"[{number}].{said}")
    assert (garden.policy(a), listing(lab)) == before
    assert lab.reach(a, TCP4, OUTSIDE[4]) == REFUSED
    assert lab.reach(a, UDP4, OUTSIDE[4]) == f"outside {UP[4]}"


def test_a_refusal_of_a_container_s_first_rule_leaves_it_its_default_policy(garden: Garden, a: Machine) -> None:
    before = garden.policy(a)
    refusal(garden.try_bulk(a, [GOOD, {"protocol": 52}]))
    assert garden.policy(a) == before
    assert before["source"] == "default_policy"


@pytest.mark.parametrize("body", [b"[{}", b"{", b'{"protocol":"tcp"}', b'[{"ports":[{"start":65536}]}]', b""], ids=repr)
def test_a_body_that_cannot_be_read_changes_nothing(lab: Lab, garden: Garden, a: Machine, body: bytes) -> None:
    garden.net_out(a, GOOD)
    before = (garden.policy(a), listing(lab))
    for path in ("net/out", "net/out/bulk"):
        refusal(lab.daemon.call("POST", f"/garden/containers/a/{path}", private=True, raw=body))
    assert (garden.policy(a), listing(lab)) == before


@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
def test_what_the_kernel_refuses_is_undone(lab: Lab, garden: Garden, a: Machine, bulk: bool) -> None:
    garden.net_out(a, OTHER)
    before = garden.policy(a)["policy"]
    with refusing_kernel(lab, "filter", "OUTPUT"):
        answer = garden.try_bulk(a, [GOOD, *numbered(1)]) if bulk else garden.try_net_out(a, GOOD)
        said = refusal(answer)
        assert any(words in said for words in ("Operation not permitted", "Invalid argument")), said
        assert garden.policy(a)["policy"] == before
    eventually(lambda: lab.daemon.get("/status").status == 200, "all is as wanted")
    assert lab.reach(a, TCP4, OUTSIDE[4]) == REFUSED
    assert lab.reach(a, UDP4, OUTSIDE[4]) == f"outside {UP[4]}"
    garden.net_out(a, GOOD)
    assert lab.reach(a, TCP4, OUTSIDE[4]) == f"outside {UP[4]}"
