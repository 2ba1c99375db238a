"""The other hosts of a cluster and their containers, as far as drivers see them: hosts, identities, selectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from conetd.model.rules import IPAddress

Labels = tuple[tuple[str, str], ...]
"""A label set: pairs of name and value, sorted by name."""

IDENTITY_MAX = 65535  # sixteen bits travel in a VXLAN header (draft-smith-vxlan-group-policy)


@dataclass(frozen=True, slots=True)
class Interface:
    """One of the host's own interfaces: its MTU in bytes, and its addresses that others can reach."""

    name: str
    mtu: int
    addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """This host: its name in the cluster, its interfaces, and the addresses from which it speaks to the world.

    `sources` are those of the default routes, at most one of each IP version, IPv4 first.
    """

    name: str
    interfaces: tuple[Interface, ...] = ()
    sources: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector:
    """The containers of a network that a policy names: the one of that `handle`, else all that have these `labels`.

    `outbound`: the policy says what may be sent to them, which takes their addresses; else what may come from them.
    """

    labels: Labels = ()
    handle: str | None = None
    outbound: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """A label set of a network by its number, 1 to 65535, which its containers' packets carry as the low 16 bits of
    their mark. A container that some policy names by its handle has one of its own.

    `addresses` are those of its containers, wherever they run; kept only where an outbound selector needs them.
    """

    number: int
    labels: Labels
    handle: str | None = None
    addresses: tuple[IPAddress, ...] = ()

    def matches(self, selector: Selector) -> bool:
        """Whether the selector means the containers of this identity."""
        if selector.handle is not None:
            return selector.handle == self.handle
        return set(selector.labels) <= set(self.labels)


@dataclass(frozen=True)
class Identities:
    """The identities of a network. Immutable; `changed` makes others."""

    by_number: Mapping[int, Identity] = field(default_factory=dict)
    _numbers: Mapping[tuple[Labels, str | None], int] = field(default_factory=dict, repr=False, compare=False)
    # Many policies have the same selectors, and there may be thousands of identities.
    _selected: dict[Selector, list[Identity]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, identities: Iterable[Identity]) -> Identities:
        """The identities, each by its number."""
        return NO_IDENTITIES.changed(put=identities)

    def changed(self, put: Iterable[Identity] = (), drop: Iterable[int] = ()) -> Identities:
        """These with some put, in place of those of their numbers, and some dropped."""
        by_number, numbers = dict(self.by_number), dict(self._numbers)
        put = list(put)
        for number in [*drop, *(one.number for one in put)]:
            gone = by_number.pop(number, None)
            # its label set may have another number already
            if gone is not None and numbers.get((gone.labels, gone.handle)) == number:
                del numbers[gone.labels, gone.handle]
        for one in put:
            by_number[one.number] = one
            numbers[one.labels, one.handle] = one.number
        return Identities(by_number, numbers)

    def number(self, labels: Labels, handle: str | None = None) -> int:
        """The number of the identity of exactly this label set (and handle), 0 if there is none."""
        return self._numbers.get((labels, handle), 0)

    def select(self, selector: Selector) -> list[Identity]:
        """The identities the selector means, by number."""
        found = self._selected.get(selector)
        if found is None:
            found = [one for _, one in sorted(self.by_number.items()) if one.matches(selector)]
            self._selected[selector] = found
        return found


NO_IDENTITIES = Identities()


def label_set(labels: Mapping[str, str]) -> Labels:
    """The labels as a label set."""
    return tuple(sorted(labels.items()))
