"""Which differences there are between a link as planned and as seen, and what each of them takes. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from conetd.kernel.links import GROUP_CLOSED, GROUP_GOING, GROUP_OURS, cut_alias
from conetd.kernel.seen import SeenLink
from conetd.plan import Bridge, Link, Veth, Vxlan

_KIND = {Bridge: "bridge", Veth: "veth", Vxlan: "vxlan"}
_PORT = (0, 1, 1)  # learning, locked, hairpin


class Cure(IntEnum):
    """What a difference takes: a change in place, a new link, or somebody else's decision."""

    CORRECT = 1
    REPLACE = 2
    REFUSE = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """One difference: the end of a sentence about the link, and its cure."""

    reason: str
    cure: Cure


def link_faults(wanted: Link, seen: SeenLink, alias: str, master: int) -> list[Fault]:
    """How the link in the host namespace differs. `master` is the index of a veth's bridge, 0 for none.

    An empty `alias` is not compared.
    """
    label = seen.label
    if not label.ours:
        return [Fault("is somebody else's: it bears no mark of conetd", Cure.REFUSE)]
    kind = _KIND[type(wanted)]
    if seen.kind != kind:
        return [Fault(f"is a {seen.kind or 'plain'} link, not a {kind}", Cure.REPLACE)]
    if label.group in (GROUP_CLOSED, GROUP_GOING):
        return [Fault("is marked to be deleted", Cure.REPLACE)]
    return list(_in_place(wanted, seen, alias, master))


def _in_place(wanted: Link, seen: SeenLink, alias: str, master: int) -> Iterator[Fault]:
    if seen.label.group != GROUP_OURS:
        yield Fault(f"is in the link group {seen.label.group}", Cure.CORRECT)
    if alias and seen.label.alias != cut_alias(alias):
        yield Fault(f"has the alias {seen.label.alias!r}", Cure.CORRECT)
    mac = wanted.host_mac if isinstance(wanted, Veth) else wanted.mac
    if mac and seen.mac != mac.lower():
        yield Fault(f"has the MAC {seen.mac}, not {mac}", Cure.CORRECT)
    if seen.mtu != wanted.mtu:
        yield Fault(f"has an MTU of {seen.mtu}, not {wanted.mtu}", Cure.CORRECT)
    if isinstance(wanted, Veth):
        if wanted.bridge and (not master or seen.master != master):
            yield Fault(f"is not a port of {wanted.bridge}", Cure.CORRECT)
        elif not wanted.bridge and seen.master:
            yield Fault("is a port of a bridge", Cure.CORRECT)
        elif wanted.bridge and seen.port != _PORT:
            yield Fault("has lost its port settings (learning off, locked, hairpin on)", Cure.CORRECT)
    elif isinstance(wanted, Bridge):
        if any(seen.data.get(f"IFLA_BR_{name}") for name in ("FORWARD_DELAY", "STP_STATE", "MCAST_SNOOPING")):
            yield Fault("has spanning tree, a forward delay or multicast snooping on", Cure.CORRECT)
    else:
        yield from _vxlan(wanted, seen)
    if not seen.up:
        yield Fault("is down", Cure.CORRECT)


def _vxlan(wanted: Vxlan, seen: SeenLink) -> Iterator[Fault]:
    local = "IFLA_VXLAN_LOCAL" if wanted.local.version == 4 else "IFLA_VXLAN_LOCAL6"
    for what, attribute, value in (
        ("id", "IFLA_VXLAN_ID", wanted.vni),
        ("port", "IFLA_VXLAN_PORT", wanted.port),
        ("local address", local, str(wanted.local)),
        ("learning", "IFLA_VXLAN_LEARNING", 0),
    ):
        there = seen.data.get(attribute)
        if there != value:
            yield Fault(f"has the {what} {there}, not {value}", Cure.REPLACE)
    default = seen.data.get("IFLA_VXLAN_GROUP") or seen.data.get("IFLA_VXLAN_GROUP6")
    if default:
        yield Fault(f"sends to {default} what it has no forwarding entry for", Cure.REPLACE)
    if ("IFLA_VXLAN_GBP" in seen.data) is not wanted.gbp:
        yield Fault(f"is {'without' if wanted.gbp else 'with'} group policy marks", Cure.REPLACE)


def peer_faults(wanted: Veth, host: SeenLink, peer: SeenLink | None) -> list[Fault]:
    """How the container's end differs; None is a peer that is not in the container's namespace."""
    if peer is None or peer.kind != "veth" or host.peer != peer.label.index or peer.peer != host.label.index:
        return [Fault(f"has no peer {wanted.peer} in the container", Cure.REPLACE)]
    faults = []
    if peer.mac != wanted.mac.lower():
        faults.append(Fault(f"has a peer with the MAC {peer.mac}, not {wanted.mac}", Cure.REPLACE))
    if peer.mtu != wanted.mtu:
        faults.append(Fault(f"has a peer with an MTU of {peer.mtu}, not {wanted.mtu}", Cure.REPLACE))
    if not peer.up:
        faults.append(Fault("has a peer that is down", Cure.CORRECT))
    return faults
