"""Where the kernel's tables differ from what they should hold, in words and as the batch that repairs it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from conetd.kernel.nft import skeleton, wire
from conetd.kernel.nft.batch import Batch
from conetd.kernel.nft.change import Place, Unit
from conetd.kernel.nft.elements import Element
from conetd.kernel.nft.inet_table import WHILE_CLOSED
from conetd.kernel.nft.listing import Listing
from conetd.kernel.nft.mirror import Mirror
from conetd.kernel.nft.senders import FROM_BRIDGE
from conetd.kernel.nft.sets import SETS
from conetd.plan import Drift

_NOBODY = "packet filter"
_LEADING_OUT = ("egress4", "egress6", "network")  # without them a container's new connections are dropped
_IDENTITY = ("source4", "source6", "entry")  # which say who speaks, and let nothing through by that


def compare(listing: Listing, mirror: Mirror, units: Collection[Unit], *, prune: bool = False) -> list[Drift]:
    """Tell what the units lack or have otherwise; with `prune`, also what nobody should have."""
    if listing.unsound:
        if not listing.present and not mirror.objects:
            return []  # the first start on this host
        return [Drift(skeleton.NAMES[family], reason) for family, reason in listing.unsound.items()]
    lacking = sorted(mirror.optional - listing.optional)
    found = [Drift(skeleton.NAMES[wire.INET], f"lacks its chain {name}") for name in lacking]
    for unit in units:
        holding = mirror.holdings[unit]
        label = mirror.label(unit)
        for name, fingerprint in holding.chains.items():
            if listing.chains.get(name) != fingerprint:
                found.append(
                    Drift(label, f"has {'other rules in' if name in listing.chains else 'lost'} its chain {name}")
                )
        lost: dict[str, int] = {}
        for name, key, data in holding.elements:
            if listing.elements[name].get(key) != data:
                lost[name] = lost.get(name, 0) + 1
        found += (Drift(label, f"has lost {count} of its elements in {name}") for name, count in lost.items())
    if prune:
        for place, _ in _surplus(listing, mirror):
            found.append(Drift(_NOBODY, f"had an element in {place[0]} that nobody wants"))
        found += (Drift(_NOBODY, f"had a chain {name} that nobody wants") for name in _surplus_chains(listing, mirror))
    return found


@dataclass(slots=True)
class Repair:
    """Two batches that make the tables hold what the mirror says, and the links of endpoints that nobody wants.

    The first makes what packets do not come to yet, so that the second lets them come to what is complete. Tables that
    cannot be kept are made anew by the first; until the second they know every container, and let no new connection
    of theirs through.
    """

    prepare: Batch
    switch: Batch
    shut: list[Place]


def repair(listing: Listing, mirror: Mirror, *, prune: bool) -> Repair:
    """What to do about the differences; with `prune`, also about what nobody should have."""
    found = Repair(Batch(), Batch(), [])
    made_anew = bool(listing.unsound)
    found.prepare.add_optional(sorted(mirror.optional - listing.optional))
    if made_anew:
        whole = "nftables tables"
        found.prepare.before_all(skeleton.remove(listing.present), whole)
        found.prepare.before_all(skeleton.create(), whole)
        listing = Listing(elements={name: {} for name in SETS})
    made: set[str] = set()
    for unit, holding in mirror.holdings.items():
        wrong = {name for name, fingerprint in holding.chains.items() if listing.chains.get(name) != fingerprint} - made
        made |= wrong
        if wrong:
            label = mirror.label(unit)
            for chain in mirror.contribution(unit).chains:
                if chain.name in wrong:
                    add = found.prepare.refill_chain if chain.name in listing.chains else found.prepare.new_chain
                    add(chain, label)
    if made_anew:
        _close(found.prepare, listing, mirror)
    _repair_elements(found.switch, listing, mirror)
    if prune:
        found.switch.remove_optional(sorted(listing.optional - mirror.optional - {*WHILE_CLOSED}))
        for place, data in _surplus(listing, mirror):
            found.switch.delete([place], _NOBODY)
            if place[0] == "ports":
                found.shut.append(("closed_ports", place[1]))
            if place[0] == "entry" and data != FROM_BRIDGE and place[1] not in listing.elements["vteps"]:
                found.shut.append(("closed", place[1]))
        for name in _surplus_chains(listing, mirror):
            found.switch.delete_chain(name, _NOBODY)
    return found


def _close(batch: Batch, listing: Listing, mirror: Mirror) -> None:
    """Add to new tables, and to their listing, everything that leads to no chain; what is sent in is dropped."""
    for unit, holding in mirror.holdings.items():
        found: list[Element] = []
        for name, key, data in holding.elements:
            if key in listing.elements[name] or name in _LEADING_OUT:
                continue
            judging = SETS[name].verdicts and name not in _IDENTITY
            first = wire.verdict_data(wire.DROP) if judging else data
            listing.elements[name][key] = first
            found.append((name, key, first))
        batch.add(found, mirror.label(unit))


def _repair_elements(batch: Batch, listing: Listing, mirror: Mirror) -> None:
    added: set[Place] = set()
    for unit, holding in mirror.holdings.items():
        label = mirror.label(unit)
        missing: list[Element] = []
        for name, key, data in holding.elements:
            there = listing.elements[name].get(key)
            if there == data or (name, key) in added:
                continue
            if there is not None:
                batch.delete([(name, key)], label)
            missing.append((name, key, data))
            added.add((name, key))
        batch.add(missing, label)


def _surplus(listing: Listing, mirror: Mirror) -> Iterator[tuple[Place, bytes]]:
    for name, elements in listing.elements.items():
        if not SETS[name].timeout_s:
            for key, data in elements.items():
                if (name, key) not in mirror:
                    yield (name, key), data


def _surplus_chains(listing: Listing, mirror: Mirror) -> Iterable[str]:
    wanted = {name for holding in mirror.holdings.values() for name in holding.chains}
    return sorted(listing.chains.keys() - wanted)
