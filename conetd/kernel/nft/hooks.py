"""What the fixed chains of both tables are made of."""

from __future__ import annotations

from dataclasses import dataclass

from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import wire
from conetd.kernel.nft.chain import Chain, KernelRule

# linux/netfilter.h and netfilter_bridge.h number them alike
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain at a hook; what reaches its end is accepted. `kind` is "filter" or "nat"."""

    kind: str
    hook: int
    priority: int
    chain: Chain


def rules(*pairs: tuple[str, bytes]) -> tuple[KernelRule, ...]:
    """Rules from what they are for, and their expressions."""
    return tuple(KernelRule(words, (expressions,)) for words, expressions in pairs)


def interface(name: str, key: int = e.IIFNAME, *, negate: bool = False) -> bytes:
    """Go on only if the set of names has the input (or, with OIFNAME, the output) interface."""
    return e.meta(key) + e.lookup(name, negate=negate)


def accept() -> bytes:
    """End the hook's chain; the packet goes on to the next."""
    return e.verdict(wire.ACCEPT)


def drop() -> bytes:
    """End the packet."""
    return e.verdict(wire.DROP)
