"""How Go's encoding/json reads and writes: Garden's clients rely on what it lets pass and on what it escapes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from conetd.errors import ConetError
from conetd.garden.goscan import fault

_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Encoder.SetEscapeHTML is on by default; the last two end a line in JavaScript.
_ESCAPED = re.compile("[<>&\u2028\u2029]")
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


class DecodeError(ConetError):
    """The body is no JSON that Go would take. The message is Go's, as far as one can tell."""

    status = 400
    code = "malformed_json"


class BadValue(DecodeError):
    """A value is not what its place takes. `fields` says where, and what is wrong with it."""

    status = 422
    code = "invalid"

    def __init__(self, message: str, path: Sequence[str | int], complaint: str) -> None:
        where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
        super().__init__(message, fields={where: complaint})


class Mismatch(BadValue):
    """A value that does not go into the Go type where it stands."""

    def __init__(self, found: str, kind: str, path: Sequence[str | int], complaint: str) -> None:
        super().__init__(f"json: cannot unmarshal {found} into Go value of type {kind}", path, complaint)
        self._found = found
        self._kind = kind
        self._names = ".".join(step for step in path if isinstance(step, str))
        self._struct = ""

    def belongs_to(self, struct: str) -> None:
        """Note the struct one of whose fields it stands in. The first to say so, the innermost, is right."""
        if self._names and not self._struct:
            self._struct = struct.rpartition(".")[2]
            into = f"Go struct field {self._struct}.{self._names} of type {self._kind}"
            self.message = f"json: cannot unmarshal {self._found} into {into}"
            self.args = (self.message,)


_KINDS = {bool: "bool", str: "string", list: "array", dict: "object", int: "number", float: "number"}


class Number(str):
    """A number as it was written: Go looks at the text, so `1.0` and `1e0` are no integers."""


class Object(tuple[tuple[str, Any], ...]):
    """The members of an object in their order; a name may come twice."""


Path = tuple[str | int, ...]
Decoder = Callable[[Any, Any, Path], Any]
"""What a member becomes: of its JSON value, the value there before, and its path. Raises DecodeError."""


def first_value(body: bytes) -> Any:
    """The first JSON value of a body; what follows is ignored, and bytes that are no UTF-8 are surrogates in strings.

    Objects come as Object, numbers as Number, everything else as Python has it. Raises DecodeError, with the message
    `EOF` for a body without a value.
    """
    text = body.decode("utf-8", "surrogateescape")
    start = _SPACE.match(text)
    assert start is not None
    if start.end() == len(text):
        raise DecodeError("EOF")
    try:
        value, _ = _DECODER.raw_decode(text, start.end())
    except json.JSONDecodeError as err:
        raise DecodeError(fault(text)) from err
    except RecursionError as err:
        raise DecodeError("exceeded max depth") from err
    return value


def encode(document: Any) -> bytes:
    """The document as Go's Encoder writes it: compact, `<`, `>` and `&` escaped, with a line end."""
    text = _SURROGATE.sub("\ufffd", _encode(document))
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode() + b"\n"


def fold(name: str) -> str:
    """The same text for names that Go takes for one: case does not matter, nor do two letters that fold to ASCII."""
    return name.replace("\u017f", "s").replace("\u212a", "k").lower()


def struct(value: Any, kind: str, fields: Mapping[str, Decoder], path: Path, before: Mapping[str, Any]) -> Any:
    """The fields of a struct after an object was decoded into it: what was there `before` stays where none is given.

    Unknown members are ignored; of members with one name each is decoded into what the last one left. null changes
    nothing. `kind` is the struct's name, for messages.
    """
    made = dict(before)
    if value is None:
        return made
    if not isinstance(value, (Object, dict)):
        raise mismatch(value, kind, path, "must be an object")
    try:
        for name, member in value.items() if isinstance(value, dict) else value:
            field = name if name in fields else fold(name)
            if field in fields:
                made[field] = fields[field](member, made.get(field), (*path, field))
    except Mismatch as err:
        err.belongs_to(kind)
        raise
    return made


def array(value: Any, one: Decoder, kind: str, path: Path, before: Sequence[Any] | None = None) -> tuple[Any, ...]:
    """Each member of an array as `one` decodes it; null is none. `kind` is the slice's type, for messages.

    Under a name that comes twice each is decoded into what is there `before` it at its place.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise mismatch(value, kind, path, "must be a list")
    there = before or ()
    return tuple(
        one(member, there[index] if index < len(there) else None, (*path, index)) for index, member in enumerate(value)
    )


def unsigned(kind: str, bits: int, highest: int | None = None) -> Decoder:
    """Decodes whole numbers of so many bits. `kind` is their type; `highest` is what a complaint calls the most."""
    most = (1 << bits) - 1

    def decode(value: Any, before: Any, path: Path) -> int:
        if value is None:
            return int(before or 0)
        if type(value) is int and 0 <= value <= most:
            return value
        if isinstance(value, Number) and value.isascii() and value.isdigit() and len(value) <= 20:
            number = int(value)
            if number <= most:
                return number
        complaint = f"must be a whole number from 0 to {highest or most}"
        # for a type that takes numbers, and for no other, Go shows the number that it does not take
        shown = f"number {value}" if kind_of(value) == "number" else kind_of(value)
        raise mismatch(value, kind, path, complaint, shown)

    return decode


def text(value: Any, before: Any, path: Path) -> str:
    """Decodes a string."""
    if value is None:
        return str(before or "")
    if not isinstance(value, str) or isinstance(value, Number):
        raise mismatch(value, "string", path, "must be a string")
    return value


def switch(value: Any, before: Any, path: Path) -> bool:
    """Decodes true or false."""
    if value is None:
        return bool(before)
    if not isinstance(value, bool):
        raise mismatch(value, "bool", path, "must be true or false")
    return value


def mismatch(value: Any, kind: str, path: Path, complaint: str, found: str = "") -> Mismatch:
    """The error for a value that does not go into a Go type; `found` is what the message calls it."""
    shown = str(value) if kind_of(value) == "number" else kind_of(value)
    return Mismatch(found or kind_of(value), kind, path, f"{complaint} (got {shown})")


def kind_of(value: Any) -> str:
    """What Go's messages call a value."""
    if isinstance(value, Number):
        return "number"
    if isinstance(value, Object):
        return "object"
    return _KINDS.get(type(value), "null")


def _constant(name: str) -> NoReturn:
    raise json.JSONDecodeError("Expecting value", name, 0)


_DECODER = json.JSONDecoder(object_pairs_hook=Object, parse_int=Number, parse_float=Number, parse_constant=_constant)
