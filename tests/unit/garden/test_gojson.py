"""JSON is read with the leniency and the words of Go's encoding/json.

Messages are those of Go 1.26: what its decoder says of the same bytes.
"""

from __future__ import annotations

from typing import Any

import pytest

from conetd.garden import gojson
from conetd.garden.gojson import BadValue, DecodeError, Number, Object, first_value

MEMBERS: dict[str, gojson.Decoder] = {
    "count": gojson.unsigned("uint8", 8),
    "name": gojson.text,
    "on": gojson.switch,
}


def read(body: bytes, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """The members of a struct, as they stand after the body was decoded into it."""
    made: dict[str, Any] = gojson.struct(first_value(body), "pkg.Thing", MEMBERS, (), before or {})
    return made


def fault(body: bytes) -> str:
    with pytest.raises(DecodeError) as refused:
        first_value(body)
    return refused.value.message


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"null", None),
        (b"true", True),
        (b"false", False),
        (b'""', ""),
        (b"0", "0"),
        (b"-0.50e+07", "-0.50e+07"),
        (b"123456789012345678901234567890", "123456789012345678901234567890"),
        (b"[]", []),
        (b"[1, [null]]", ["1", [None]]),
        (b"{}", ()),
        (b'{"b": 1, "a": {"c": true}}', (("b", "1"), ("a", (("c", True),)))),
        (rb'"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"', '"\\/\b\f\n\r\té😀'),
        ('"é\u2028\x7f\'"'.encode(), "é\u2028\x7f'"),
    ],
)
def test_a_value_is_read_with_its_numbers_as_they_were_written(body: bytes, value: Any) -> None:
    assert first_value(body) == value


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"1", Number), (b'"1"', str), (b"{}", Object), (b"[]", list), (b"true", bool)],
)
def test_a_number_is_told_from_a_string_and_an_object_from_an_array(body: bytes, kind: type) -> None:
    assert type(first_value(body)) is kind


def test_members_stay_in_their_order_and_a_name_may_come_twice() -> None:
    assert first_value(b'{"b":1,"a":2,"b":null}') == (("b", "1"), ("a", "2"), ("b", None))


@pytest.mark.parametrize(
    "behind", [b" ", b"\n", b"{}", b"garbage", b"}", b"\x00", b"\xff", b" [", b',{"count":9}', b'\n{"count":9}']
)
def test_only_the_first_value_is_read_and_what_follows_is_ignored(behind: bytes) -> None:
    assert first_value(b'{"count":1}' + behind) == (("count", "1"),)


@pytest.mark.parametrize(("body", "value"), [(b"nullx", None), (b"truefalse", True), (b"01", "0"), (b"1x", "1")])
def test_a_word_or_a_number_ends_where_it_ends(body: bytes, value: Any) -> None:
    assert first_value(body) == value


def test_white_space_is_what_json_calls_so() -> None:
    assert first_value(b' \t\r\n{ \t\r\n"a" \t\r\n: \t\r\n1 \t\r\n}') == (("a", "1"),)


@pytest.mark.parametrize("body", [b"", b" ", b"\n", b"\t\r\n "])
def test_a_body_without_a_value_is_eof(body: bytes) -> None:
    assert fault(body) == "EOF"


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"[", b'"', b'"abc', b'"\\', b'"\xc3', b"tru", b"nul", b"-"),
        *(b'{"a"', b'{"a":', b'{"a": ', b'{"a":1', b'{"a":1 \n', b'{"a":1,', b'{"a":-', b'{"a":fals', b'{"a":[{}'),
        *(b"[1", b"[1,", b"[1, "),
    ],
)
def test_a_body_that_ends_too_early_is_an_unexpected_eof(body: bytes) -> None:
    assert fault(body) == "unexpected EOF"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"]", "']' looking for beginning of value"),
        (b"}", "'}' looking for beginning of value"),
        (b"garbage", "'g' looking for beginning of value"),
        (b"/* c */ {}", "'/' looking for beginning of value"),
        (b"\x0b{}", "'\\v' looking for beginning of value"),
        (b"[,1]", "',' looking for beginning of value"),
        (b"[1,]", "']' looking for beginning of value"),
        (b'{"a":}', "'}' looking for beginning of value"),
        (b'{"a":+1}', "'+' looking for beginning of value"),
        (b'{"a":.5}', "'.' looking for beginning of value"),
        (b'{"a":True}', "'T' looking for beginning of value"),
        (b"{\"a\":'x'}", "'\\'' looking for beginning of value"),
        (b'{"a":\x00}', "'\\x00' looking for beginning of value"),
        (b'{"a":\x07}', "'\\a' looking for beginning of value"),
        (b'{"a":\x7f}', "'\\x7f' looking for beginning of value"),
        # Go looks at bytes: the first one of a character of several, or one that is none
        (b"\xef\xbb\xbf{}", "'ï' looking for beginning of value"),
        (b'{"a":\xc3\xa9}', "'Ã' looking for beginning of value"),
        (b'{"a":\xff}', "'ÿ' looking for beginning of value"),
        (b"\xa0{}", "'\\u00a0' looking for beginning of value"),
        (b"{'a':1}", "'\\'' looking for beginning of object key string"),
        (b"{1:2}", "'1' looking for beginning of object key string"),
        (b"{,}", "',' looking for beginning of object key string"),
        (b'{"a":1,}', "'}' looking for beginning of object key string"),
        (b'{"a" 1}', "'1' after object key"),
        (b'{"a"=1}', "'=' after object key"),
        (b'{"a":1 "b":2}', "'\"' after object key:value pair"),
        (b'{"a":{} 1}', "'1' after object key:value pair"),
        (b'{"a":[1] ]', "']' after object key:value pair"),
        (b'{"protocol":01}', "'1' after object key:value pair"),
        (b"[1 2]", "'2' after array element"),
        (b'[{"a":1}}', "'}' after array element"),
        (b'{"a":"\n"}', "'\\n' in string literal"),
        (b'{"a":"\x01"}', "'\\x01' in string literal"),
        (rb'{"a":"\x"}', "'x' in string escape code"),
    ],
)
def test_a_character_that_cannot_stand_there_is_named_with_what_was_looked_for(body: bytes, message: str) -> None:
    assert fault(body) == f"invalid character {message}"


@pytest.mark.parametrize(
    "value", [b"NaN", b"Infinity", b"-Infinity", b"nan", b"1_000", b"0x10", b"1.", b".1", b"--1", b"1e", b"01", b"+1"]
)
def test_what_is_no_number_in_json_is_refused_though_another_would_take_it(value: bytes) -> None:
    assert fault(b'{"count":%s}' % value).startswith("invalid character '")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"count":NaN}', "invalid character 'N' looking for beginning of value"),
        (b'{"count":Infinity}', "invalid character 'I' looking for beginning of value"),
        (b'{"count":-Infinity}', "invalid character 'I' in numeric literal"),
        (b'{"count":-}', "invalid character '}' in numeric literal"),
        (b'{"count":1.}', "invalid character '}' after decimal point in numeric literal"),
        (b'{"count":1e}', "invalid character '}' in exponent of numeric literal"),
        (b'{"count":1.', "unexpected EOF"),
        (b'{"count":tru}', "invalid character '}' in literal true (expecting 'e')"),
        (b'{"count":falsy}', "invalid character 'y' in literal false (expecting 'e')"),
        (b'{"count":nil}', "invalid character 'i' in literal null (expecting 'u')"),
        (b'{"count":\\}', "invalid character '\\\\' looking for beginning of value"),
        (rb'{"a":"\u12zz"}', "invalid character 'z' in \\u hexadecimal character escape"),
        (rb'{"a":"\u12', "unexpected EOF"),
        (b'{"a":"b\n', "invalid character '\\n' in string literal"),
        (b'[""n', "invalid character 'n' after array element"),
    ],
)
def test_a_fault_is_told_where_go_finds_it(body: bytes, message: str) -> None:
    assert fault(body) == message


@pytest.mark.parametrize(("sent", "signs"), [(b"\xff", 1), (b"\xe2\x82", 2), (b"\xed\xa0\x80", 3), (b"\xc3(", 1)])
def test_each_byte_of_a_string_that_is_no_utf_8_is_told_as_one_replacement_character(sent: bytes, signs: int) -> None:
    told = gojson.encode(first_value(b'"' + sent + b'"')).decode()
    assert told.count("\ufffd") == signs


@pytest.mark.parametrize("sent", [rb'"\ud800"', rb'"\udfff"', rb'"\udc00\ud800x"', rb'"\ud800\u0041"'])
def test_half_a_surrogate_pair_is_told_as_a_replacement_character(sent: bytes) -> None:
    told = gojson.encode(first_value(sent)).decode()
    assert "\ufffd" in told


def test_what_is_nested_too_deeply_is_refused() -> None:
    assert fault(b'{"a":' + b"[" * 100_000).endswith("exceeded max depth")


@pytest.mark.parametrize("opened", [b"[", b'{"a":'])
def test_a_hundred_levels_are_not_too_deep(opened: bytes) -> None:
    closed = b"]" if opened == b"[" else b"}"
    assert first_value(opened * 100 + b"null" + closed * 100) is not None


# Structs


@pytest.mark.parametrize(
    "name",
    ["count", "Count", "COUNT", "cOuNt"],
)
def test_names_match_in_any_case(name: str) -> None:
    assert read(f'{{"{name}": 7}}'.encode()) == {"count": 7}


@pytest.mark.parametrize(
    ("one", "other"),
    [("ports", "port\u017f"), ("PORTS", "port\u017f"), ("networks", "networK\u017f"), ("K", "\u212a"), ("k", "\u212a")],
)
def test_two_letters_beyond_ascii_fold_to_ascii(one: str, other: str) -> None:
    assert gojson.fold(one) == gojson.fold(other)


@pytest.mark.parametrize("other", ["i\u0307", "İ", "\u0131", "ß", "ss", "\uff53", "cöunt"])
def test_no_other_letters_do(other: str) -> None:
    names = {gojson.fold(name) for name in ("i", "s", "count")}
    assert gojson.fold(other) not in names


@pytest.mark.parametrize(
    "body", [b'{"other": 1, "count": 7, "counts": "x", "": [{"count": 9}], "coun": {}}', b'{"count":7, "\\ud800":1}']
)
def test_unknown_members_are_ignored(body: bytes) -> None:
    assert read(body) == {"count": 7}


@pytest.mark.parametrize("body", [b"null", b"{}", b'{"count":null,"name":null,"on":null}'])
def test_null_changes_nothing_of_what_was_there(body: bytes) -> None:
    before = {"count": 7, "name": "x", "on": True}
    assert read(body, before) == before


def test_null_is_zero_where_nothing_was_there() -> None:
    assert read(b'{"count":null,"name":null,"on":null}') == {"count": 0, "name": "", "on": False}


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b'{"count":1,"count":2}', 2),
        (b'{"count":2,"COUNT":1}', 1),
        (b'{"count":1,"count":null}', 1),
        (b'{"count":null,"count":1}', 1),
    ],
)
def test_of_a_name_that_comes_twice_the_last_value_holds_and_null_is_none(body: bytes, count: int) -> None:
    assert read(body) == {"count": count}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "array"),
        (b'"x"', "string"),
        (b"5", "number"),
        (b"true", "bool"),
    ],
)
def test_what_is_no_object_does_not_go_into_a_struct(body: bytes, message: str) -> None:
    with pytest.raises(BadValue) as refused:
        read(body)
    assert refused.value.message == f"json: cannot unmarshal {message} into Go value of type pkg.Thing"


@pytest.mark.parametrize(
    ("member", "value", "found", "kind"),
    [
        ("count", b'"1"', "string", "uint8"),
        ("count", b"true", "bool", "uint8"),
        ("count", b"[1]", "array", "uint8"),
        ("count", b"{}", "object", "uint8"),
        # a number is shown where the type takes numbers, and nowhere else
        ("count", b"256", "number 256", "uint8"),
        ("count", b"-1", "number -1", "uint8"),
        ("count", b"-0", "number -0", "uint8"),
        ("count", b"1.0", "number 1.0", "uint8"),
        ("count", b"1e0", "number 1e0", "uint8"),
        ("count", b"99999999999999999999999", "number 99999999999999999999999", "uint8"),
        ("name", b"1", "number", "string"),
        ("name", b"false", "bool", "string"),
        ("name", b"[]", "array", "string"),
        ("name", b"{}", "object", "string"),
        ("on", b"1", "number", "bool"),
        ("on", b'"true"', "string", "bool"),
        ("on", b"[]", "array", "bool"),
        ("on", b"{}", "object", "bool"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_place(member: str, value: bytes, found: str, kind: str) -> None:
    with pytest.raises(BadValue) as refused:
        read(b'{"%s": %s}' % (member.upper().encode(), value))
    assert refused.value.message == f"json: cannot unmarshal {found} into Go struct field Thing.{member} of type {kind}"
    assert list(refused.value.fields) == [member]


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_number_may_use_all_bits_of_its_type_and_not_one_more(bits: int) -> None:
    decode = gojson.unsigned(f"uint{bits}", bits)
    assert decode(Number((1 << bits) - 1), None, ()) == (1 << bits) - 1
    with pytest.raises(BadValue, match=f"cannot unmarshal number {1 << bits} into Go value of type uint{bits}$"):
        decode(Number(1 << bits), None, ())


@pytest.mark.parametrize("digits", ["9" * 21, "9" * 5000, "0" * 5000, "\u0663", "1_0", "+1", ""])
def test_no_text_that_stands_for_a_number_is_too_much_for_the_decoder(digits: str) -> None:
    with pytest.raises(BadValue, match="cannot unmarshal number"):
        gojson.unsigned("uint32", 32)(Number(digits), None, ())


def test_a_complaint_says_the_range_and_the_value() -> None:
    with pytest.raises(BadValue) as refused:
        gojson.unsigned("uint32", 32, 65535)(Number("-1"), None, ("netin", 2, "host_port"))
    assert refused.value.fields == {"netin[2].host_port": "must be a whole number from 0 to 65535 (got -1)"}


@pytest.mark.parametrize(("value", "wanted"), [(None, ()), ([], ()), ([Number("1"), None], (1, 0))])
def test_an_array_is_decoded_member_by_member_and_null_is_none(value: Any, wanted: tuple[int, ...]) -> None:
    assert gojson.array(value, MEMBERS["count"], "[]uint8", ()) == wanted


@pytest.mark.parametrize(
    ("value", "found"), [(Object(), "object"), ("x", "string"), (Number("1"), "number"), (True, "bool")]
)
def test_what_is_no_array_does_not_go_into_a_slice(value: Any, found: str) -> None:
    with pytest.raises(BadValue) as refused:
        gojson.array(value, MEMBERS["count"], "[]uint8", ("counts",))
    assert refused.value.message == f"json: cannot unmarshal {found} into Go value of type []uint8"
