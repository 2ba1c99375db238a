"""What an earlier life of the daemon left in the tables, kept until the first sync tells what is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from conetd.kernel.iptables.entries import Line, incoming_interface, pack
from conetd.kernel.iptables.layout import Opened
from conetd.kernel.iptables.protocol import Tables

Left = Mapping[tuple[int, str], Mapping[str, list[bytes]]]
"""For each family and table the rules of each chain of ours that was found."""

# Chains in which objects share a list. Every other belongs to one object, and a new one takes its place.
_FIRST = ("conetd-raw", "conetd-forward", "conetd-input")  # what is kept goes before the rest
_INSIDE = ("conetd-s-", "conetd-b", "conetd-f-", "conetd-to")  # their last rule judges what no other did
_ANYWHERE = ("conetd-mark", "conetd-pre", "conetd-post")


def beside(left: Left, wanted: Tables) -> Tables:
    """The wanted tables and, beside what is in them, everything that was left."""
    return {
        key: ({**left.get(key, {}), **dict(_merged(left.get(key, {}), chains))}, jumps)
        for key, (chains, jumps) in wanted.items()
    }


def opened(left: Left) -> Opened:
    """The uplinks that were no way through for strangers, by family."""
    return tuple(sorted({(key[0], link) for key, link in _dropped(left, "filter", "conetd-forward")}))


def shut(left: Left) -> frozenset[str]:
    """The links that were kept shut since their endpoint is gone."""
    return frozenset(link for _key, link in _dropped(left, "raw", "conetd-raw"))


def _merged(left: Mapping[str, list[bytes]], wanted: Mapping[str, list[bytes]]) -> Iterator[tuple[str, list[bytes]]]:
    for name, rules in wanted.items():
        kept = [rule for rule in left.get(name, ()) if rule not in rules]
        if name in _FIRST:
            yield name, [*kept, *rules]
        elif name.startswith(_INSIDE):
            yield name, [*rules[:-1], *kept, *rules[-1:]]
        elif name in _ANYWHERE:
            yield name, [*rules, *kept]
        else:
            yield name, rules


def _dropped(left: Left, table: str, chain: str) -> Iterator[tuple[tuple[int, str], str]]:
    for key, chains in left.items():
        for rule in chains.get(chain, ()) if key[1] == table else ():
            link = incoming_interface(rule, key[0])
            if link and rule == pack(Line("DROP", incoming=link), key[0]):
                yield key, link
