"""Networks, host sysctls and the few single values, as SQL."""

from __future__ import annotations

import json
import sqlite3

from conetd.store.records import NetworkRecord, encode

_COLUMNS = "name, type, config, default_policy, uplink_mtu, declared, rev, applied_rev, error"


def _network(row: tuple[str, str, str, str, int, int, int, int, str | None]) -> NetworkRecord:
    name, type_, config, default_policy, mtu, declared, rev, applied_rev, error = row
    return NetworkRecord(
        name, type_, json.loads(config), json.loads(default_policy), mtu, bool(declared), rev, applied_rev, error
    )


def networks(db: sqlite3.Connection) -> list[NetworkRecord]:
    """All networks, by name."""
    return [_network(row) for row in db.execute(f"SELECT {_COLUMNS} FROM networks ORDER BY name")]


def network(db: sqlite3.Connection, name: str) -> NetworkRecord | None:
    """The network of that name, or None."""
    row = db.execute(f"SELECT {_COLUMNS} FROM networks WHERE name = ?", (name,)).fetchone()
    return _network(row) if row else None


def put_network(db: sqlite3.Connection, record: NetworkRecord) -> None:
    """Insert the network or replace the one of its name."""
    db.execute(
        f"INSERT INTO networks ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET type = excluded.type, config = excluded.config,"
        " default_policy = excluded.default_policy, uplink_mtu = excluded.uplink_mtu,"
        " declared = excluded.declared, rev = excluded.rev, applied_rev = excluded.applied_rev, error = excluded.error",
        (
            record.name,
            record.type,
            encode(record.config),
            encode(record.default_policy),
            record.uplink_mtu,
            record.declared,
            record.rev,
            record.applied_rev,
            record.error,
        ),
    )


def network_applied(db: sqlite3.Connection, name: str, rev: int, error: str | None) -> None:
    """Record that the kernel holds revision `rev` of the network, or why it does not."""
    if error is None:
        db.execute("UPDATE networks SET applied_rev = ?, error = NULL WHERE name = ?", (rev, name))
    else:
        db.execute("UPDATE networks SET error = ? WHERE name = ?", (error, name))


def delete_network(db: sqlite3.Connection, name: str) -> None:
    """Delete the network; whoever refers to it makes this fail."""
    db.execute("DELETE FROM networks WHERE name = ?", (name,))


def meta(db: sqlite3.Connection, key: str) -> str | None:
    """A single stored value, or None."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def put_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    """Store a single value."""
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))


def last_revision(db: sqlite3.Connection) -> int:
    """The largest revision any wish was given so far."""
    (largest,) = db.execute(
        "SELECT max(coalesce((SELECT max(rev) FROM networks), 0), coalesce((SELECT max(rev) FROM attachments), 0),"
        " coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'revision'), 0))"
    ).fetchone()
    return int(largest)


def sysctls(db: sqlite3.Connection) -> dict[str, tuple[str, str]]:
    """The host sysctls conetd changed: path to (old value, new value)."""
    return {path: (old, new) for path, old, new in db.execute("SELECT path, old, new FROM sysctls")}


def put_sysctl(db: sqlite3.Connection, path: str, old: str, new: str) -> None:
    """Note a host sysctl that is about to change. The first old value stays."""
    db.execute(
        "INSERT INTO sysctls VALUES (?, ?, ?) ON CONFLICT (path) DO UPDATE SET new = excluded.new", (path, old, new)
    )


def delete_sysctl(db: sqlite3.Connection, path: str) -> None:
    """Forget a host sysctl that has its old value back."""
    db.execute("DELETE FROM sysctls WHERE path = ?", (path,))
