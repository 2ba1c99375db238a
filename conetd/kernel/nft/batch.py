"""How a change is written as one batch of messages, each with the name of the object it is for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from conetd.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL
from conetd.kernel.nft import wire
from conetd.kernel.nft.chain import Chain, RuleWriter
from conetd.kernel.nft.change import Place, UnitChange
from conetd.kernel.nft.elements import Element
from conetd.kernel.nft.sets import SETS, TABLE
from conetd.kernel.nft.skeleton import OPTIONAL

_WHERE = {name: wire.place(TABLE, name) for name in SETS}


class Batch:
    """Messages in the order the kernel needs: what leads somewhere goes before what it leads to, and comes after it."""

    def __init__(self) -> None:
        self.created: list[str] = []
        """The chains it creates."""
        self._writer = RuleWriter(wire.INET, TABLE)
        self._first: list[tuple[bytes, str]] = []
        self._deleted: list[tuple[bytes, str]] = []
        self._chains: list[tuple[bytes, str]] = []
        self._flushed: list[tuple[bytes, str]] = []
        self._rules: list[tuple[bytes, str]] = []
        self._added: list[tuple[bytes, str]] = []
        self._last: list[tuple[bytes, str]] = []

    def before_all(self, messages: Iterable[bytes], label: str) -> None:
        """Begin with these, after those already so given."""
        self._first += ((one, label) for one in messages)

    def prepare(self, change: UnitChange) -> None:
        """Make the new chains of a unit, where no packet comes yet."""
        for chain in change.new_chains:
            self.new_chain(chain, change.label)

    def switch(self, change: UnitChange) -> None:
        """Make the rest of the change of one unit."""
        self.delete(change.delete, change.label)
        for name in change.gone_chains:
            self.delete_chain(name, change.label)
        self.add(change.add, change.label)

    def new_chain(self, chain: Chain, label: str) -> None:
        """Create and fill a chain."""
        self.created.append(chain.name)
        self._chains.append((wire.new_chain(wire.INET, TABLE, chain.name), label))
        self._fill(chain, label)

    def refill_chain(self, chain: Chain, label: str) -> None:
        """Replace the rules of a chain."""
        self._flushed.append((wire.flush_chain(wire.INET, TABLE, chain.name), label))
        self._fill(chain, label)

    def delete_chain(self, name: str, label: str) -> None:
        """Delete a chain with its rules."""
        self._flushed.append((wire.flush_chain(wire.INET, TABLE, name), label))
        self._last.append((wire.delete_chain(wire.INET, TABLE, name), label))

    def delete(self, places: Sequence[Place], label: str) -> None:
        """Delete elements."""
        by_set: dict[str, list[bytes]] = {}
        for name, key in places:
            by_set.setdefault(name, []).append(_element(name, key))
        for name, elements in by_set.items():
            self._deleted += ((one, label) for one in _messages(wire.DELSETELEM, 0, name, elements))

    def add(self, elements: Sequence[Element], label: str) -> None:
        """Add elements that are not there."""
        by_set: dict[str, list[bytes]] = {}
        for name, key, data in elements:
            by_set.setdefault(name, []).append(_element(name, key, data))
        for name, written in by_set.items():
            messages = _messages(wire.NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, name, written)
            self._added += ((one, label) for one in messages)

    def close(self, places: Iterable[Place]) -> None:
        """Shut links that may be shut already."""
        for name, key in places:
            self._ensure(self._added, name, key)

    def reopen(self, places: Iterable[Place]) -> None:
        """Open links that may not be shut."""
        for name, key in places:
            # deleting what has timed out by now would be an error
            self._ensure(self._deleted, name, key)
            self._deleted += ((one, "") for one in _messages(wire.DELSETELEM, 0, name, [_element(name, key)]))

    def add_optional(self, names: Iterable[str]) -> None:
        """Put optional chains that may be there already at their hooks."""
        for name in names:
            self._make_optional(name)
            self._rules += ((one, f"chain {name}") for one in self._writer.messages(OPTIONAL[name].chain))

    def remove_optional(self, names: Iterable[str]) -> None:
        """Remove optional chains that may not be there."""
        for name in names:
            self._make_optional(name)  # deleting what is not there would be an error
            self._last.append((wire.delete_chain(wire.INET, TABLE, name), f"chain {name}"))

    def _make_optional(self, name: str) -> None:
        one, label = OPTIONAL[name], f"chain {name}"
        make = wire.new_base_chain(wire.INET, TABLE, name, one.kind, one.hook, one.priority, exclusive=False)
        self._chains.append((make, label))
        self._flushed.append((wire.flush_chain(wire.INET, TABLE, name), label))

    def _ensure(self, messages: list[tuple[bytes, str]], name: str, key: bytes) -> None:
        messages += ((one, "") for one in _messages(wire.NEWSETELEM, NLM_F_CREATE, name, [_element(name, key)]))

    def __bool__(self) -> bool:
        return any((self._first, self._deleted, self._chains, self._flushed, self._rules, self._added, self._last))

    def written(self) -> tuple[list[bytes], list[str]]:
        """The messages from begin to end, and the object each is for."""
        every = [
            (wire.BATCH_BEGIN, ""),
            *self._first,
            *self._deleted,
            *self._chains,
            *self._flushed,
            *self._rules,
            *self._added,
            *self._last,
            (wire.BATCH_END, ""),
        ]
        return [one for one, _ in every], [label for _, label in every]

    def _fill(self, chain: Chain, label: str) -> None:
        self._rules += ((one, label) for one in self._writer.messages(chain))


def _element(name: str, key: bytes, data: bytes = b"") -> bytes:
    if SETS[name].intervals:
        middle = len(key) // 2
        return wire.element(key[:middle], data, key[middle:])
    return wire.element(key, data)


def _messages(kind: int, flags: int, name: str, elements: list[bytes]) -> Iterator[bytes]:
    return wire.set_elements(kind, flags, SETS[name].family, _WHERE[name], elements)
