"""Which chains the legacy tables should hold for a set of filter objects.

raw      PREROUTING  > conetd-raw     > conetd-s-<interface>: only endpoints speak, in every packet
mangle   PREROUTING  > conetd-mark
nat      PREROUTING, OUTPUT > conetd-pre: published ports;  POSTROUTING > conetd-post > conetd-m-<network>
filter   FORWARD     > conetd-forward > conetd-f-<network> > conetd-e-<endpoint> (> conetd-n-<network>) > conetd-to
         conetd-to   > conetd-i-<endpoint>: what an endpoint lets in
filter   INPUT       > conetd-input  (> conetd-stray) > conetd-h-<network>
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from conetd.kernel.iptables import entries
from conetd.kernel.iptables.entries import Line, Masked, pack, within
from conetd.kernel.iptables.parts import (
    DUPLICATE_ADDRESS_DETECTION,
    KNOWN_FLOW,
    EndpointParts,
    NetworkParts,
    chain,
    endpoint_parts,
    loopback,
    needs_own_network_rules,
    network_parts,
)
from conetd.kernel.iptables.translate import TOWARDS
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, identity

Identity = tuple[str, str]
Opened = tuple[tuple[int, str], ...]  # IP version and interface
FAMILIES = (4, 6)
TABLES = ("raw", "mangle", "nat", "filter")
NOBODY: Identity = ("", "")  # owner of what belongs to no single object
_BUCKETS = 32  # a power of two; in so many chains a long list of sources is split


@dataclass(slots=True)
class WantedTable:
    """The chains of ours in one table with their packed rules, and the rules of built-in chains that lead there.

    `owners` says of each rule of a chain which object it is there for.
    """

    chains: dict[str, list[bytes]] = field(default_factory=dict)
    owners: dict[str, list[Identity]] = field(default_factory=dict)
    jumps: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, rules: Iterable[bytes], owner: Identity = NOBODY) -> None:
        """Append rules to a chain, which exists from then on."""
        chain_rules = self.chains.setdefault(name, [])
        before = len(chain_rules)
        chain_rules.extend(rules)
        self.owners.setdefault(name, []).extend([owner] * (len(chain_rules) - before))


Wanted = dict[tuple[int, str], WantedTable]


class Layout:
    """Puts the chains together. Remembers what it packed for objects that are still the same."""

    def __init__(self) -> None:
        self._endpoints: dict[str, tuple[Endpoint, EndpointPolicy, NetworkFilter, dict[int, EndpointParts]]] = {}
        self._networks: dict[str, tuple[NetworkFilter, dict[int, NetworkParts]]] = {}

    def build(self, objects: Mapping[Identity, FilterObject], opened: Opened = (), shut: Iterable[str] = ()) -> Wanted:
        """Every table of both families, empty where nothing is wanted.

        `shut` are interfaces of endpoints that are gone while the link may still be there.
        """
        # sorted, so that the same objects make the same chains whatever came first
        every = sorted(objects.values(), key=identity)
        networks = {one.key: one for one in every if isinstance(one, NetworkFilter)}
        endpoints = {one.key: one for one in every if isinstance(one, Endpoint)}
        policies = {one.key: one for one in every if isinstance(one, EndpointPolicy)}
        self._forget(networks, endpoints)
        interfaces: dict[str, str] = {one.interface: one.key for one in networks.values() if one.interface}
        speakers = []
        for endpoint in endpoints.values():
            interfaces.setdefault(endpoint.interface, endpoint.network)
            policy, network = policies.get(endpoint.key), networks.get(endpoint.network)
            if policy is not None and network is not None:
                speakers.append((endpoint, policy, network))
        barred = sorted(set(shut) - interfaces.keys())
        wanted: Wanted = {}
        for family in FAMILIES:
            parts = [(*who, self._endpoint_parts(*who)[family]) for who in speakers]
            of_networks = {key: self._network_parts(one)[family] for key, one in networks.items()}
            one = _Family(
                family,
                interfaces,
                networks,
                of_networks,
                parts,
                [link for version, link in opened if version == family],
                barred,
            )
            wanted |= {(family, table): made for table, made in one.tables().items()}
        return wanted

    def _forget(self, networks: Mapping[str, NetworkFilter], endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = {key: kept for key, kept in self._endpoints.items() if key in endpoints}
        self._networks = {key: kept for key, kept in self._networks.items() if key in networks}

    def _endpoint_parts(
        self, endpoint: Endpoint, policy: EndpointPolicy, network: NetworkFilter
    ) -> dict[int, EndpointParts]:
        kept = self._endpoints.get(endpoint.key)
        if kept is not None and kept[0] is endpoint and kept[1] is policy and kept[2] is network:
            return kept[3]
        made = {family: endpoint_parts(endpoint, policy, network, family) for family in FAMILIES}
        self._endpoints[endpoint.key] = endpoint, policy, network, made
        return made

    def _network_parts(self, network: NetworkFilter) -> dict[int, NetworkParts]:
        kept = self._networks.get(network.key)
        if kept is not None and kept[0] is network:
            return kept[1]
        made = {family: network_parts(network, family) for family in FAMILIES}
        self._networks[network.key] = network, made
        return made


@dataclass(slots=True)
class _Family:
    family: int
    interfaces: dict[str, str]  # each interface of ours, and the key of its network
    networks: dict[str, NetworkFilter]
    network_parts: dict[str, NetworkParts]
    endpoints: list[tuple[Endpoint, EndpointPolicy, NetworkFilter, EndpointParts]]
    opened: list[str]
    shut: list[str]

    def tables(self) -> dict[str, WantedTable]:
        if not (self.interfaces or self.networks or self.shut):
            return {
                "raw": WantedTable(),
                "mangle": WantedTable(),
                "nat": WantedTable(),
                "filter": self._filter() if self.opened else WantedTable(),
            }
        return {"raw": self._raw(), "mangle": self._mangle(), "nat": self._nat(), "filter": self._filter()}

    def _pack(self, *found: Line) -> list[bytes]:
        return [pack(line, self.family) for line in found]

    def _raw(self) -> WantedTable:
        table = WantedTable(jumps={"PREROUTING": self._pack(Line("conetd-raw"))[0]})
        table.add("conetd-raw", self._pack(*(Line("DROP", incoming=link) for link in self.shut)))
        sources: dict[str, list[tuple[Masked, bytes, Identity]]] = {link: [] for link in self.interfaces}
        for endpoint, _policy, _network, parts in self.endpoints:
            sources[endpoint.interface] += [(*source, identity(endpoint)) for source in parts.sources]
        for link, allowed in sources.items():
            name = chain("s", link)
            table.add("conetd-raw", self._pack(Line(name, goto=True, incoming=link)), self._owner(link))
            if self.family == 6 and allowed:
                table.add(name, self._pack(DUPLICATE_ADDRESS_DETECTION), self._owner(link))
            if len(allowed) > _BUCKETS:
                self._add_buckets(table, link, allowed)
            else:
                for _source, rule, owner in allowed:
                    table.add(name, (rule,), owner)
            table.add(name, self._pack(Line("DROP")), self._owner(link))
        return table

    def _add_buckets(self, table: WantedTable, link: str, allowed: list[tuple[Masked, bytes, Identity]]) -> None:
        # raw sees every packet, so a long list is split by the lowest bits of the address
        numbers = sorted({source.value % _BUCKETS for source, _rule, _owner in allowed})
        for number in numbers:
            bucket = Line(chain(f"b{number}", link), goto=True, source=Masked(number, _BUCKETS - 1))
            table.add(chain("s", link), self._pack(bucket), self._owner(link))
        for source, rule, owner in allowed:
            table.add(chain(f"b{source.value % _BUCKETS}", link), (rule,), owner)
        for number in numbers:
            table.add(chain(f"b{number}", link), self._pack(Line("DROP")), self._owner(link))

    def _mangle(self) -> WantedTable:
        marks = [(rule, identity(endpoint)) for endpoint, _, _, parts in self.endpoints for rule in parts.marks]
        if not marks:
            return WantedTable()
        table = WantedTable(jumps={"PREROUTING": self._pack(Line("conetd-mark"))[0]})
        for rule, owner in marks:
            table.add("conetd-mark", (rule,), owner)
        return table

    def _nat(self) -> WantedTable:
        to_us = Line(
            "conetd-pre",
            destination=within(loopback(self.family)),
            other_destination=True,
            matches=(entries.to_local(),),
        )
        jump, leave = self._pack(to_us, Line("conetd-post"))
        table = WantedTable(jumps={"PREROUTING": jump, "OUTPUT": jump, "POSTROUTING": leave})
        table.add("conetd-pre", ())
        for _endpoint, policy, _network, parts in self.endpoints:
            table.add("conetd-pre", parts.mapped_at, identity(policy))
        for _endpoint, policy, _network, parts in self.endpoints:
            table.add("conetd-pre", parts.mapped, identity(policy))
        # A frame on its way through a bridge to many, or to a neighbour's link-local address, leaves nothing.
        table.add("conetd-post", self._pack(Line("RETURN", matches=(entries.to_many(),))))
        for key, of_network in self.network_parts.items():
            table.add("conetd-post", of_network.redirected, identity(self.networks[key]))
        for _endpoint, policy, _network, parts in self.endpoints:
            table.add("conetd-post", parts.masqueraded, identity(policy))
        for key, of_network in self.network_parts.items():
            table.add("conetd-post", of_network.leaving, identity(self.networks[key]))
            if of_network.masquerade:
                table.add(chain("m", key), of_network.masquerade, identity(self.networks[key]))
        return table

    def _filter(self) -> WantedTable:
        forward, host = self._pack(Line("conetd-forward"), Line("conetd-input"))
        table = WantedTable(jumps={"FORWARD": forward, "INPUT": host})
        self._add_entrances(table)
        for _endpoint, policy, network, parts in self.endpoints:
            table.add(chain("f", network.key), parts.guarded, identity(policy))
        for key, of_network in self.network_parts.items():
            owner = identity(self.networks[key])
            table.add(chain("f", key), of_network.forward_head, owner)
            table.add(chain("h", key), of_network.host, owner)
        shared = set()
        for endpoint, policy, network, parts in self.endpoints:
            table.add(chain("f", network.key), parts.entries, identity(endpoint))
            if parts.egress:
                table.add(chain("e", endpoint.key), parts.egress, identity(policy))
            if network.rules and not needs_own_network_rules(policy, network):
                shared.add(network.key)
        for key in self.network_parts:
            table.add(chain("f", key), self._pack(Line("DROP")), identity(self.networks[key]))
        for key in sorted(shared):
            table.add(chain("n", key), self.network_parts[key].rules, identity(self.networks[key]))
        self._add_towards(table)
        return table

    def _add_entrances(self, table: WantedTable) -> None:
        self._add_strays(table)
        table.add("conetd-forward", self._pack(*(Line("DROP", outgoing=link) for link in self.shut)))
        for link, key in self.interfaces.items():
            known = key in self.networks
            forward = Line(chain("f", key), goto=True, incoming=link) if known else Line("DROP", incoming=link)
            to_host = Line(chain("h", key), goto=True, incoming=link) if known else Line("DROP", incoming=link)
            table.add("conetd-forward", self._pack(forward), self._owner(link))
            table.add("conetd-input", self._pack(to_host), self._owner(link))
        for link in self.interfaces:
            table.add("conetd-forward", self._pack(Line(TOWARDS, goto=True, outgoing=link)), self._owner(link))
        table.add("conetd-forward", self._pack(*(Line("DROP", incoming=link) for link in self.opened)))

    def _add_strays(self, table: WantedTable) -> None:
        # Translation passes a segment by that is outside its connection's window: the host would reset the connection.
        table.add("conetd-input", ())
        for _endpoint, policy, _network, parts in self.endpoints:
            if parts.strays:
                table.add("conetd-stray", parts.strays, identity(policy))
        if "conetd-stray" in table.chains:
            table.add("conetd-input", self._pack(Line("conetd-stray", matches=(entries.ctstate(entries.INVALID),))))

    def _add_towards(self, table: WantedTable) -> None:
        table.add(TOWARDS, self._pack(Line("ACCEPT", matches=(KNOWN_FLOW,))))
        for endpoint, policy, _network, parts in self.endpoints:
            table.add(TOWARDS, parts.judged, identity(policy))
            if parts.ingress:
                table.add(chain("i", endpoint.key), parts.ingress, identity(policy))
        table.add(TOWARDS, self._pack(Line("ACCEPT")))

    def _owner(self, link: str) -> Identity:
        network = self.networks.get(self.interfaces[link])
        return identity(network) if network is not None else NOBODY
