"""Which host ports exclude each other, and which port of the pool is given out next. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Protocol

from conetd.errors import Invalid
from conetd.model import IPAddress

HIGHEST = 65535


class Bound(Protocol):
    """What a host port is for this module; HostPort and PortRequest are such."""

    @property
    def protocol(self) -> int: ...
    @property
    def host_port(self) -> int: ...
    @property
    def host_ip(self) -> IPAddress | None: ...


@dataclass(frozen=True, slots=True)
class PortPool:
    """Host ports `start` to `start + size - 1`, for mappings that ask for any.

    Raises Invalid for a pool that begins below 1, or whose start and size together exceed 65535, as in Garden.
    """

    start: int
    size: int

    def __post_init__(self) -> None:
        if self.start < 1 or self.size < 0 or self.start + self.size > HIGHEST:
            raise Invalid(
                f"invalid pool range: start {self.start}, size {self.size}: must begin at 1 or above, and start and "
                f"size together must not exceed {HIGHEST}",
                fields={"port_pool": f"start {self.start}, size {self.size}"},
            )

    def __contains__(self, port: int) -> bool:
        return self.start <= port < self.start + self.size


def overlaps(a: Bound, b: Bound) -> bool:
    """Whether a packet could be meant for both: same protocol and port, and the same address or one that covers it.

    `host_ip` None covers every address, `0.0.0.0` and `::` those of their family.
    """
    if (a.protocol, a.host_port) != (b.protocol, b.host_port):
        return False
    if a.host_ip is None or b.host_ip is None:
        return True
    if a.host_ip.version != b.host_ip.version:
        return False
    return a.host_ip.is_unspecified or b.host_ip.is_unspecified or a.host_ip == b.host_ip


def candidates(pool: PortPool, taken: Container[int], cursor: int | None) -> Iterator[int]:
    """The ports of the pool that are not `taken`, each once, beginning after `cursor`, the one given out last.

    So a port that was given back is used again as late as can be. Without a cursor in the pool its start is first.
    """
    first = cursor + 1 - pool.start if cursor is not None and cursor in pool else 0
    for step in range(pool.size):
        port = pool.start + (first + step) % pool.size
        if port not in taken:
            yield port


def meets_ephemeral(pool: PortPool, low: int, high: int) -> bool:
    """Whether the pool has ports of `low` to `high`, those the host gives its own connections."""
    return pool.size > 0 and pool.start <= high and low < pool.start + pool.size
