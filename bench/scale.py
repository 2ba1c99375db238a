"""How much is measured: everything in minutes, or little in a minute."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers of containers, and of samples."""

    levels: tuple[int, ...]
    """Containers attached before something is measured."""
    groups: int
    """Groups of samples for each way to attach."""
    flight: int
    """Containers that come up with several in flight."""
    peers: int
    """Containers of a peer, one at a time and in flight."""
    others: int
    """Containers beside the one whose policy changes, and whose policies packets are led past."""
    policies: int
    """Times a policy is replaced, for each of its sizes."""
    streams: int
    """Pairs of streams and of bursts of connections."""
    bulks: int
    """Containers that get a long list of Garden's rules."""
    spans: tuple[int, ...]
    """Containers attached to each of two networks, one of them across hosts, before something is measured."""
    hosts: int
    """Simulated hosts of a network."""
    joins: int
    """Times a host joins and leaves, and containers attached meanwhile."""
    idle_s: float
    """For how long a daemon is watched that has nothing to do."""
    identities: int
    """Identities that one label means."""
    judged: int
    """Containers that have a policy which names that label."""


FULL = Scale(
    (0, 100, 500, 1000),
    groups=8,
    flight=96,
    peers=64,
    others=1000,
    policies=25,
    streams=9,
    bulks=15,
    spans=(0, 100, 500),
    hosts=1000,
    joins=25,
    idle_s=20,
    identities=1000,
    judged=200,
)
QUICK = Scale(
    (0, 100),
    groups=2,
    flight=32,
    peers=32,
    others=100,
    policies=5,
    streams=3,
    bulks=3,
    spans=(0, 50),
    hosts=100,
    joins=5,
    idle_s=3,
    identities=100,
    judged=20,
)
