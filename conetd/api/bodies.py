"""How the body of a request becomes a JSON value, or a refusal that says why not."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from conetd.api.errors import MalformedJson
from conetd.errors import Invalid
from conetd.model import JSON

BODY_MAX = 8 << 20  # bytes


def parse_object(body: bytes) -> JSON:
    """The JSON object a body holds.

    Raises MalformedJson for anything that is no JSON text in UTF-8 (RFC 8259), also where Python would take it: NaN,
    a key twice in one object, half a surrogate pair. Raises Invalid for JSON that is not an object.
    """
    if not body.strip():
        raise MalformedJson("the body is empty: a JSON object was expected")
    try:
        text = body.decode()
    except UnicodeDecodeError as err:
        raise MalformedJson(f"the body is not UTF-8: {err.reason} at byte {err.start}") from err
    document = _parse(text)
    if not isinstance(document, dict):
        shown = text if len(text) <= 80 else text[:79] + "…"
        raise Invalid(f"the body must be a JSON object (got {shown})", fields={"": "must be an object"})
    return document


def _parse(text: str) -> Any:
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        if "\\u" in text:
            # json takes "\ud800", which then no file, database or answer can hold
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except json.JSONDecodeError as err:
        raise MalformedJson(f"malformed JSON at line {err.lineno} column {err.colno}: {err.msg}") from err
    except UnicodeEncodeError as err:
        raise MalformedJson("malformed JSON: a \\u escape is half a surrogate pair") from err
    except RecursionError as err:
        raise MalformedJson("malformed JSON: nested too deeply") from err
    except ValueError as err:  # an integer of more than 4300 digits, sys.set_int_max_str_digits
        raise MalformedJson(f"malformed JSON: {err}") from err


def _object(pairs: list[tuple[str, Any]]) -> JSON:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise MalformedJson(f"malformed JSON: the key {json.dumps(key)} stands twice in one object")
            seen.add(key)
    return found


def _constant(name: str) -> NoReturn:
    raise MalformedJson(f"malformed JSON: {name} is not a JSON value")
