"""Which tracked connections a policy does not accept, and in which parts a changed one can forbid any."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from conetd.kernel.flows import Flow
from conetd.model import TCP, UDP, AddressRange, IPAddress, MarkRange, PortRange, Rule, Verdict
from conetd.plan import EndpointPolicy, NetworkFilter, Tunnel
from conetd.reconcile.forbidden import EVERYTHING, Scope, forbidden, narrowed

OWN, NEIGHBOUR, WORLD = ip_address("10.1.3.2"), ip_address("10.1.4.2"), ip_address("203.0.113.7")
TUNNELLED = NetworkFilter("net", (ip_network("10.1.0.0/16"),), tunnel=Tunnel("cx0", 4789, 42, ((4, 24),)))
PLAIN = replace(TUNNELLED, tunnel=None)
ANY = Rule(Verdict.ACCEPT)
SEVEN = Rule(Verdict.ACCEPT, marks=(MarkRange(7, 7),))
POLICY = EndpointPolicy("key")
IN, OUT, ABROAD = (NEIGHBOUR, OWN), (OWN, NEIGHBOUR), (OWN, WORLD)


def flow(source: IPAddress, to: IPAddress, mark: int = 0) -> Flow:
    return Flow(TCP, source, 40000, to, 80, to, 80, source, 40000, mark=mark)


def ends(
    one: Flow, policy: EndpointPolicy, network: NetworkFilter = TUNNELLED, scopes: frozenset[Scope] = EVERYTHING
) -> list[IPAddress]:
    return [other for _, other in forbidden([one], policy, [OWN], network, scopes)]


@pytest.mark.parametrize(
    ("one", "policy"),
    [
        pytest.param(flow(*IN), replace(POLICY, ingress=()), id="opened towards it, none may"),
        pytest.param(flow(*IN, mark=8), replace(POLICY, ingress=(SEVEN,)), id="by another identity"),
        pytest.param(flow(*IN, mark=0x10007), replace(POLICY, ingress=(SEVEN,)), id="with somebody else's mark"),
        pytest.param(flow(WORLD, OWN, 7), replace(POLICY, ingress=(SEVEN,)), id="from the world with that mark"),
        pytest.param(flow(*OUT), replace(POLICY, inside=()), id="opened inside, nothing may"),
        pytest.param(flow(*ABROAD), replace(POLICY, rules=(Rule(Verdict.DROP),)), id="opened to the world"),
    ],
)
def test_what_a_part_of_the_policy_does_not_accept_is_forbidden(one: Flow, policy: EndpointPolicy) -> None:
    assert ends(one, policy) == [NEIGHBOUR if NEIGHBOUR in (one.source, one.destination) else WORLD]


@pytest.mark.parametrize(
    ("one", "policy"),
    [
        pytest.param(flow(*IN), POLICY, id="opened towards it, all may"),
        pytest.param(flow(*IN, mark=7), replace(POLICY, ingress=(SEVEN,)), id="by an identity that may"),
        pytest.param(flow(*OUT), replace(POLICY, ingress=()), id="opened by itself"),
        pytest.param(flow(*OUT), replace(POLICY, rules=(Rule(Verdict.DROP),)), id="inside, where rules do not judge"),
        pytest.param(flow(*OUT), replace(POLICY, inside=(ANY,)), id="opened inside, as it may"),
        pytest.param(flow(*ABROAD), replace(POLICY, inside=()), id="to the world, where inside does not judge"),
        pytest.param(flow(NEIGHBOUR, WORLD), replace(POLICY, ingress=(), inside=()), id="of others"),
    ],
)
def test_what_the_policy_accepts_or_does_not_judge_stays(one: Flow, policy: EndpointPolicy) -> None:
    assert ends(one, policy) == []


def test_the_target_of_a_published_port_judges() -> None:
    published = replace(flow(WORLD, ip_address("192.0.2.1")), reply_source=OWN, reply_source_port=8080)
    port = Rule(Verdict.ACCEPT, TCP, ports=(PortRange(8080, 8080),))
    assert ends(published, replace(POLICY, ingress=(port,))) == []
    assert ends(published, replace(POLICY, ingress=(replace(port, ports=(PortRange(80, 80),)),))) == [WORLD]


def test_only_parts_that_are_asked_for_judge() -> None:
    closed = EndpointPolicy("key", (Rule(Verdict.DROP),), ingress=(), inside=())
    asked = {scope: [bool(ends(flow(*one), closed, scopes=frozenset({scope}))) for one in (ABROAD, OUT, IN)]
             for scope in Scope}  # fmt: skip
    assert asked == {
        Scope.WORLD: [True, False, False],
        Scope.INSIDE: [False, True, False],
        Scope.INGRESS: [False, False, True],
    }


def test_without_a_tunnel_nobody_kept_identities_so_rules_about_them_end_nothing() -> None:
    assert ends(flow(*IN), replace(POLICY, ingress=(SEVEN,)), PLAIN) == []
    assert ends(flow(*IN), replace(POLICY, ingress=()), PLAIN) == [NEIGHBOUR]


def to(*addresses: IPAddress) -> Rule:
    return Rule(Verdict.ACCEPT, TCP, tuple(AddressRange(one, one) for one in addresses))


MORE_MARKS = replace(SEVEN, marks=(MarkRange(1, 7),), origin="policies[1]")


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        pytest.param((SEVEN,), (SEVEN,), False, id="the same"),
        pytest.param((SEVEN,), None, False, id="all may"),
        pytest.param((SEVEN,), (ANY, SEVEN), False, id="one more rule"),
        pytest.param((SEVEN,), (MORE_MARKS,), False, id="one more identity"),
        pytest.param((SEVEN,), (ANY,), False, id="any identity"),
        pytest.param((to(OWN),), (to(WORLD, OWN),), False, id="one more address"),
        pytest.param(None, (ANY,), True, id="from all to some"),
        pytest.param((MORE_MARKS,), (SEVEN,), True, id="fewer identities"),
        pytest.param((ANY,), (SEVEN,), True, id="an identity needed"),
        pytest.param((to(OWN, WORLD),), (to(OWN),), True, id="fewer addresses"),
        pytest.param((to(OWN),), (replace(to(OWN), protocol=UDP),), True, id="another protocol"),
        pytest.param((SEVEN,), (SEVEN, Rule(Verdict.DROP, UDP)), True, id="a rule that drops"),
    ],
)
def test_only_a_part_that_may_accept_less_is_narrowed(
    before: tuple[Rule, ...] | None, after: tuple[Rule, ...] | None, found: bool
) -> None:
    ingress = narrowed(replace(POLICY, ingress=before), replace(POLICY, ingress=after))
    inside = narrowed(replace(POLICY, inside=before), replace(POLICY, inside=after))
    assert (ingress, inside) == (
        (frozenset({Scope.INGRESS}), frozenset({Scope.INSIDE})) if found else (frozenset(),) * 2
    )


def test_any_change_of_what_goes_to_the_world_is_looked_at() -> None:
    assert narrowed(POLICY, replace(POLICY, rules=(ANY,))) == {Scope.WORLD}
    assert narrowed(None, POLICY) == EVERYTHING
