"""What becomes of a packet for which no rule with conditions speaks. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a rule does with a packet."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule without conditions does; `chain` is where JUMP and GOTO lead."""

    kind: Kind
    chain: str = ""


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain on the forward hook; `drops`: its policy is drop."""

    name: str
    drops: bool


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A table with base chains on the forward hook. `verdicts` gives a chain's rules without conditions in order."""

    family: str
    table: str
    bases: Sequence[BaseChain]
    verdicts: Callable[[str], Sequence[Verdict]]
    remark: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The verdict that decides, and the chain it stands in."""

    kind: Kind
    chain: str


def fate(verdicts: Callable[[str], Sequence[Verdict]], chain: str) -> End | None:
    """How the chain's rules without conditions, and those of the chains they lead to, end; None: by the policy.

    The kernel refuses loops, and so few jumps nest that recursion is safe (16 in nftables, a stack in iptables).
    """
    for verdict in verdicts(chain):
        if verdict.kind in (Kind.ACCEPT, Kind.DROP, Kind.REJECT):
            return End(verdict.kind, chain)
        if verdict.kind is Kind.RETURN:
            return None
        end = fate(verdicts, verdict.chain)
        if end is not None or verdict.kind is Kind.GOTO:
            return end
    return None
