"""Policies that several endpoints have, and identities as the kernel looks them up: made once, gone with the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from conetd.kernel.nft.chain import AnonymousSet, Chain
from conetd.kernel.nft.mirror import Mirror
from conetd.kernel.nft.objects import of_attachment
from conetd.kernel.nft.verdicts import verdict_rules
from conetd.model import TCP, MarkRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, NetworkFilter

V4, V6 = ip_address("10.1.0.2"), ip_address("fd01::2")
NETWORK = NetworkFilter("net", (ip_network("10.1.0.0/24"), ip_network("fd01::/64")))
ENDPOINT = Endpoint("key", "net", "web-1", "cv0", (V4, V6), "02:00:0a:01:00:02", mark=7)
POLICY = EndpointPolicy("key")
WEB = (Rule(Verdict.ACCEPT, TCP, marks=(MarkRange(7, 7), MarkRange(9, 30))),)
LABELLED = replace(POLICY, ingress=WEB)
MORE = replace(POLICY, ingress=(replace(WEB[0], marks=(MarkRange(7, 7), MarkRange(9, 31))),))


def other(rules: tuple[Rule, ...] | None) -> tuple[Endpoint, EndpointPolicy]:
    endpoint = Endpoint("other", "net", "web-2", "cv1", (V4 + 1, V6 + 1), "02:00:0a:01:00:03", mark=8)
    return endpoint, EndpointPolicy("other", ingress=rules)


def names(found: Sequence[Chain]) -> list[str]:
    return sorted(chain.name[:2] for chain in found)


def test_a_policy_with_labels_is_one_chain_for_all_who_have_it() -> None:
    mirror = Mirror([NETWORK, ENDPOINT, LABELLED])
    (unit,) = mirror.change(other(WEB), ()).units
    assert names(unit.new_chains) == ["e-", "i-", "s-"]


def test_a_policy_that_several_have_goes_with_the_last() -> None:
    mirror = Mirror([NETWORK, ENDPOINT, LABELLED, *other(WEB)])
    change = mirror.change([POLICY], ())
    assert {name[:2] for unit in change.units for name in unit.gone_chains} == {"i-"}
    mirror.commit(change)
    change = mirror.change((), [("EndpointPolicy", "other")])
    assert {name[:2] for unit in change.units for name in unit.gone_chains} >= {"i-", "p-"}


def test_a_policy_that_changes_for_all_changes_once() -> None:
    mirror = Mirror([NETWORK, ENDPOINT, LABELLED, *other(WEB)])
    change = mirror.change([MORE, replace(MORE, key="other")], ())
    assert names([chain for unit in change.units for chain in unit.new_chains]) == ["i-", "i-", "p-"]
    assert sorted(name[:2] for unit in change.units for name in unit.gone_chains) == ["i-", "i-", "p-"]


def test_a_policy_of_a_newcomer_and_a_standing_one_is_made_with_the_standing_ones() -> None:
    mirror = Mirror([NETWORK, ENDPOINT, LABELLED])
    change = mirror.change([*other(MORE.ingress), MORE], ())
    assert [unit.live for unit in change.units if "p-" in names(unit.new_chains)] == [True]


@pytest.mark.parametrize(
    "policy",
    [
        replace(LABELLED, log_denied=True),
        replace(LABELLED, ingress=(replace(WEB[0], log=True),)),
        replace(POLICY, ingress=(Rule(Verdict.ACCEPT),)),
    ],
    ids=["logs what it denies", "a rule logs", "no labels"],
)
def test_other_policies_stand_in_the_chain_of_their_endpoint(policy: EndpointPolicy) -> None:
    assert "p-" not in names(of_attachment(ENDPOINT, policy, NETWORK).chains)


def test_marks_are_looked_up_as_single_numbers_unless_there_are_too_many() -> None:
    def sets_of(*marks: MarkRange) -> list[tuple[tuple[int, ...], int]]:
        rules = verdict_rules(
            [Rule(Verdict.ACCEPT, marks=marks)], 4, prefix="", log_denied=False, log_chain="", subject=""
        )
        parts = [part for rule in rules for part in rule.parts if isinstance(part, AnonymousSet)]
        return [(part.fields, len(part.elements)) for part in parts]

    assert sets_of(MarkRange(1, 3), MarkRange(7, 7), MarkRange(3, 4)) == [((), 5)]
    assert sets_of(MarkRange(0, 40000), MarkRange(50000, 60000)) == [((1, 4), 2)]
