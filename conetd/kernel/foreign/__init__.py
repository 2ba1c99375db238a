"""Which packet filters of others drop forwarded packets, whatever conetd accepts.

An accept is final only in the chain that says it; a drop is final for the packet. So a chain of somebody else that
drops what it does not know, ufw's and firewalld's for instance, makes containers unreachable.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from conetd.kernel.foreign.fate import Kind, Ruleset, fate
from conetd.kernel.foreign.legacy import legacy_rulesets
from conetd.kernel.foreign.nft import nft_rulesets
from conetd.kernel.netlink import NETLINK_NETFILTER, Netlink


@dataclass(frozen=True, slots=True)
class ForeignDrop:
    """A chain on the forward hook that drops what its other rules do not let pass.

    `family` is `ip`, `ip6`, `inet` or `bridge`; `reason` the end of a sentence about the chain.
    """

    table: str
    chain: str
    family: str
    reason: str


def foreign_drops() -> list[ForeignDrop]:
    """The chains of others, in the calling thread's namespace, that drop forwarded packets they have no rule for.

    Looks at nftables tables (those of iptables-nft among them) other than `conetd`, and at the legacy tables `filter`
    that exist; asking makes none. Rules with conditions are not weighed: such a chain may still let ours pass.
    Raises KernelError.
    """
    with Netlink(NETLINK_NETFILTER) as netlink:
        return [drop for ruleset in chain(nft_rulesets(netlink), legacy_rulesets()) for drop in _drops(ruleset)]


def _drops(ruleset: Ruleset) -> list[ForeignDrop]:
    found = []
    for base in ruleset.bases:
        end = fate(ruleset.verdicts, base.name)
        if end is None and base.drops:
            reason = "has the policy drop"
        elif end is not None and end.kind in (Kind.DROP, Kind.REJECT):
            where = f', in chain "{end.chain}"' if end.chain != base.name else ""
            reason = f"{end.kind.value}s what no rule before let pass, by a rule without conditions{where}"
        else:
            continue
        found.append(ForeignDrop(ruleset.table, base.name, ruleset.family, reason + ruleset.remark))
    return found


__all__ = ["ForeignDrop", "foreign_drops"]
