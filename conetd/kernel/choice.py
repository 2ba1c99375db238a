"""Which packet filter backend is used: the setting's, or what this host can do best."""

from __future__ import annotations

from conetd.errors import Invalid
from conetd.kernel.filter import FilterBackend

NFTABLES, IPTABLES = "nftables", "iptables"


def choose_filter(setting: str) -> FilterBackend:
    """Open the backend for the setting `auto`, `nftables` or `iptables`; `auto` takes nftables where it answers.

    Raises Invalid when the host has not what is asked for.
    """
    if setting == IPTABLES:
        return open_filter(IPTABLES)
    from conetd.kernel import nft

    if nft.available():
        return open_filter(NFTABLES)
    if setting == NFTABLES:
        raise Invalid("filter: this kernel has no nftables", fields={"filter": "no nftables in this kernel"})
    return open_filter(IPTABLES)


def open_filter(name: str) -> FilterBackend:
    """Open a backend by its name. Raises Invalid when what it needs is not installed."""
    if name == IPTABLES:
        from conetd.kernel.iptables import IptablesBackend  # an extra: imported where it is chosen, and nowhere else

        return IptablesBackend()
    from conetd.kernel.nft import NftablesBackend

    return NftablesBackend()


def other_than(name: str) -> str:
    """The name of the backend that is not this one."""
    return NFTABLES if name == IPTABLES else IPTABLES
