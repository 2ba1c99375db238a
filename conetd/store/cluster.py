"""What is known of other hosts and of identities, and what they have yet to be told, as SQL."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

from conetd.model import JSON, Identities, Identity, IPAddress, Lease, Selector, label_set
from conetd.store.records import encode

# What a host was last known to have is kept while it is away, and means nothing until it is back.
_LIVING = (
    "FROM identity_addresses a WHERE network = ?"
    " AND EXISTS (SELECT 1 FROM host_leases h WHERE h.network = a.network AND h.host = a.host)"
)


def host_leases(db: sqlite3.Connection, network: str) -> tuple[Lease | None, dict[str, JSON]]:
    """This host's lease on the network, and host to lease data of the others."""
    own: Lease | None = None
    others: dict[str, JSON] = {}
    rows = db.execute("SELECT host, own, data, claims FROM host_leases WHERE network = ?", (network,))
    for host, is_own, data, claims in rows:
        if is_own:
            own = Lease(json.loads(data), frozenset(json.loads(claims)))
        else:
            others[host] = json.loads(data)
    return own, others


def put_own_lease(db: sqlite3.Connection, network: str, host: str, lease: Lease) -> None:
    """Store what this host has on the network."""
    db.execute("DELETE FROM host_leases WHERE network = ? AND (own = 1 OR host = ?)", (network, host))
    row = (network, host, 1, encode(lease.data), encode(sorted(lease.claims)))
    db.execute("INSERT INTO host_leases VALUES (?, ?, ?, ?, ?)", row)


def put_member(db: sqlite3.Connection, network: str, host: str, data: JSON) -> None:
    """Store what another host has on the network; this one's own lease is left alone."""
    db.execute(
        "INSERT INTO host_leases VALUES (?, ?, 0, ?, '[]')"
        " ON CONFLICT (network, host) DO UPDATE SET data = excluded.data WHERE own = 0",
        (network, host, encode(data)),
    )


def delete_member(db: sqlite3.Connection, network: str, host: str) -> None:
    """Forget another host of the network."""
    db.execute("DELETE FROM host_leases WHERE network = ? AND host = ? AND own = 0", (network, host))


def identities(db: sqlite3.Connection, network: str) -> Identities:
    """The network's identities, with the addresses that are kept of them."""
    addresses: defaultdict[int, list[IPAddress]] = defaultdict(list)
    for number, some in db.execute(f"SELECT number, addresses {_LIVING} ORDER BY number, host", (network,)):
        addresses[number] += [ip_address(one) for one in json.loads(some)]
    rows = db.execute("SELECT number, labels, handle FROM identities WHERE network = ?", (network,))
    return Identities.of(
        Identity(number, label_set(json.loads(labels)), handle, tuple(addresses[number]))
        for number, labels, handle in rows
    )


def put_identity(db: sqlite3.Connection, network: str, one: Identity) -> None:
    """Insert the identity, or replace the one of its number."""
    db.execute(
        "INSERT OR REPLACE INTO identities VALUES (?, ?, ?, ?)",
        (network, one.number, encode(dict(one.labels)), one.handle),
    )


def delete_identity(db: sqlite3.Connection, network: str, number: int) -> None:
    """Delete an identity and the addresses that are kept of it."""
    db.execute("DELETE FROM identities WHERE network = ? AND number = ?", (network, number))
    db.execute("DELETE FROM identity_addresses WHERE network = ? AND number = ?", (network, number))


def addresses_of(db: sqlite3.Connection, network: str, number: int) -> tuple[IPAddress, ...]:
    """The addresses that are kept of an identity, of all hosts that live."""
    rows = db.execute(f"SELECT addresses {_LIVING} AND number = ? ORDER BY host", (network, number))
    return tuple(ip_address(one) for (some,) in rows for one in json.loads(some))


def addresses_at(db: sqlite3.Connection, network: str, host: str) -> dict[int, list[str]]:
    """Identity number to the addresses that are kept of its containers on one host."""
    rows = db.execute(
        "SELECT number, addresses FROM identity_addresses WHERE network = ? AND host = ?", (network, host)
    )
    return {number: json.loads(some) for number, some in rows}


def put_addresses(db: sqlite3.Connection, network: str, number: int, host: str, addresses: Sequence[str]) -> None:
    """Keep the addresses of an identity's containers on one host; an empty list keeps nothing."""
    db.execute("DELETE FROM identity_addresses WHERE network = ? AND number = ? AND host = ?", (network, number, host))
    if addresses:
        row = (network, number, host, encode(list(addresses)))
        db.execute("INSERT INTO identity_addresses VALUES (?, ?, ?, ?)", row)


def asks(db: sqlite3.Connection, network: str) -> dict[str, frozenset[Selector]]:
    """Host to the selectors of the policies on it."""
    rows = db.execute("SELECT host, selectors FROM asks WHERE network = ?", (network,))
    return {host: selectors_of(json.loads(selectors)) for host, selectors in rows}


def put_asks(db: sqlite3.Connection, network: str, host: str, selectors: Iterable[Selector]) -> None:
    """Make these the selectors of the policies on a host."""
    documents = selector_documents(selectors)
    if documents:
        db.execute("INSERT OR REPLACE INTO asks VALUES (?, ?, ?)", (network, host, encode(documents)))
    else:
        db.execute("DELETE FROM asks WHERE network = ? AND host = ?", (network, host))


def selector_documents(selectors: Iterable[Selector]) -> list[JSON]:
    """Selectors as JSON, in one order whatever theirs."""
    found = []
    for one in selectors:
        peer = {"labels": dict(one.labels)} if one.handle is None else {"handle": one.handle}
        found.append(peer | {"outbound": one.outbound})
    return sorted(found, key=encode)


def selectors_of(documents: Iterable[JSON]) -> frozenset[Selector]:
    """The selectors that `selector_documents` made these of."""
    return frozenset(
        Selector(label_set(one.get("labels", {})), one.get("handle"), one["outbound"]) for one in documents
    )


def uses(db: sqlite3.Connection, network: str) -> set[int]:
    """The numbers of the identities that the other hosts keep because of this one."""
    return {number for (number,) in db.execute("SELECT number FROM identity_uses WHERE network = ?", (network,))}


def put_uses(db: sqlite3.Connection, network: str, numbers: Iterable[int]) -> None:
    """Note that the other hosts keep these identities because of this one."""
    db.executemany("INSERT OR IGNORE INTO identity_uses VALUES (?, ?)", [(network, number) for number in numbers])


def delete_uses(db: sqlite3.Connection, network: str, numbers: Iterable[int]) -> None:
    """Note that this host needs these identities no longer."""
    rows = [(network, number) for number in numbers]
    db.executemany("DELETE FROM identity_uses WHERE network = ? AND number = ?", rows)


def identities_in_use(db: sqlite3.Connection, network: str) -> set[int]:
    """The numbers of the identities that attachments of this host have, those that are leaving included."""
    rows = db.execute("SELECT DISTINCT identity FROM attachments WHERE network = ? AND identity > 0", (network,))
    return {number for (number,) in rows}


def post(db: sqlite3.Connection, told: Mapping[str, str | None]) -> None:
    """Have the cluster be told these keys' values; None: that the key goes. What was to be told before is replaced."""
    db.executemany("INSERT OR REPLACE INTO outbox VALUES (?, ?)", told.items())


def outbox(db: sqlite3.Connection, limit: int) -> dict[str, str | None]:
    """Some of what the cluster has yet to be told: key to value."""
    return dict(db.execute("SELECT key, value FROM outbox ORDER BY key LIMIT ?", (limit,)).fetchall())


def outbox_size(db: sqlite3.Connection) -> int:
    """How many keys the cluster has yet to be told."""
    (count,) = db.execute("SELECT count(*) FROM outbox").fetchone()
    return int(count)


def outbox_of(db: sqlite3.Connection, prefixes: Iterable[str]) -> list[str]:
    """The keys below these prefixes that the cluster has yet to be told."""
    return [
        key
        for prefix in prefixes
        for (key,) in db.execute("SELECT key FROM outbox WHERE substr(key, 1, ?) = ?", (len(prefix), prefix))
    ]


def drop_outbox(db: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Have the cluster not be told of these keys."""
    db.executemany("DELETE FROM outbox WHERE key = ?", [(key,) for key in keys])


def posted(db: sqlite3.Connection, told: Mapping[str, str | None]) -> None:
    """The cluster has been told: what is still to be told as it was then is done."""
    db.executemany("DELETE FROM outbox WHERE key = ? AND value IS ?", told.items())


def in_outbox(db: sqlite3.Connection, key: str) -> bool:
    """Whether the cluster has yet to be told of the key."""
    return db.execute("SELECT 1 FROM outbox WHERE key = ?", (key,)).fetchone() is not None
