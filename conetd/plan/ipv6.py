"""Which sysctls give a link the IPv6 addresses that are planned for it and no others, or no IPv6 at all."""

from __future__ import annotations

from conetd.plan import Side, Sysctl

_MTU_MIN = 1280  # bytes; IPV6_MIN_MTU in linux/ipv6.h
_OFF = (("disable_ipv6", "1"),)
# A router advertisement of somebody's must not give the link an address or a route.
_ON = (("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0"))


def link_ipv6(name: str, mtu: int, *, on: bool) -> tuple[Sysctl, ...]:
    """The sysctls of a link in the host namespace. One with an MTU below 1280 bytes has no IPv6 and none of them."""
    if mtu < _MTU_MIN:
        return ()
    return tuple(Sysctl(f"ipv6/conf/{name}/{key}", value) for key, value in (_ON if on else _OFF))


def container_ipv6(*, on: bool) -> tuple[Sysctl, ...]:
    """The sysctls of a container, inherited by its interface at birth: that costs less than setting them on it."""
    return _CONTAINER_ON if on else _CONTAINER_OFF


def _inherited(values: tuple[tuple[str, str], ...]) -> tuple[Sysctl, ...]:
    return tuple(Sysctl(f"ipv6/conf/default/{key}", value, Side.CONTAINER, early=True) for key, value in values)


_CONTAINER_OFF, _CONTAINER_ON = _inherited(_OFF), _inherited(_ON)
