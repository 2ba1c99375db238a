"""How a JSON document is checked: by a marshmallow schema, with every complaint under the path of its field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from marshmallow import Schema, ValidationError

from conetd.errors import Invalid

_ABSENT = object()
_OTHERS = 5  # further fields that a message names
_SHOWN = 80  # characters of an offending value that a message repeats
_UNKNOWN = "Unknown field."  # marshmallow's words, also those that follow
_PLAINER = {"Not a valid mapping type.": "Not an object.", "Invalid input type.": "Not an object."}


def load(schema: Schema, document: Any, path: str = "", *, what: str = "document") -> Any:
    """Return what the schema makes of the document.

    Raises Invalid: `fields` maps the path of each offending field (`path` put before it, as in
    `config.subnet` or `attach_to[1].ip`) to what is wrong, and the message names the first with its value,
    and where else something is wrong.
    """
    try:
        return strict(schema).load(document)
    except ValidationError as err:
        fields = dict(_flatten(err.messages, path, document, path))
        (first, complaint), *others = fields.items()
        more = f"; also wrong: {', '.join(name for name, _ in others[:_OTHERS])}" if others else ""
        raise Invalid(f"{what}: {first or 'the whole'}: {complaint}{more}", fields=fields) from err


def strict(schema: Schema) -> Schema:
    """The schema, which from now on says what it knows when it refuses a field it does not know."""
    schema.error_messages["unknown"] = unknown(schema.fields)
    return schema


def unknown(known: Iterable[str]) -> str:
    """What is said of a field that is not among the known ones."""
    return f"{_UNKNOWN} Known are {', '.join(sorted(known))}."


def join(path: str, step: str | int) -> str:
    """The path of a member: `a` and "b" give `a.b`, `a` and 0 give `a[0]`."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    return f"{path}.{step}" if path else step


def _flatten(messages: Any, path: str, document: Any, root: str) -> Iterator[tuple[str, str]]:
    if isinstance(messages, dict):
        for step, inner in messages.items():
            # marshmallow files complaints about the whole, and about a dict's value or key, under these names
            if step in ("_schema", "value", "key") and not (isinstance(document, dict) and step in document):
                yield from _flatten(inner, path, document, root)
            else:
                yield from _flatten(inner, join(path, step), _member(document, step), root)
    elif isinstance(messages, list):
        shown = "" if document is _ABSENT else f" (got {_short(document)})"
        yield path, " ".join(_PLAINER.get(str(one), str(one)) for one in messages) + shown
    else:
        yield path, str(messages)


def _member(document: Any, step: str | int) -> Any:
    try:
        return document[step]
    except (KeyError, IndexError, TypeError):
        return _ABSENT


def _short(value: Any) -> str:
    try:
        shown = json.dumps(value)
    except (TypeError, ValueError):
        shown = repr(value)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
