"""Which addresses and MACs a lease can have: the lowest that is free, the one that follows, the one asked for."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from ipaddress import IPv4Address

from conetd.errors import Conflict, Exhausted, Invalid
from conetd.model import Requested

_GENERATIONS = 64  # 0a:c0 to 0a:ff
_CHUNK = 256


def lowest_free(first: int, last: int, held: Collection[str], reserved: Collection[int] = ()) -> IPv4Address | None:
    """The lowest address from `first` to `last`, not reserved, whose claim `ip:…` is not held. None if there is none.

    Takes the longer the more are held, not the more there are.
    """
    for start in range(first, last + 1, _CHUNK):
        for number, claim in enumerate(_claims(start, min(start + _CHUNK - 1, last)), start):
            if claim not in held and number not in reserved:
                return IPv4Address(number)
    return None


# Writing a thousand addresses takes a millisecond, looking them up thirty microseconds.
@lru_cache(maxsize=256)
def _claims(first: int, last: int) -> tuple[str, ...]:
    return tuple(f"ip:{IPv4Address(number)}" for number in range(first, last + 1))


def mac_of(ip: IPv4Address, generation: int = 0) -> str:
    """The MAC derived from an address: 0a:c0 and its four bytes; 0a is locally administered, for a single host.

    A further `generation` is for the case that somebody asked for that very MAC: 0a:c1, 0a:c2 …
    """
    return ":".join(f"{byte:02x}" for byte in (0x0A, 0xC0 + generation, *ip.packed))


def derived_mac(network: str, ip: IPv4Address, held: Collection[str]) -> str:
    """The first MAC derived from the address whose claim `mac:…` is not held. Raises Exhausted."""
    for generation in range(_GENERATIONS):
        mac = mac_of(ip, generation)
        if f"mac:{mac}" not in held:
            return mac
    raise Exhausted(f'network "{network}": every MAC that can be derived from {ip} is taken')


def requested_mac(network: str, requested: Requested, held: Collection[str]) -> str | None:
    """The MAC that was asked for, if one was. Raises Invalid for one no interface can have, Conflict for a held one."""
    mac = requested.mac
    if mac is None:
        return None
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise unfit(network, "mac", mac, "is not the address of a single interface")
    refuse_held(network, "mac", f"mac:{mac}", held)
    return mac


def refuse_held(network: str, field: str, claim: str, held: Collection[str]) -> None:
    """Raise Conflict if the claim of what the field asks for is held."""
    if claim in held:
        value = claim.partition(":")[2]
        raise Conflict(
            f'{field}: {value} is already taken on network "{network}"', fields={field: f"already taken: {value}"}
        )


def unfit(network: str, field: str, value: object, reason: str) -> Invalid:
    """What is raised for a request that the network cannot grant; `reason` is the end of a sentence about the value."""
    return Invalid(f'{field}: {value} {reason} (network "{network}")', fields={field: f"{value} {reason}"})
