"""Whether what is printed is what a page shows, where `...` stands for anything. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

_ANYTHING = "..."
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\.\.\.|[{}\[\],:]|[^\s{}\[\],:"]+')


def matches(printed: str, shown: str) -> bool:
    """JSON is compared as such: members in any order, those of `...` left out. Of other text, white space is ignored.

    A text of JSON documents, one after the other, is JSON, too.
    """
    try:
        got, wanted = _documents(printed), _documents(_quoted(shown))
    except ValueError:
        return _like(re.sub(r"\s+", "", printed), re.sub(r"\s+", "", shown))
    return len(got) == len(wanted) and all(map(_same, got, wanted))


def _documents(text: str) -> list[Any]:
    found, decoder, at = [], json.JSONDecoder(), 0
    text = text.strip()
    while at < len(text):
        document, at = decoder.raw_decode(text, at)
        if not isinstance(document, dict | list):
            raise ValueError("a bare word is no document")
        found.append(document)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def _quoted(shown: str) -> str:
    """The text with each bare `...` as a JSON string, or in an object as a member."""
    tokens: list[str] = _TOKEN.findall(shown)
    written, inside = [], [""]
    for number, token in enumerate(tokens):
        if token in "{[":
            inside.append(token)
        elif token in "}]":
            inside.pop()
        if token == _ANYTHING:
            member = inside[-1] == "{" and tokens[number - 1] in "{,"
            token = '"...": "..."' if member else '"..."'
        written.append(token)
    return " ".join(written)


def _same(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict) and isinstance(got, dict):
        named = wanted.keys() - {_ANYTHING}
        complete = _ANYTHING in wanted or got.keys() == named
        return complete and all(name in got and _same(got[name], wanted[name]) for name in named)
    if isinstance(wanted, list) and isinstance(got, list):
        if _ANYTHING in wanted:
            return all(one == _ANYTHING or any(_same(other, one) for other in got) for one in wanted)
        return len(got) == len(wanted) and all(map(_same, got, wanted))
    if isinstance(wanted, str):
        return wanted == _ANYTHING or (isinstance(got, str) and _like(got, wanted))
    return type(got) is type(wanted) and bool(got == wanted)


def _like(text: str, pattern: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split(_ANYTHING))), text, re.DOTALL) is not None
