"""The comparison of the documentation with what is printed lets through what it should, and nothing else."""

from __future__ import annotations

import pytest
from docmatch import matches


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("a  b\nc\n", "a b c"),
        ("up in 12.3 ms", "up in ... ms"),
        ('{"a":1,"b":[1,2]}\n', '{"b": [1, 2], "a": 1}'),
        ('{"a":1,"b":2}', '{"a": 1, ...}'),
        ('{"a":1,"b":2}', '{..., "b": 2}'),
        ('{"a":{"x":1}}', '{"a": {...}}'),
        ('{"a":7}', '{"a": ...}'),
        ("[1,2,3]", "[..., 3]"),
        ('{"a":"cb1234"}', '{"a": "cb..."}'),
        ('{"a":1}\n{"b":2}\n', '{"a": 1}\n{"b": 2}'),
        ("", ""),
    ],
)
def test_what_the_page_means_is_taken(printed: str, shown: str) -> None:
    assert matches(printed, shown)


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("a b d", "a b c"),
        ("up in 12.3 s", "up in ... ms"),
        ('{"a":1,"b":2}', '{"a": 1}'),
        ('{"a":1}', '{"a": 1, "b": 2}'),
        ('{"a":1}', '{"a": 2, ...}'),
        ('{"a":true}', '{"a": 1}'),
        ("[1,2]", "[1]"),
        ("[1,2]", "[..., 3]"),
        ('{"a":1}', '{"a": 1}\n{"b": 2}'),
        ("", '{"a": 1}'),
    ],
)
def test_what_the_page_does_not_mean_is_refused(printed: str, shown: str) -> None:
    assert not matches(printed, shown)
