"""What a chain of ours holds: rules, the sets inside them, and the fingerprint by which they are recognised.

Each rule carries a comment: in words what it is for, then the fingerprint of its whole chain, its place and how many
there are. So a rule that is missing, added or replaced is seen without decoding what the kernel made of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from conetd.kernel.netlink import NLM_F_CREATE
from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import wire

_ANONYMOUS = wire.SET_ANONYMOUS | wire.SET_CONSTANT
_FIRST_ANONYMOUS_ID = 1000  # set ids name sets within one batch; those of the skeleton are smaller
PREFIXES = ("e-", "h-", "i-", "l-", "m-", "n-", "p-", "s-", "t-", "w-")
"""How the names of chains begin that are made for objects: what an endpoint sends out, what reaches the host, what
comes in to an endpoint, what is logged, marks, what a network denies, a policy that several have, who speaks by an
interface of its own, tunnels, what stays within a network."""
_WORDS_MAX = 90  # bytes of a comment that are words; nft's limit for the whole is 127


@dataclass(frozen=True, slots=True)
class AnonymousSet:
    """A set that is looked up at register 0; `elements` as the wire has them.

    With the lengths of `fields` they are disjoint intervals of a concatenation, without any they are single keys.
    """

    type: tuple[int, int]
    fields: tuple[int, ...]
    elements: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class KernelRule:
    """One rule: expressions as the wire has them, with a set where one is looked up."""

    words: str
    parts: tuple[bytes | AnonymousSet, ...]


class Chain:
    """A chain by name and rules. Immutable."""

    def __init__(self, name: str, rules: tuple[KernelRule, ...]) -> None:
        self.name = name
        self.rules = rules

    @classmethod
    def addressed(cls, name: str, rules: tuple[KernelRule, ...]) -> Chain:
        """A chain whose name ends in its fingerprint, so that other rules make another chain.

        The kernel shows packets a new rule some microseconds before it shows them the elements of its interval sets.
        So a chain is never refilled while packets reach it: one with the new rules is made first, by itself, and then
        the element that leads to the old one is exchanged.
        """
        chain = cls(name, rules)
        chain.name = f"{name}-{chain.fingerprint}"
        return chain

    @cached_property
    def fingerprint(self) -> str:
        """Ten characters that stand for everything in the chain."""
        digest = blake2b(digest_size=5)
        for rule in self.rules:
            digest.update(rule.words.encode() + b"\0")
            for part in rule.parts:
                if isinstance(part, AnonymousSet):
                    digest.update(repr(part.fields).encode())
                    for element in part.elements:
                        digest.update(element)
                else:
                    digest.update(part)
        return digest.hexdigest()

    @property
    def comments(self) -> list[str]:
        """The comment of each rule, in their order."""
        return comments(self.fingerprint, [rule.words for rule in self.rules])


def comments(fingerprint: str, words: list[str]) -> list[str]:
    """The comment of each rule of a chain."""
    count = len(words)
    return [f"{_short(one)} #{fingerprint}.{number}/{count}".lstrip() for number, one in enumerate(words, 1)]


def recognised(found: list[str]) -> str:
    """The fingerprint the comments of a chain's rules carry; empty unless all of them do, in order, none missing.

    A chain without rules carries none, and has that of every such chain.
    """
    fingerprint = "" if found else Chain("", ()).fingerprint
    for number, one in enumerate(found, 1):
        _, _, mark = one.rpartition("#")
        carried, _, place = mark.partition(".")
        if place != f"{number}/{len(found)}" or (number > 1 and carried != fingerprint):
            return ""
        fingerprint = carried
    return fingerprint


def _short(words: str) -> str:
    return (
        words if len(words) <= _WORDS_MAX and words.isascii() else words.encode()[:_WORDS_MAX].decode(errors="ignore")
    )


class RuleWriter:
    """Writes the rules of chains for one batch, numbering their anonymous sets."""

    def __init__(self, family: int, table: str) -> None:
        self._family = family
        self._table = table
        self._next_id = _FIRST_ANONYMOUS_ID

    def messages(self, chain: Chain) -> Iterator[bytes]:
        """The requests that fill the chain, which must be empty."""
        for rule, comment in zip(chain.rules, chain.comments, strict=True):
            expressions = []
            for part in rule.parts:
                if isinstance(part, AnonymousSet):
                    yield from self._set(part)
                    expressions.append(e.lookup("__set%d", set_id=self._next_id))
                else:
                    expressions.append(part)
            userdata = wire.comment(comment)
            yield wire.new_rule(self._family, self._table, chain.name, b"".join(expressions), userdata)

    def _set(self, wanted: AnonymousSet) -> Iterator[bytes]:
        self._next_id += 1
        yield wire.new_set(
            self._family,
            self._table,
            "__set%d",
            _ANONYMOUS | (wire.SET_INTERVAL | wire.SET_CONCAT if wanted.fields else 0),
            wanted.type,
            self._next_id,
            fields=wanted.fields,
            size=len(wanted.elements),
        )
        where = wire.place(self._table, "__set%d", self._next_id)
        yield from wire.set_elements(wire.NEWSETELEM, NLM_F_CREATE, self._family, where, wanted.elements)
