"""What the tables should hold for the objects in force, and what has to change for others. Pure.

Elements and chains that several units share (a bridge's name, a policy) are counted, so that they go with the last one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from conetd.kernel.nft.change import Change, Holding, Identity, Place, Unit, UnitChange, settle
from conetd.kernel.nft.elements import Contribution, name_key
from conetd.kernel.nft.inet_table import optional_of
from conetd.kernel.nft.objects import of_attachment, of_network
from conetd.kernel.nft.tunnel_objects import of_peer
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, TunnelPeer, identity

Uplink = tuple[int, str]  # IP version and interface

NETWORK, PEER, ATTACHMENT, UPLINKS = "network", "tunnel peer", "attachment", "uplinks"
_KINDS = {"NetworkFilter": NETWORK, "TunnelPeer": PEER, "Endpoint": ATTACHMENT, "EndpointPolicy": ATTACHMENT}
_OPENED: Unit = (UPLINKS, "")


_EMPTY = Holding((), {})


class Mirror:
    """The objects in force and what they come to."""

    def __init__(self, objects: Iterable[FilterObject] = (), uplinks: Collection[Uplink] = ()) -> None:
        self.objects: dict[Identity, FilterObject] = {}
        self.holdings: dict[Unit, Holding] = {}
        self.uplinks = frozenset(uplinks)
        self._counts: dict[Place, tuple[int, bytes]] = {}
        self._chain_counts: dict[str, int] = {}
        self._attachments: dict[str, set[str]] = {}  # of each network
        self._networks: dict[str, NetworkFilter] = {}
        self.commit(self.change(tuple(objects), (), self.uplinks))

    def __contains__(self, place: Place) -> bool:
        """Whether any unit has an element there."""
        return place in self._counts

    @property
    def units(self) -> Collection[Unit]:
        """All that have something in the tables."""
        return self.holdings.keys()

    @property
    def links(self) -> list[Place]:
        """Of each endpoint, where its link would stand if it were shut."""
        return [place for one in self.objects.values() for place in _links(one)]

    @property
    def optional(self) -> set[str]:
        """The optional chains that networks need."""
        return _optional(self._networks.values())

    def units_of(self, objects: Iterable[FilterObject]) -> list[Unit]:
        """The units that these objects make up, as far as they have something in the tables."""
        wanted = {(_KINDS[kind], key): None for kind, key in map(identity, objects)}
        return [unit for unit in wanted if unit in self.holdings]

    def after(self, change: Change) -> Mirror:
        """How the mirror looks once the change is made; this one stays as it is."""
        other = Mirror()
        other.objects = dict(self.objects)
        other.holdings = dict(self.holdings)
        other.uplinks = self.uplinks
        other._counts = dict(self._counts)
        other._chain_counts = dict(self._chain_counts)
        other._attachments = {network: set(members) for network, members in self._attachments.items()}
        other._networks = dict(self._networks)
        other.commit(change)
        return other

    def change(
        self, put: Sequence[FilterObject], drop: Sequence[Identity], uplinks: Collection[Uplink] | None = None
    ) -> Change:
        """What has to change for these objects to be put and dropped. Changes nothing itself.

        Raises KernelError (EEXIST) when two objects want one element otherwise, such as one host port.
        """
        objects: dict[Identity, FilterObject | None] = {}
        for one in drop:
            if one in self.objects:
                objects[one] = None
        for wanted in put:
            key = identity(wanted)
            if self.objects.get(key) == wanted:
                objects.pop(key, None)
            else:
                objects[key] = wanted
        change = Change(objects, {}, {}, {}, [])
        for unit in self._touched(objects):
            self._change_unit(change, unit, self._contribution(unit, objects))
        if uplinks is not None:
            opened = tuple((f"opened{version}", name_key(name), b"") for version, name in sorted(set(uplinks)))
            self._change_unit(change, _OPENED, Contribution(opened))
        settle(change, self._counts, self._chain_counts)
        for key, wanted_or_none in objects.items():
            if key[0] == "Endpoint":
                self._change_links(change, self.objects.get(key), wanted_or_none)
        change.closed = [place for place in change.closed if place not in change.reopened]
        if any(kind == "NetworkFilter" for kind, _ in objects):
            before, after = self.optional, _optional(self._networks_after(objects).values())
            change.needed, change.unneeded = after - before, before - after
        return change

    def commit(self, change: Change) -> None:
        """Make the change: the kernel has it."""
        self._networks = self._networks_after(change.objects)
        for key, wanted in change.objects.items():
            self._forget_member(key)
            if wanted is None:
                del self.objects[key]
            else:
                self.objects[key] = wanted
                if isinstance(wanted, Endpoint):
                    self._attachments.setdefault(wanted.network, set()).add(wanted.key)
        for unit, holding in change.holdings.items():
            if holding.elements or holding.chains:
                self.holdings[unit] = holding
            else:
                self.holdings.pop(unit, None)
        for place, (count, data) in change.counts.items():
            if count:
                self._counts[place] = (count, data)
            else:
                self._counts.pop(place, None)
        for name, number in change.chain_counts.items():
            if number:
                self._chain_counts[name] = number
            else:
                self._chain_counts.pop(name, None)

    def contribution(self, unit: Unit) -> Contribution:
        """Work out again what a unit comes to, for its chains."""
        return self._contribution(unit, {})

    def label(self, unit: Unit, objects: Mapping[Identity, FilterObject | None] | None = None) -> str:
        """A name for the unit that a person knows."""
        kind, key = unit
        if kind == ATTACHMENT:
            found = (objects or {}).get(("Endpoint", key)) or self.objects.get(("Endpoint", key))
            if isinstance(found, Endpoint):
                return f"filter of container {found.handle} ({key})"
        return "filter of the uplinks" if kind == UPLINKS else f"filter of {kind} {key}"

    def _touched(self, objects: Mapping[Identity, FilterObject | None]) -> Iterator[Unit]:
        touched: dict[Unit, None] = {}
        for kind, key in objects:
            touched[_KINDS[kind], key] = None
            if kind == "NetworkFilter":
                touched.update(((ATTACHMENT, one), None) for one in sorted(self._attachments.get(key, ())))
        yield from touched

    def _contribution(self, unit: Unit, objects: Mapping[Identity, FilterObject | None]) -> Contribution:
        kind, key = unit

        def get(identity: Identity) -> FilterObject | None:
            return objects[identity] if identity in objects else self.objects.get(identity)

        if kind == UPLINKS:
            return Contribution(self.holdings.get(unit, _EMPTY).elements)
        if kind == NETWORK:
            network = get(("NetworkFilter", key))
            return of_network(network if isinstance(network, NetworkFilter) else None)
        if kind == PEER:
            peer = get(("TunnelPeer", key))
            return of_peer(peer if isinstance(peer, TunnelPeer) else None)
        endpoint, policy = get(("Endpoint", key)), get(("EndpointPolicy", key))
        if not isinstance(endpoint, Endpoint):
            return of_attachment(None, None, None)
        network = get(("NetworkFilter", endpoint.network))
        return of_attachment(
            endpoint,
            policy if isinstance(policy, EndpointPolicy) else None,
            network if isinstance(network, NetworkFilter) else None,
        )

    def _change_unit(self, change: Change, unit: Unit, wanted: Contribution) -> None:
        before = self.holdings.get(unit, _EMPTY)
        after = Holding(wanted.elements, {chain.name: chain.fingerprint for chain in wanted.chains})
        change.holdings[unit] = after
        one = UnitChange(unit, self.label(unit, change.objects), unit in self.holdings)
        change.units.append(one)
        one.new_chains = [chain for chain in wanted.chains if chain.name not in before.chains]
        one.gone_chains = [name for name in before.chains if name not in after.chains]
        if before.elements != after.elements:
            for name, key, _ in before.elements:
                place = (name, key)
                count, held_data = change.counts.get(place) or self._counts[place]
                change.counts[place] = (count - 1, held_data)
                one.delete.append(place)
            one.add = list(after.elements)

    def _change_links(self, change: Change, before: FilterObject | None, after: FilterObject | None) -> None:
        # Once its endpoint is gone nothing tells its link from a stranger's; so it is shut by name.
        links_before, links_after = _links(before), _links(after)
        change.closed += links_before - links_after
        change.reopened += links_after - links_before

    def _networks_after(self, objects: Mapping[Identity, FilterObject | None]) -> dict[str, NetworkFilter]:
        networks = {key for kind, key in objects if kind == "NetworkFilter"}
        if not networks:
            return self._networks
        put = {one.key: one for one in objects.values() if isinstance(one, NetworkFilter)}
        return {key: one for key, one in self._networks.items() if key not in networks} | put

    def _forget_member(self, key: Identity) -> None:
        before = self.objects.get(key)
        if isinstance(before, Endpoint):
            members = self._attachments[before.network]
            members.discard(before.key)
            if not members:
                del self._attachments[before.network]


def _optional(networks: Iterable[NetworkFilter]) -> set[str]:
    return {name for one in networks for name in optional_of(one)}


def _links(endpoint: FilterObject | None) -> set[Place]:
    if not isinstance(endpoint, Endpoint):
        return set()
    if endpoint.port is None:
        return {("closed", name_key(endpoint.interface))}
    return {("closed_ports", name_key(endpoint.port))}
