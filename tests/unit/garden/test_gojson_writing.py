"""JSON is written as Go's Encoder writes it, and whatever was written is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conetd.garden import gojson, wire
from conetd.garden.gojson import BadValue, DecodeError, first_value


@pytest.mark.parametrize(
    ("document", "written"),
    [
        ({}, b"{}"),
        ([], b"[]"),
        (None, b"null"),
        ({"b": 1, "a": [True, False, None, ""]}, b'{"b":1,"a":[true,false,null,""]}'),
        ({"<k>": "a<b>&c"}, rb'{"\u003ck\u003e":"a\u003cb\u003e\u0026c"}'),
        ("\u2028\u2029", rb'"\u2028\u2029"'),
        ("é😀\u2027\u202a\x7f'/", '"é😀\u2027\u202a\x7f\'/"'.encode()),
        ('"\\\b\f\n\r\t\x00\x1f', rb'"\"\\\b\f\n\r\t\u0000\u001f"'),
        ("\ud800x\udfff", '"\ufffdx\ufffd"'.encode()),
        ({"\udc80": 1}, '{"\ufffd":1}'.encode()),
    ],
)
def test_a_document_is_written_as_go_writes_it(document: Any, written: bytes) -> None:
    assert gojson.encode(document) == written + b"\n"


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
surrogates = st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010, categories=None))


@given(documents)
def test_what_is_written_is_one_line_that_says_the_same(document: Any) -> None:
    line = gojson.encode(document)

    assert line.index(b"\n") == len(line) - 1
    assert not set("<>&\u2028\u2029") & set(line.decode())
    assert json.loads(line) == document


@given(documents)
def test_of_what_is_written_twice_the_first_is_read_back(document: Any) -> None:
    line = gojson.encode(document)

    assert first_value(line + line) == first_value(line)


@given(documents, st.integers(1, 200))
def test_what_is_cut_off_is_never_read_as_something_else(document: Any, length: int) -> None:
    line = gojson.encode([document])

    with pytest.raises(DecodeError):
        first_value(line[: min(length, len(line) - 2)])


@given(documents, st.integers(1, 200))
def test_what_is_cut_off_outside_of_an_escape_is_an_unexpected_eof(document: Any, length: int) -> None:
    line = gojson.encode([document]).replace(rb"\u", b"u")

    with pytest.raises(DecodeError, match=r"\Aunexpected EOF\Z"):
        first_value(line[: min(length, len(line) - 2)])


@given(st.binary())
def test_any_bytes_are_read_or_refused_with_words_that_can_be_told(body: bytes) -> None:
    try:
        told = first_value(body)
    except DecodeError as err:
        told = err.message

    assert gojson.encode(told).endswith(b"\n")


@given(surrogates)
def test_every_string_can_be_written_halves_of_pairs_as_replacement_characters(text: str) -> None:
    halves = [one for one in text if "\ud800" <= one <= "\udfff"]
    written = json.loads(gojson.encode(text))

    assert written.count("\ufffd") == len(halves)
    assert len(written) == len(text)


@pytest.mark.parametrize(
    "body",
    [
        b'[{"Protocol": 1, "networks": [{"start": "10.0.0.1"}, null], "ports": [{"start": 80, "end": 443}]}]',
        b'[{"icmps": {"type": 3, "code": 0}, "protocol": 3, "more": [{}]}, null, {}]',
    ],
)
def test_what_python_read_is_decoded_by_the_same_rules(body: bytes) -> None:
    assert wire.net_out_rules(json.loads(body), None, ()) == wire.net_out_rules(first_value(body), None, ())


@pytest.mark.parametrize("value", [-1, 1 << 16, True, "1", [1], {"a": 1}, 1.0, 1e2])
def test_what_python_read_is_refused_by_the_same_rules(value: Any) -> None:
    decode = gojson.unsigned("uint16", 16)
    with pytest.raises(BadValue) as read:
        decode(first_value(json.dumps(value).encode()), None, ())
    with pytest.raises(BadValue) as parsed:
        decode(value, None, ())
    assert (parsed.value.message, parsed.value.fields) == (read.value.message, read.value.fields)


def test_a_float_is_no_whole_number_whatever_its_value() -> None:
    with pytest.raises(BadValue, match=r"cannot unmarshal number 80\.0 into Go value of type uint16"):
        gojson.unsigned("uint16", 16)(80.0, None, ())
