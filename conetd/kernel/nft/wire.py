"""How tables, chains, sets, elements and rules are written as nfnetlink messages."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from conetd.kernel.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, attribute, message, nested, text

# linux/netfilter/nfnetlink.h and nf_tables.h
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 16, 17
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE = range(9)
NEWSET, GETSET, DELSET, NEWSETELEM, GETSETELEM, DELSETELEM, NEWGEN, GETGEN = range(9, 17)
INET, NETDEV, BRIDGE = 1, 5, 7  # NFPROTO_INET, NFPROTO_NETDEV, NFPROTO_BRIDGE
LIST_ELEM = 1

SET_ANONYMOUS, SET_CONSTANT, SET_INTERVAL, SET_MAP, SET_TIMEOUT, SET_EVAL, SET_CONCAT = (
    0x1,
    0x2,
    0x4,
    0x8,
    0x10,
    0x20,
    0x80,
)
DATA_VERDICT = 0xFFFFFF00
ACCEPT, DROP, RETURN, GOTO, JUMP = 1, 0, -5, -4, -3

# nft's user data of a set (libnftnl/udata.h): NFTNL_UDATA_SET_KEYBYTEORDER, its length, BYTEORDER_HOST_ENDIAN
_KEYS_IN_HOST_ORDER = struct.pack("=BBI", 0, 4, 1)
_ELEMENTS_MAX = 60_000  # bytes of elements a message; an attribute cannot be longer than 65535
_FAMILY_HEADERS = {family: struct.pack("=BBH", family, 0, 0) for family in (0, INET, NETDEV, BRIDGE)}


def request(kind: int, flags: int, family: int, payload: bytes) -> bytes:
    """One nf_tables message."""
    return message(_SUBSYSTEM << 8 | kind, flags, _FAMILY_HEADERS[family] + payload)


def _batch_edge(kind: int) -> bytes:
    return message(kind, 0, struct.pack(">BBH", 0, 0, _SUBSYSTEM))


BATCH_BEGIN = _batch_edge(_BATCH_BEGIN)
BATCH_END = _batch_edge(_BATCH_END)


@lru_cache(maxsize=4096)
def u32(kind: int, value: int) -> bytes:
    """An attribute that holds a number as nf_tables wants them: 32 bits, big endian, negative ones too."""
    return attribute(kind, struct.pack(">i" if value < 0 else ">I", value))


def comment(words: str) -> bytes:
    """User data that `nft list` shows as a comment."""
    value = words.encode()[:127] + b"\0"
    return bytes((0, len(value))) + value


def comment_text(userdata: bytes) -> str:
    """The comment in user data, empty if there is none."""
    if len(userdata) < 2 or userdata[0] != 0:
        return ""
    return userdata[2 : 2 + userdata[1]].rstrip(b"\0").decode(errors="replace")


# Tables and chains. Attribute numbers are those of the enum of each kind of object.


def new_table(family: int, name: str) -> bytes:
    """Create the table; one that is there already is an error."""
    return request(NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, family, text(1, name) + u32(2, 0))


def delete_table(family: int, name: str) -> bytes:
    """Delete the table with everything in it."""
    return request(DELTABLE, 0, family, text(1, name))


def new_base_chain(
    family: int, table: str, name: str, kind: str, hook: int, priority: int, *, device: str = "", exclusive: bool = True
) -> bytes:
    """Create a chain at a hook; packets that reach its end are accepted. Unless `exclusive`, it may be there.

    Hooks of the family NETDEV are those of a `device`.
    """
    where = nested(4, u32(1, hook), u32(2, priority), text(3, device) if device else b"")
    body = text(1, table) + text(3, name) + where + u32(5, ACCEPT) + text(7, kind)
    return request(NEWCHAIN, NLM_F_CREATE | (NLM_F_EXCL if exclusive else 0), family, body)


def new_chain(family: int, table: str, name: str) -> bytes:
    """Create a chain that others lead to."""
    return request(NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, family, text(1, table) + text(3, name))


def delete_chain(family: int, table: str, name: str) -> bytes:
    """Delete an empty chain that nothing leads to."""
    return request(DELCHAIN, 0, family, text(1, table) + text(3, name))


# Rules.


def new_rule(family: int, table: str, chain: str, expressions: bytes, userdata: bytes) -> bytes:
    """Append a rule to the chain."""
    body = text(1, table) + text(2, chain) + nested(4, expressions) + attribute(7, userdata)
    return request(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, body)


def flush_chain(family: int, table: str, chain: str) -> bytes:
    """Delete all rules of the chain, with their anonymous sets."""
    return request(DELRULE, 0, family, text(1, table) + text(2, chain))


# Sets and elements.


def new_set(
    family: int,
    table: str,
    name: str,
    flags: int,
    key: tuple[int, int],
    set_id: int,
    *,
    data: tuple[int, int] | None = None,
    fields: Sequence[int] = (),
    size: int = 0,
    timeout_ms: int = 0,
    host_order: bool = False,
) -> bytes:
    """Create a set; `key` and `data` are nft's type number and the length in bytes, `fields` lengths within the key.

    `host_order` tells `nft list` in which order the bytes of its keys are to be read.
    """
    parts = [text(1, table), text(2, name), u32(3, flags), u32(4, key[0]), u32(5, key[1])]
    if data is not None:
        parts += (u32(6, data[0]), u32(7, data[1]))
    if fields or size:
        concat = nested(2, *(nested(LIST_ELEM, u32(1, length)) for length in fields)) if fields else b""
        parts.append(nested(9, u32(1, size) if size else b"", concat))
    parts.append(u32(10, set_id))
    if timeout_ms:
        parts.append(attribute(11, struct.pack(">Q", timeout_ms)))
    if host_order:
        parts.append(attribute(13, _KEYS_IN_HOST_ORDER))
    return request(NEWSET, NLM_F_CREATE | NLM_F_EXCL, family, b"".join(parts))


def element(key: bytes, data: bytes = b"", key_end: bytes = b"") -> bytes:
    """One element: its key, what a map gives for it (as `value` or `verdict_data` wrote it), the end of an interval."""
    body = nested(1, attribute(1, key))
    if key_end:
        body += nested(10, attribute(1, key_end))
    if data:
        body += attribute(2 | 0x8000, data)
    return nested(LIST_ELEM, body)


def value(data: bytes) -> bytes:
    """Bytes as the data of an element or an expression."""
    return attribute(1, data)


def verdict_data(code: int, chain: str = "") -> bytes:
    """A verdict as the data of an element or an expression."""
    return nested(2, u32(1, code), text(2, chain) if chain else b"")


def set_elements(kind: int, flags: int, family: int, where: bytes, elements: Iterable[bytes]) -> Iterator[bytes]:
    """Add (NEWSETELEM) or delete (DELSETELEM) elements, in as many messages as they need.

    `where` are the attributes that name table and set.
    """
    chunk: list[bytes] = []
    size = 0
    for one in elements:
        if size + len(one) > _ELEMENTS_MAX:
            yield request(kind, flags, family, where + nested(3, *chunk))
            chunk, size = [], 0
        chunk.append(one)
        size += len(one)
    if chunk:
        yield request(kind, flags, family, where + nested(3, *chunk))


def place(table: str, name: str, set_id: int = 0) -> bytes:
    """The attributes that name table and set for `set_elements`; the id finds a set of the same batch."""
    return text(1, table) + text(2, name) + (u32(4, set_id) if set_id else b"")
