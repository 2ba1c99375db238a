"""Reading and changing one legacy table through python-iptables. For the worker process only.

Of python-iptables only Table is used, the binding of libiptc: it reads a table whole and writes it whole, the rules of
others byte for byte as they were read. The xtables lock has to be held from the first read to the commit.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import iptc  # type: ignore[import-untyped]  # ships no type information

from conetd.errors import KernelError
from conetd.kernel.iptables.entries import normal, target_name

OURS = "conetd-"
_GATES = {"raw": "RETURN", "nat": "DNAT"}  # in which table which target lets something pass that did not pass before
_ATTEMPTS = 20
_TOOLS = {4: "iptables", 6: "ip6tables"}
_TEXTS = {"Memory allocation problem": errno.ENOMEM} | {os.strerror(number): number for number in errno.errorcode}

# Rule objects look through every table for a chain of their target's name; none is made here, but opening a table
# creates it in the kernel, so python-iptables is told that there is none to look at.
for _table in (iptc.Table, iptc.Table6):
    _table.existing_table_names.update(dict.fromkeys(_table.ALL, False))

Chains = dict[str, list[bytes]]


@dataclass(slots=True)
class Found:
    """What of ours a table holds: our chains, and the rules of others that lead to them, by chain."""

    chains: Chains
    jumps: Chains


class LegacyTable:
    """One table of one family in the namespace of the process."""

    def __init__(self, family: int, name: str) -> None:
        self.family = family
        self.name = name
        self._found: Found | None = None
        kind = iptc.Table6 if family == 6 else iptc.Table
        try:
            self._table = kind(name, autocommit=False)
        except iptc.IPTCError as err:
            raise self._error("open", err) from err

    def __str__(self) -> str:
        return f"{_TOOLS[self.family]} table {self.name}"

    def forget(self) -> None:
        """Read the table anew before anything else is done with it."""
        self._found = None

    def found(self) -> Found:
        """What of ours the table held when it was last read or committed."""
        if self._found is None:
            try:
                self._table.refresh()
            except iptc.IPTCError as err:
                raise self._error("read", err) from err
            self._found = self._read()
        return self._found

    def close(self, wanted: Chains) -> None:
        """Remove what lets packets pass and is no longer wanted; leave the rest as it is."""
        gate = _GATES.get(self.name)
        if gate is None:
            return
        kept = {rule for rules in wanted.values() for rule in rules}

        def edit(found: Found) -> bool:
            changed = False
            for name, rules in found.chains.items():
                remaining = [one for one in rules if one in kept or target_name(one, self.family) != gate]
                if remaining != rules:
                    self._fill(name, remaining)
                    changed = True
            return changed

        self._change(edit)

    def make(self, wanted: Chains, jumps: dict[str, bytes]) -> None:
        """Make our chains hold exactly these rules, and each built-in chain of `jumps` lead to us by its rule."""

        def edit(found: Found) -> bool:
            differing = [name for name, rules in wanted.items() if found.chains.get(name) != rules]
            unwanted = [name for name in found.chains if name not in wanted]
            astray = [(name, rule) for name, rules in found.jumps.items() for rule in rules if rule != jumps.get(name)]
            surplus = [
                (name, rules[0])
                for name, rules in found.jumps.items()
                for _ in range(rules.count(jumps.get(name, b"")) - 1)
            ]
            missing = [(name, rule) for name, rule in jumps.items() if rule not in found.jumps.get(name, ())]
            if not (differing or unwanted or astray or surplus or missing):
                return False
            for name in differing:
                if name not in found.chains:
                    self._table.create_chain(name)
            for name in differing:
                self._fill(name, wanted[name])
            for name, rule in missing:
                self._table.insert_entry(name, _buffer(rule), 0)
            for name, rule in astray + surplus:
                self._delete(name, rule)
            for name in unwanted:
                self._table.flush_entries(name)
            for name in unwanted:
                self._table.delete_chain(name)
            return True

        self._change(edit)

    def _change(self, edit: Callable[[Found], bool]) -> None:
        for attempt in range(_ATTEMPTS):
            found = self.found()
            try:
                if not edit(found):
                    return
                self._found = None  # from here on the handle holds what may not be committed
                self._table.commit()
                return
            except iptc.IPTCError as err:
                self._found = None
                failure = self._error("change", err)
                # Somebody who does not take the lock has changed the number of rules since they were read.
                if failure.errno != errno.EAGAIN or attempt == _ATTEMPTS - 1:
                    raise failure from err

    def _fill(self, chain: str, rules: list[bytes]) -> None:
        self._table.flush_entries(chain)
        for rule in rules:
            self._table.append_entry(chain, _buffer(rule))

    def _delete(self, chain: str, rule: bytes) -> None:
        self._table.delete_entry(chain, _buffer(rule), _buffer(b"\xff" * len(rule)))

    def _read(self) -> Found:
        found = Found({}, {})
        for name in [chain.name for chain in self._table.chains]:
            if name.startswith(OURS):
                found.chains[name] = list(self._rules(name, lambda target: True))
            else:
                jumps = list(self._rules(name, lambda target: target.startswith(OURS.encode())))
                if jumps:
                    found.jumps[name] = jumps
        return found

    def _rules(self, chain: str, chosen: Callable[[bytes], bool]) -> Iterator[bytes]:
        rule: Any = self._table.first_rule(chain)
        while rule:
            target = self._table.get_target(rule) or b""
            if chosen(target):
                raw = ctypes.string_at(ctypes.addressof(rule), rule.next_offset)
                yield normal(raw, self.family, target.decode())
            rule = self._table.next_rule(rule)

    def _error(self, operation: str, err: Exception) -> KernelError:
        said = str(err)
        number = next((number for words, number in _TEXTS.items() if words in said), errno.EIO)
        return KernelError(operation, str(self), number, said)


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_ubyte]:
    return (ctypes.c_ubyte * len(data)).from_buffer_copy(data)
