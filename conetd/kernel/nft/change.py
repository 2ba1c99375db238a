"""A change from the objects in force to others: what to tell the kernel, and which of it really comes or goes. Pure."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field

from conetd.errors import KernelError
from conetd.kernel.nft.chain import Chain
from conetd.kernel.nft.elements import Element
from conetd.plan import FilterObject

Identity = tuple[str, str]
Unit = tuple[str, str]  # NETWORK, PEER, ATTACHMENT or UPLINKS, and the key
Place = tuple[str, bytes]  # of an element: set and key


@dataclass(frozen=True, slots=True)
class Holding:
    """What one unit has in the tables: its elements, and its chains by name and fingerprint."""

    elements: tuple[Element, ...]
    chains: Mapping[str, str]


@dataclass(slots=True)
class UnitChange:
    """What has to change for one unit. Elements that are deleted leave before any is added.

    `live` units are in the tables already, so packets may be on their way to them.
    """

    unit: Unit
    label: str
    live: bool
    delete: list[Place] = field(default_factory=list)
    add: list[Element] = field(default_factory=list)
    new_chains: list[Chain] = field(default_factory=list)
    gone_chains: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.delete or self.add or self.new_chains or self.gone_chains)


@dataclass(slots=True)
class Change:
    """From the objects in force to others: what to tell the kernel, and how the mirror looks after it."""

    objects: dict[Identity, FilterObject | None]
    holdings: dict[Unit, Holding]
    counts: dict[Place, tuple[int, bytes]]
    chain_counts: dict[str, int]
    units: list[UnitChange]
    closed: list[Place] = field(default_factory=list)
    reopened: list[Place] = field(default_factory=list)
    needed: set[str] = field(default_factory=set)  # optional chains, which nothing needed before
    unneeded: set[str] = field(default_factory=set)  # optional chains that nothing needs any more

    def __bool__(self) -> bool:
        return bool(self.units or self.closed or self.needed or self.unneeded)


def settle(change: Change, elements: Mapping[Place, tuple[int, bytes]], chains: Mapping[str, int]) -> None:
    """Count what comes and goes, and leave to each unit only what really does; what was held before is given.

    Raises KernelError (EEXIST) when two units want one element with different data.
    """
    _settle_chains(change, chains)
    _settle_elements(change, elements)
    change.units = [unit for unit in change.units if unit]


def _settle_chains(change: Change, before: Mapping[str, int]) -> None:
    """Count the chains, and leave to each unit only those that really come or go."""
    counts = change.chain_counts
    for unit in change.units:
        for chain in unit.new_chains:
            counts[chain.name] = counts.get(chain.name, before.get(chain.name, 0)) + 1
        for name in unit.gone_chains:
            counts[name] = counts.get(name, before.get(name, 0)) - 1
    settled: set[str] = set()
    # those in the tables already get theirs first, and so the chains that others share with them
    for unit in sorted(change.units, key=lambda unit: not unit.live):
        unit.new_chains = [
            chain
            for chain in unit.new_chains
            if not before.get(chain.name) and counts[chain.name] and chain.name not in settled
        ]
        settled.update(chain.name for chain in unit.new_chains)
        unit.gone_chains = [name for name in unit.gone_chains if not counts[name] and name not in settled]
        settled.update(unit.gone_chains)


def _settle_elements(change: Change, before: Mapping[Place, tuple[int, bytes]]) -> None:
    """Count what is added, and leave to each unit only the elements that really come or go."""
    for unit in change.units:
        for name, key, data in unit.add:
            place = (name, key)
            count, held_data = change.counts.get(place) or before.get(place, (0, data))
            if count and held_data != data:
                taken = f"an element of {name} that another object has with other data: {key.hex()}"
                raise KernelError("put", unit.label, errno.EEXIST, taken)
            change.counts[place] = (count + 1, data)
    seen: set[Place] = set()
    for unit in change.units:
        deleted = [place for place in unit.delete if _goes(place, change, before) and place not in seen]
        seen.update(deleted)
        unit.delete = deleted
    added: set[Element] = set()
    for unit in change.units:
        fresh: list[Element] = []
        for one in unit.add:
            place = one[:2]
            known = before.get(place)
            if (known is None or known[0] == 0 or place in seen or known[1] != one[2]) and one not in added:
                fresh.append(one)
                added.add(one)
        unit.add = fresh


def _goes(place: Place, change: Change, before: Mapping[Place, tuple[int, bytes]]) -> bool:
    """Whether the kernel must delete the element: nobody has it any more, or its data changes."""
    count, data = change.counts[place]
    return count == 0 or data != before[place][1]
