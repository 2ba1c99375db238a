"""What one unit puts into the tables, and how the keys of its elements are written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import wire
from conetd.kernel.nft.chain import Chain
from conetd.model import IPNetwork

Element = tuple[str, bytes, bytes]
"""Name of the set, key (of an interval: first and last value), and data as the wire has it."""

_END = {4: (bytes(4), b"\xff" * 4), 6: (bytes(16), b"\xff" * 16)}
_LINK_LOCAL = b"\xfe\x80" + bytes(6)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one unit puts into the tables."""

    elements: tuple[Element, ...] = ()
    chains: tuple[Chain, ...] = ()


NOTHING = Contribution()


@lru_cache(maxsize=4096)
def name_key(name: str) -> bytes:
    """An interface's name as a key."""
    return name.encode().ljust(16, b"\0")


def version_key(family: int) -> bytes:
    """An IP version as a key."""
    return bytes((e.NFPROTO_OF[family],))


def mac_bytes(mac: str) -> bytes:
    """A MAC address, six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def mac_key(mac: str) -> bytes:
    """A MAC address as a part of a key: it takes whole registers."""
    return mac_bytes(mac) + b"\0\0"


def ends(network: IPNetwork) -> tuple[bytes, bytes]:
    """The first and the last address."""
    return network.network_address.packed, network.broadcast_address.packed


def to_anything(network: IPNetwork) -> bytes:
    """A source in the network and any destination, as the key of an interval of pairs."""
    (first, last), (lowest, highest) = ends(network), _END[network.version]
    return first + lowest + last + highest


def link_local(mac: bytes) -> bytes:
    """The link-local address that follows from a MAC address (RFC 4291, appendix A)."""
    return _LINK_LOCAL + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def goes_to(chain: Chain) -> bytes:
    """The data of an element that leads to the chain for good."""
    return wire.verdict_data(wire.GOTO, chain.name)
