"""How keys, conditions and operations are said in etcd's JSON gateway: base64 for bytes, strings for 64-bit numbers.

https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/ and the messages of rpc.proto there.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conetd.model import JSON

LAST = "\0"  # rpc.proto: with this as the range's end, all keys from its start on


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it stands in etcd. `mod_revision`: when it was last put; `lease`: what it hangs on, 0 for nothing."""

    key: str
    value: str
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a key; `value` is None where it was deleted."""

    key: str
    value: str | None
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a commit. Made by `absent`, `exists`, `value_is` and `none_below`."""

    message: JSON


@dataclass(frozen=True, slots=True)
class Operation:
    """A part of a commit. Made by `put`, `delete`, `delete_below` and `read`."""

    message: JSON


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit did, all of it at `revision`.

    `answers` has one entry per operation of the branch that was taken: what it read, nothing for a put or delete.
    """

    succeeded: bool
    revision: int
    answers: tuple[tuple[KeyValue, ...], ...]
    repeated: bool = False
    """An earlier attempt got no answer and may have been carried out: conditions that failed may be its own doing."""


def absent(key: str) -> Compare:
    """There is no such key."""
    return Compare({"key": encode(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"})


def exists(key: str) -> Compare:
    """There is such a key."""
    return Compare({"key": encode(key), "target": "CREATE", "result": "GREATER", "create_revision": "0"})


def value_is(key: str, value: str) -> Compare:
    """The key has exactly this value; false where there is no such key."""
    return Compare({"key": encode(key), "target": "VALUE", "result": "EQUAL", "value": encode(value)})


def none_below(prefix: str) -> Compare:
    """No key begins with the prefix."""
    # a condition on a range holds when it holds for each of its keys, and for none it is judged as an absent one
    return Compare({**below(prefix), "target": "CREATE", "result": "EQUAL", "create_revision": "0"})


def put(key: str, value: str, lease: int = 0) -> Operation:
    """Give the key this value; with a lease it goes when that ends."""
    return Operation(
        {"request_put": {"key": encode(key), "value": encode(value)} | ({"lease": str(lease)} if lease else {})}
    )


def delete(key: str) -> Operation:
    """Remove the key, if there is one."""
    return Operation({"request_delete_range": {"key": encode(key)}})


def delete_below(prefix: str) -> Operation:
    """Remove every key that begins with the prefix."""
    return Operation({"request_delete_range": below(prefix)})


def read(key: str) -> Operation:
    """Answer with the key, if there is one."""
    return Operation({"request_range": {"key": encode(key)}})


def transaction(compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> JSON:
    """The body of a commit."""
    return {
        "compare": [one.message for one in compare],
        "success": [one.message for one in then],
        "failure": [one.message for one in otherwise],
    }


def committed(answer: JSON, *, repeated: bool = False) -> Committed:
    """What the answer to a commit says."""
    answers = tuple(key_values(one.get("response_range", {})) for one in answer.get("responses", ()))
    return Committed(bool(answer.get("succeeded")), revision_of(answer), answers, repeated)


def key_values(answer: JSON) -> tuple[KeyValue, ...]:
    """The keys in an answer to a range."""
    return tuple(
        KeyValue(decode(kv["key"]), decode(kv.get("value", "")), number(kv, "mod_revision"), number(kv, "lease"))
        for kv in answer.get("kvs", ())
    )


def events(answer: JSON) -> list[Event]:
    """The changes in a message of a watch, in order."""
    return [_event(one.get("type", "PUT"), one["kv"]) for one in answer.get("events", ())]


def _event(kind: str, kv: JSON) -> Event:
    value = None if kind == "DELETE" else decode(kv.get("value", ""))
    return Event(decode(kv["key"]), value, number(kv, "mod_revision"))


def revision_of(answer: JSON) -> int:
    """The store's revision when it answered."""
    return number(answer.get("header", {}), "revision")


def number(message: JSON, field: str) -> int:
    """A number of a message: the gateway writes 64 bits as a string and leaves out what is 0."""
    return int(message.get(field, 0))


def below(prefix: str) -> JSON:
    """The range of the keys that begin with the prefix; the empty one means all there are."""
    return {"key": encode(prefix or LAST), "range_end": end_of(prefix)}


def end_of(prefix: str) -> str:
    """The end, in base64, of the range of keys that begin with the prefix."""
    if not prefix:
        return encode(LAST)
    raw = _bytes(prefix)
    return base64.b64encode(raw[:-1] + bytes((raw[-1] + 1,))).decode()  # UTF-8 has no byte 0xff


def encode(text: str) -> str:
    """A key or value as the gateway takes it."""
    return base64.b64encode(_bytes(text)).decode()


def decode(text: Any) -> str:
    """A key or value that the gateway gave. `encode` gives it back, also what is not UTF-8."""
    return base64.b64decode(text).decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
