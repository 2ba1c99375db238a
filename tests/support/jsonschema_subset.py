"""Whether a document is what a JSON Schema says, as far as conetd describes its drivers' documents by one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_WORDS = {"type", "properties", "required", "additionalProperties", "items", "enum", "minimum", "maximum", "pattern",
          "default", "description"}  # fmt: skip


def complaints(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """What is wrong with the value. Raises ValueError for a schema that says something else than this file knows."""
    if not schema.keys() <= _WORDS:
        raise ValueError(f"{path}: unknown words {sorted(schema.keys() - _WORDS)}")
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_is(name, value) for name in names):
            yield f"{path} is not of type {names}"
            return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path} is none of {schema['enum']}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield f"{path} does not match"
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{path} is out of range"
    if isinstance(value, dict) and "properties" in schema:
        for name in set(schema.get("required", ())) - value.keys():
            yield f"{path}.{name} is missing"
        for name, inner in value.items():
            if name in schema["properties"]:
                yield from complaints(schema["properties"][name], inner, f"{path}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{path}.{name} is unknown"
    if isinstance(value, list) and "items" in schema:
        for number, inner in enumerate(value):
            yield from complaints(schema["items"], inner, f"{path}[{number}]")


def _is(name: str, value: Any) -> bool:
    return isinstance(value, _TYPES[name]) and not (name == "integer" and isinstance(value, bool))
