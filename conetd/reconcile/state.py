"""What the reconciler keeps in memory beside the store: parsed networks and policies, claims, the revision."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from conetd.documents import load
from conetd.driver import Driver, PlannedDriver
from conetd.errors import Conflict, Invalid, NotFound
from conetd.model import JSON, Attachment, Lease, Network
from conetd.registry import Loaded
from conetd.store import AttachmentRecord, HostPortRecord, NetworkRecord, cluster, encode

# Characters of policy documents that are kept parsed, which takes some ten times as many bytes. One that has fallen out
# is parsed again.
_POLICIES_KEPT = 4 << 20


@dataclass(frozen=True, slots=True)
class LiveNetwork:
    """A stored network with its driver and its config as the driver's schema loaded it."""

    record: NetworkRecord
    loaded: Loaded
    network: Network[Any]


class Networks:
    """The networks in force by name. Replaced as a whole, so that any thread may read at any time."""

    def __init__(self, drivers: Mapping[str, Loaded]) -> None:
        self._drivers = drivers
        self._live: dict[str, LiveNetwork] = {}
        self._policies: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._kept = 0  # characters of all the documents in `_policies`
        self._lock = threading.Lock()

    def load(self, record: NetworkRecord) -> LiveNetwork:
        """Parse a network's record. Raises NotFound when its type is not enabled."""
        loaded = self._drivers.get(record.type)
        if loaded is None:
            raise NotFound(f'network "{record.name}" is of type {record.type}, which is not enabled')
        config = load(loaded.driver.config_schema(), record.config, "config", what=f'network "{record.name}"')
        return LiveNetwork(record, loaded, Network(record.name, record.type, config, record.uplink_mtu))

    def put(self, live: LiveNetwork) -> None:
        """Bring a network into force, in place of the one of its name."""
        with self._lock:
            self._live = {**self._live, live.record.name: live}
            self._forget_policies(live.record.name)

    def add(self, live: LiveNetwork) -> None:
        """Bring a new network into force. Raises Conflict when another of its name, of any type, was quicker."""
        with self._lock:
            if live.record.name in self._live:
                raise Conflict(f'there is another network "{live.record.name}" already: it has just been made')
            self._live = {**self._live, live.record.name: live}

    def renew(self, name: str, change: Callable[[Network[Any]], Network[Any]]) -> None:
        """Put what drivers see of a network in place of what they saw; its policies stay parsed. Gone already: none."""
        with self._lock:
            live = self._live.get(name)
            if live is not None:
                self._live = {**self._live, name: replace(live, network=change(live.network))}

    def drop(self, name: str) -> None:
        """Take a network out of force."""
        with self._lock:
            self._live = {key: value for key, value in self._live.items() if key != name}
            self._forget_policies(name)

    def get(self, name: str) -> LiveNetwork:
        """The network of that name. Raises NotFound."""
        live = self._live.get(name)
        if live is None:
            raise NotFound(f'there is no network "{name}"')
        return live

    def __contains__(self, name: str) -> bool:
        return name in self._live

    def all(self) -> list[LiveNetwork]:
        """All networks, by name."""
        live = self._live
        return [live[name] for name in sorted(live)]

    def policy(self, live: LiveNetwork, document: JSON, path: str = "") -> Any:
        """Parse a policy document for a network, with complaints under `path`. Raises Invalid."""
        key = (live.record.name, encode(document))
        with self._lock:
            if key in self._policies:
                self._policies.move_to_end(key)
                return self._policies[key]
        parsed = parse_policy(live, document, path)
        self._keep(key, parsed)
        return parsed

    def keep_policy(self, live: LiveNetwork, document: JSON, parsed: Any) -> None:
        """Remember what a document of a network was parsed to."""
        self._keep((live.record.name, encode(document)), parsed)

    def _keep(self, key: tuple[str, str], parsed: Any) -> None:
        with self._lock:
            if key not in self._policies:
                self._kept += len(key[1])
            self._policies[key] = parsed
            while self._kept > _POLICIES_KEPT and len(self._policies) > 1:
                (_, text), _ = self._policies.popitem(last=False)
                self._kept -= len(text)

    def _forget_policies(self, name: str) -> None:
        for key in [key for key in self._policies if key[0] == name]:
            del self._policies[key]
            self._kept -= len(key[1])


def parse_policy(live: LiveNetwork, document: JSON, path: str) -> Any:
    """What the network's driver makes of a policy document. Raises Invalid with complaints under `path`."""
    what = f'policy for network "{live.record.name}"'
    parsed = load(live.loaded.driver.policy_schema(), document, path, what=what)
    check_policy(live.loaded.driver, live.network, parsed, path, what)
    return parsed


def check_policy(driver: Driver[Any, Any], network: Network[Any], policy: Any, path: str, what: str) -> None:
    """Have the driver check a policy against its network. Raises Invalid with complaints under `path`."""
    try:
        driver.check_policy(network, policy)
    except Invalid as err:
        fields = {f"{path}.{field}" if path and field else path or field: text for field, text in err.fields.items()}
        raise Invalid(f"{what}: {path}: {err.message}" if path else f"{what}: {err.message}", fields=fields) from err


class Claims:
    """Who holds which claim on which network. The store refuses a duplicate too; here it is found without asking."""

    def __init__(self, held: Iterable[tuple[str, str, str]]) -> None:
        self._lock = threading.Lock()
        self._held: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for network, claim, handle in held:
            self._held[network][claim] = handle

    def held(self, network: str) -> Mapping[str, str]:
        """Claim to handle, for one network; it goes on changing."""
        return self._held[network]

    def take(self, network: str, handle: str, claims: Iterable[str]) -> None:
        """Hold all the claims for the handle, or none: raises Conflict naming claim and holder."""
        with self._lock:
            held = self._held[network]
            for claim in claims:
                if held.get(claim, handle) != handle:
                    raise Conflict(f'"{claim}" on network "{network}" is held by container "{held[claim]}"')
            for claim in claims:
                held[claim] = handle

    def give_back(self, network: str, handle: str, claims: Iterable[str]) -> None:
        """Hold the claims no longer; what somebody else holds stays his."""
        with self._lock:
            held = self._held[network]
            for claim in claims:
                if held.get(claim) == handle:
                    del held[claim]


class Revisions:
    """The one counter that numbers every change of a wish."""

    def __init__(self, last: int) -> None:
        self._counter = itertools.count(last + 1)

    def next(self) -> int:
        """A number larger than all before."""
        return next(self._counter)


def is_clustered(live: LiveNetwork) -> bool:
    """Whether the network spans hosts: each has a lease on it, and containers have identities."""
    driver = live.loaded.driver
    return "cluster" in driver.capabilities and isinstance(driver, PlannedDriver)


def with_cluster(db: sqlite3.Connection, live: LiveNetwork, *, agreed: bool) -> LiveNetwork:
    """The network with what the store knows of its hosts and identities; `agreed` as the network has it."""
    if not is_clustered(live):
        return live
    name = live.record.name
    lease, members = cluster.host_leases(db, name)
    identities = cluster.identities(db, name)
    known = replace(live.network, lease=lease, members=members, identities=identities, agreed=agreed)
    return replace(live, network=known)


def shared_definition(live: LiveNetwork) -> JSON:
    """What the hosts of a network that spans hosts have to agree on."""
    own = live.loaded.driver.host_config
    record = live.record
    config = {field: value for field, value in record.config.items() if field not in own}
    return {"type": record.type, "config": config, "default_policy": record.default_policy}


def takes_garden(live: LiveNetwork) -> bool:
    """Whether the network's policies can hold what Garden's NetIn and NetOut say."""
    return "garden" in live.loaded.driver.capabilities


def has_ipv6(lease: Lease) -> bool:
    """Whether an attachment has IPv6, by what it holds: an address, or a gateway."""
    return 6 in lease.gateways or any(claim.startswith("ip:") and ":" in claim[3:] for claim in lease.claims)


def attachment_value(
    record: AttachmentRecord, ports: Iterable[HostPortRecord], labels: Mapping[str, str]
) -> Attachment:
    """The attachment as drivers see it."""
    return Attachment(
        network=record.network,
        handle=record.handle,
        key=record.key,
        ifname=record.ifname,
        requested=record.requested,
        lease=record.lease,
        default_route=record.default_route,
        ports=tuple(one.port for one in ports),
        labels=labels,
        identity=record.identity,
    )
