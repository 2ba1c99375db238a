"""Identities by label set and selector, and which number is given out next."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conetd.errors import Exhausted
from conetd.model import IDENTITY_MAX, Identities, Identity, Labels, Selector, label_set
from conetd.model.cluster import NO_IDENTITIES
from conetd.reconcile.cluster import free_number

LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"), max_size=3).map(label_set)
HANDLES = st.none() | st.sampled_from(["web", "db"])
SELECTORS = st.builds(Selector, LABELS.filter(bool), HANDLES, st.booleans())
NUMBERS = st.integers(1, 6)
WANTED = st.tuples(LABELS, HANDLES)
# Of what a host knows each label set has one number, and each number one label set.
KNOWN = st.dictionaries(NUMBERS, WANTED, max_size=5).filter(lambda found: len({*found.values()}) == len(found))


def identities(known: dict[int, tuple[Labels, str | None]]) -> list[Identity]:
    return [Identity(number, labels, handle) for number, (labels, handle) in known.items()]


@given(KNOWN, SELECTORS)
def test_what_is_selected_is_what_matches_by_number(
    known: dict[int, tuple[Labels, str | None]], selector: Selector
) -> None:
    found = Identities.of(identities(known)).select(selector)
    assert found == [one for one in sorted(identities(known), key=lambda one: one.number) if one.matches(selector)]


@given(KNOWN, KNOWN, st.sets(NUMBERS), SELECTORS)
def test_changed_identities_are_as_if_made_anew(
    before: dict[int, tuple[Labels, str | None]],
    after: dict[int, tuple[Labels, str | None]],
    drop: set[int],
    selector: Selector,
) -> None:
    old = Identities.of(identities(before))
    old.select(selector)  # which is remembered
    changed = old.changed(put=identities(after), drop=drop)
    wanted = {number: one for number, one in before.items() if number not in drop} | after
    assert changed == Identities.of(identities(wanted))
    assert changed.select(selector) == Identities.of(identities(wanted)).select(selector)


@given(KNOWN, KNOWN, st.sets(NUMBERS))
def test_a_change_leaves_what_there_was_as_it_was(
    before: dict[int, tuple[Labels, str | None]], after: dict[int, tuple[Labels, str | None]], drop: set[int]
) -> None:
    old = Identities.of(identities(before))
    old.changed(put=identities(after), drop=drop)
    assert old == Identities.of(identities(before))
    assert {old.number(*wanted) for wanted in before.values()} == set(before)


@given(KNOWN, KNOWN, st.sets(NUMBERS), WANTED)
def test_the_number_is_that_of_the_label_set_or_none(
    before: dict[int, tuple[Labels, str | None]],
    after: dict[int, tuple[Labels, str | None]],
    drop: set[int],
    wanted: tuple[Labels, str | None],
) -> None:
    known = {number: one for number, one in before.items() if number not in drop} | after
    if len({*known.values()}) < len(known):
        return  # two numbers of one label set: which of them is not promised
    changed = Identities.of(identities(before)).changed(put=identities(after), drop=drop)
    assert changed.number(*wanted) == next((number for number, one in known.items() if one == wanted), 0)


def test_a_label_set_that_moves_to_another_number_is_found_there_while_both_are_known() -> None:
    """Others gave it a new number, and the old one is dropped only later."""
    web = label_set({"app": "web"})
    both = Identities.of([Identity(1, web)]).changed(put=[Identity(2, web)])
    assert both.number(web) == 2
    assert both.changed(drop=[1]).number(web) == 2


def test_a_selector_of_labels_means_all_who_have_at_least_these() -> None:
    selector = Selector(label_set({"app": "web"}))
    assert Identity(1, label_set({"app": "web", "tier": "front"})).matches(selector)
    assert Identity(1, label_set({"app": "web"}), handle="web-1").matches(selector)
    assert not Identity(1, label_set({"app": "db", "tier": "web"})).matches(selector)
    assert not Identity(1, ()).matches(selector)


def test_a_selector_of_a_handle_means_nobody_else_whatever_their_labels() -> None:
    selector = Selector(handle="web")
    assert Identity(1, (), handle="web").matches(selector)
    assert not Identity(1, ()).matches(selector)
    assert not Identity(1, (), handle="web-1").matches(selector)


def test_addresses_are_part_of_what_an_identity_is() -> None:
    one = Identity(1, ())
    assert replace(one, addresses=(ip_address("10.1.0.1"),)) != one


def test_the_same_labels_in_another_order_are_the_same_label_set() -> None:
    assert label_set({"b": "2", "a": "1"}) == label_set({"a": "1", "b": "2"}) == (("a", "1"), ("b", "2"))


# Numbers


@pytest.mark.parametrize(
    ("taken", "last", "wanted"),
    [
        (set(), 0, 1),
        ({1}, 1, 2),
        ({1, 3}, 1, 2),
        ({1, 2, 3}, 1, 4),
        (set(), 41, 42),
        (set(), IDENTITY_MAX, 1),
        ({1}, IDENTITY_MAX, 2),
        ({IDENTITY_MAX}, IDENTITY_MAX - 1, 1),
        (set(range(2, IDENTITY_MAX + 1)), 7, 1),
        (set(range(1, IDENTITY_MAX + 1)) - {7}, 7, 7),
    ],
)
def test_the_next_number_that_is_free_is_given_and_from_the_beginning_after_the_last(
    taken: set[int], last: int, wanted: int
) -> None:
    assert free_number("n", taken, last) == wanted


def test_a_number_that_was_let_go_comes_again_as_late_as_can_be() -> None:
    last, given_out = 0, []
    for _ in range(IDENTITY_MAX):  # nothing is taken: each was let go at once
        last = free_number("n", (), last)
        given_out.append(last)
    assert sorted(given_out) == list(range(1, IDENTITY_MAX + 1))
    assert free_number("n", (), last) == given_out[0]


def test_when_there_is_none_the_network_and_the_limit_are_named() -> None:
    with pytest.raises(Exhausted, match='network "n" has no identity left: 65535 label sets'):
        free_number("n", range(1, IDENTITY_MAX + 1), 5)


def test_no_identities_are_none() -> None:
    assert NO_IDENTITIES.select(Selector(label_set({"a": "x"}))) == []
    assert NO_IDENTITIES.number((), None) == 0
