"""What a difference between wanted and found chains means for the filter objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator

from conetd.kernel.iptables.layout import NOBODY, Identity, Wanted
from conetd.kernel.iptables.protocol import Difference
from conetd.plan import Drift

_TOOLS = {4: "iptables", 6: "ip6tables"}


def drifts(wanted: Wanted, differences: Iterable[Difference], only: Container[Identity] | None = None) -> list[Drift]:
    """Each difference as one drift of each object concerned, none twice.

    With `only`, what is there and not wanted does not count, nor what other objects miss.
    """
    return list(dict.fromkeys(_each(wanted, differences, only)))


def _each(wanted: Wanted, differences: Iterable[Difference], only: Container[Identity] | None) -> Iterator[Drift]:
    for family, name, chain, found in differences:
        table = wanted[family, name]
        where = f"{_TOOLS[family]} table {name}"
        if chain not in table.chains:
            if chain in table.jumps or only is None:
                yield Drift(where, f"does not lead from {chain} to conetd's rules as wanted")
            continue
        missing = Counter(table.chains[chain]) - Counter(found or ())
        owners = {
            owner for rule, owner in zip(table.chains[chain], table.owners[chain], strict=True) if rule in missing
        }
        surplus = Counter(found or ()) - Counter(table.chains[chain])
        for owner in sorted(owners):
            if owner == NOBODY:
                yield Drift(where, f"lacks rules of conetd's own in chain {chain}")
            elif only is None or owner in only:
                yield Drift(" ".join(owner), f"is not as wanted in {where}, chain {chain}")
        if only is None and surplus:
            yield Drift(where, f"holds rules in chain {chain} that are not wanted")
        elif not missing and not surplus:
            yield Drift(where, f"holds the rules of chain {chain} in another order, or lacks the chain")
