"""The packet filter in nftables: one atomic batch a change, elements of fixed sets and a small chain a container."""

from conetd.kernel.nft.backend import NftablesBackend, available

__all__ = ["NftablesBackend", "available"]
