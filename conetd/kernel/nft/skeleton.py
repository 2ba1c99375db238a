"""How the fixed part of both tables is created, and recognised as ours and unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from conetd.kernel.nft import bridge_table, inet_table, wire
from conetd.kernel.nft.chain import Chain, RuleWriter
from conetd.kernel.nft.hooks import BaseChain
from conetd.kernel.nft.sets import SETS, TABLE

CHAINS: dict[int, tuple[Chain | BaseChain, ...]] = {
    wire.INET: inet_table.chains(),
    wire.BRIDGE: bridge_table.chains(),
}
FIXED: dict[int, dict[str, str]] = {
    family: {
        chain.name: chain.fingerprint for chain in (one.chain if isinstance(one, BaseChain) else one for one in every)
    }
    for family, every in CHAINS.items()
}
"""For each table the fingerprint of each fixed chain, by name."""

OPTIONAL: dict[str, BaseChain] = {one.chain.name: one for one in inet_table.optional()}
"""The chains of the inet table that are there only while something needs them, by name."""

HOOKS: dict[int, dict[str, tuple[str, int, int, int]]] = {
    family: {
        one.chain.name: (one.kind, one.hook, one.priority, wire.ACCEPT) for one in every if isinstance(one, BaseChain)
    }
    for family, every in {**CHAINS, wire.INET: (*CHAINS[wire.INET], *OPTIONAL.values())}.items()
}
"""For each table type, hook, priority and policy of each chain that is at a hook, by name."""

NAMES = {wire.INET: f"table inet {TABLE}", wire.BRIDGE: f"table bridge {TABLE}"}


def create() -> Iterator[bytes]:
    """The requests that create both tables with everything fixed in them."""
    for family, every in CHAINS.items():
        yield wire.new_table(family, TABLE)
        for number, one in enumerate(SETS.values(), 1):
            if one.family == family:
                yield one.message(number)
        writer = RuleWriter(family, TABLE)
        for chain in every:
            if isinstance(chain, BaseChain):
                yield wire.new_base_chain(family, TABLE, chain.chain.name, chain.kind, chain.hook, chain.priority)
            else:
                yield wire.new_chain(family, TABLE, chain.name)
        for chain in every:
            yield from writer.messages(chain.chain if isinstance(chain, BaseChain) else chain)


def remove(families: Iterable[int]) -> Iterator[bytes]:
    """The requests that delete the tables of these families."""
    for family in families:
        yield wire.delete_table(family, TABLE)
