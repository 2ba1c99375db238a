"""Where Go's scanner stops in a text that is no JSON, and what it says there."""

from __future__ import annotations

import re

_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*')
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{0,3})?")
_NUMBER = re.compile(r"-?((?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?)?")
_EXPONENT = re.compile(r"[eE][+-]?")
_WORDS = {"t": "true", "f": "false", "n": "null"}
_CLOSING = {"{": "}", "[": "]"}
_DEEPEST = 10_000
_QUOTED = {0x27: "\\'", 0x22: '"', 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x08: "\\b", 0x0C: "\\f"}
_QUOTED |= {0x07: "\\a", 0x0B: "\\v"}


class _Stop(Exception):
    def __init__(self, text: str, at: int, why: str) -> None:
        super().__init__(_message(text[at : at + 1], why))


def fault(text: str) -> str:
    """The message of Go's decoder for a text whose first value is no JSON."""
    opened: list[str] = []
    at = 0
    try:
        while True:
            at = _skip(text, at)
            mark = text[at : at + 1]
            if mark in _CLOSING:
                if len(opened) == _DEEPEST:
                    raise _Stop(text, at, "exceeded max depth")
                opened.append(mark)
                at = _skip(text, at + 1)
                if text[at : at + 1] != _CLOSING[mark]:
                    at = _key(text, at) if mark == "{" else at
                    continue
            else:
                at = _scalar(text, at)
                if not opened:
                    return "unexpected EOF"
                at = _skip(text, at)
            while opened and text[at : at + 1] == _CLOSING[opened[-1]]:
                opened.pop()
                at = _skip(text, at + 1)
            if not opened:
                return "unexpected EOF"
            if text[at : at + 1] != ",":
                raise _Stop(text, at, "after object key:value pair" if opened[-1] == "{" else "after array element")
            at = _key(text, _skip(text, at + 1)) if opened[-1] == "{" else at + 1
    except _Stop as stop:
        return str(stop)


def _message(at: str, why: str) -> str:
    if not at:
        return "unexpected EOF"
    # Go looks at bytes, and shows one as the character of that number
    byte = at.encode("utf-8", "surrogateescape")[0]
    shown = _QUOTED.get(byte) or chr(byte)
    if not shown.isprintable():
        shown = f"\\x{byte:02x}" if byte < 0x80 else f"\\u{byte:04x}"
    return f"invalid character '{shown}' {why}"


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing as well


def _key(text: str, at: int) -> int:
    """Past the name of a member and its colon."""
    if text[at : at + 1] != '"':
        raise _Stop(text, at, "looking for beginning of object key string")
    at = _skip(text, _string(text, at))
    if text[at : at + 1] != ":":
        raise _Stop(text, at, "after object key")
    return at + 1


def _scalar(text: str, at: int) -> int:
    mark = text[at : at + 1]
    if mark == '"':
        return _string(text, at)
    if mark in _WORDS:
        return _word(text, at, _WORDS[mark])
    if mark and mark in "-0123456789":
        return _number(text, at)
    raise _Stop(text, at, "looking for beginning of value")


def _string(text: str, at: int) -> int:
    at = _STRING.match(text, at).end()  # type: ignore[union-attr]  # it begins with a quote
    mark = text[at : at + 1]
    if mark == '"':
        return at + 1
    if mark != "\\":
        raise _Stop(text, at, "in string literal")
    escape = _ESCAPE.match(text, at)
    assert escape is not None
    why = "in \\u hexadecimal character escape" if escape[1] else "in string escape code"
    raise _Stop(text, escape.end(), why)


def _word(text: str, at: int, word: str) -> int:
    for number, letter in enumerate(word):
        if text[at + number : at + number + 1] != letter:
            raise _Stop(text, at + number, f"in literal {word} (expecting '{letter}')")
    return at + len(word)


def _number(text: str, at: int) -> int:
    number = _NUMBER.match(text, at)
    assert number is not None
    whole, point, exponent = number.groups()
    at = number.end()
    if whole is None:
        raise _Stop(text, at, "in numeric literal")
    if exponent is None and (cut := _EXPONENT.match(text, at)):
        raise _Stop(text, cut.end(), "in exponent of numeric literal")
    if point is None and exponent is None and text[at : at + 1] == ".":
        raise _Stop(text, at + 1, "after decimal point in numeric literal")
    return at
