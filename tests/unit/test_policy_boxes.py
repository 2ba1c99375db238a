"""Disjoint boxes cover exactly what the overlapping ones did."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from conetd.policy.boxes import Rectangle, Span, covers, layers, merge, subtract

SPAN = st.tuples(st.integers(0, 12), st.integers(0, 12))
ORDERED = SPAN.map(lambda span: (min(span), max(span)))
RECTANGLE = st.tuples(ORDERED, ORDERED).map(lambda pair: (*pair[0], *pair[1]))


def cells(rectangles: list[Rectangle]) -> set[tuple[int, int]]:
    return {(x, y) for a, b, c, d in rectangles for x in range(a, b + 1) for y in range(c, d + 1)}


def numbers(spans: list[Span]) -> set[int]:
    return {one for first, last in spans for one in range(first, last + 1)}


def overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] <= other[1] and other[0] <= one[1] and one[2] <= other[3] and other[2] <= one[3]


@given(st.lists(SPAN))
def test_merge_keeps_the_numbers_and_leaves_gaps_between_spans(spans: list[Span]) -> None:
    merged = merge(spans)

    assert numbers(merged) == numbers(spans)
    assert all(left[1] + 1 < right[0] for left, right in pairwise(merged))


@given(st.lists(SPAN), st.lists(SPAN))
def test_subtract_leaves_what_no_hole_holds(spans: list[Span], holes: list[Span]) -> None:
    assert numbers(subtract(merge(spans), merge(holes))) == numbers(spans) - numbers(holes)


@given(st.lists(SPAN), ORDERED)
def test_covers_tells_whether_all_numbers_are_there(spans: list[Span], wanted: Span) -> None:
    assert covers(merge(spans), *wanted) == (numbers([wanted]) <= numbers(spans))


@given(st.lists(RECTANGLE, max_size=30))
def test_layers_cover_the_same_area(rectangles: list[Rectangle]) -> None:
    assert cells([one for layer in layers(rectangles) for one in layer]) == cells(rectangles)


@given(st.lists(RECTANGLE, max_size=30))
def test_rectangles_of_a_layer_are_disjoint_and_not_reversed(rectangles: list[Rectangle]) -> None:
    for layer in layers(rectangles):
        assert all(a <= b and c <= d for a, b, c, d in layer)
        assert not any(overlap(one, other) for one, other in combinations(layer, 2))


def test_a_crossing_grid_goes_into_two_layers_instead_of_exploding() -> None:
    flat = [(0, 10_000, 2 * port, 2 * port) for port in range(500)]
    tall = [(2 * address, 2 * address, 0, 1000) for address in range(500)]

    found = layers(flat + tall)

    assert len(found) == 2
    assert sum(map(len, found)) <= 1001


def test_wide_and_narrow_boxes_that_do_not_overlap_stay_whole() -> None:
    wide = [(0, 10_000, 2 * port, 2 * port) for port in range(500)]
    narrow = [(2 * number, 2 * number, 2000 + 2 * number, 2000 + 2 * number) for number in range(500)]

    assert [len(layer) for layer in layers(wide + narrow)] == [1000]


def test_covered_boxes_disappear() -> None:
    assert layers([(0, 100, 0, 100), (5, 6, 7, 8), (0, 100, 50, 50)]) == [[(0, 100, 0, 100)]]


def test_neighbouring_ports_and_networks_become_one_box() -> None:
    assert layers([(0, 9, 80, 80), (0, 9, 81, 82), (10, 19, 80, 82)]) == [[(0, 19, 80, 82)]]
