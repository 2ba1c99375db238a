"""What the store keeps of other hosts, identities and what they have yet to be told."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conetd.model import Identity, Lease, Requested, Selector, label_set
from conetd.store import AttachmentRecord, ContainerRecord, Database, NetworkRecord, cluster, containers, networks

WEB, DB = label_set({"app": "web"}), label_set({"app": "db"})
LEASE = Lease({"subnet": "10.1.0.0/24", "mtu": 1500}, frozenset({"subnet:10.1.0.0/24"}))


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(tmp_path / "state" / "conetd.sqlite")

    def write(db: sqlite3.Connection) -> None:
        for name in ("n", "other"):
            networks.put_network(db, NetworkRecord(name, "vxlan", {}, {}, 1500))

    database.write(write)
    return database


@pytest.fixture
def write(database: Database) -> Callable[..., None]:
    """Do something in one transaction: a function of the store, and what it takes behind the connection."""

    def run(function: Callable[..., object], *arguments: object) -> None:
        database.write(lambda db: function(db, *arguments))

    return run


Write = Callable[..., None]


# Hosts


def test_leases_come_back_as_they_were_put(database: Database, write: Write) -> None:
    write(cluster.put_own_lease, "n", "h1", LEASE)
    write(cluster.put_member, "n", "h2", {"subnet": "10.1.1.0/24"})
    assert cluster.host_leases(database.reader(), "n") == (LEASE, {"h2": {"subnet": "10.1.1.0/24"}})
    assert cluster.host_leases(database.reader(), "other") == (None, {})


def test_this_host_has_one_lease_also_under_another_name(database: Database, write: Write) -> None:
    write(cluster.put_own_lease, "n", "h1", LEASE)
    write(cluster.put_own_lease, "n", "renamed", LEASE)
    assert cluster.host_leases(database.reader(), "n") == (LEASE, {})


def test_a_member_that_changes_is_replaced(database: Database, write: Write) -> None:
    for subnet in ("10.1.1.0/24", "10.1.2.0/24"):
        write(cluster.put_member, "n", "h2", {"subnet": subnet})
    assert cluster.host_leases(database.reader(), "n")[1] == {"h2": {"subnet": "10.1.2.0/24"}}


def test_what_others_say_never_touches_this_hosts_own_lease(database: Database, write: Write) -> None:
    write(cluster.put_own_lease, "n", "h1", LEASE)
    write(cluster.put_member, "n", "h1", {"subnet": "10.9.9.0/24"})
    write(cluster.delete_member, "n", "h1")
    assert cluster.host_leases(database.reader(), "n") == (LEASE, {})


def test_a_host_that_becomes_this_one_is_no_member_any_more(database: Database, write: Write) -> None:
    write(cluster.put_member, "n", "h1", {"subnet": "10.1.1.0/24"})
    write(cluster.put_own_lease, "n", "h1", LEASE)
    assert cluster.host_leases(database.reader(), "n") == (LEASE, {})


def test_a_deleted_network_leaves_nothing(database: Database, write: Write) -> None:
    write(cluster.put_own_lease, "n", "h1", LEASE)
    write(cluster.put_member, "n", "h2", {})
    write(cluster.put_identity, "n", Identity(1, WEB))
    write(cluster.put_uses, "n", [1])
    write(cluster.put_asks, "n", "h2", [Selector(WEB)])
    write(cluster.put_addresses, "n", 1, "h2", ["10.1.1.1"])
    write(networks.delete_network, "n")
    db = database.reader()
    for table in ("host_leases", "identities", "identity_uses", "asks", "identity_addresses"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


# Identities


def test_identities_come_back_with_the_addresses_of_hosts_that_live(database: Database, write: Write) -> None:
    write(cluster.put_own_lease, "n", "h1", LEASE)
    write(cluster.put_member, "n", "h2", {})
    write(cluster.put_identity, "n", Identity(1, WEB, "web"))
    write(cluster.put_identity, "n", Identity(2, DB))
    for host in ("h1", "h2", "gone"):
        write(
            cluster.put_addresses, "n", 1, host, [f"10.1.{len(host)}.1", f"fd00::{host[-1:] if host != 'gone' else 9}"]
        )
    found = cluster.identities(database.reader(), "n").by_number
    assert found[1] == Identity(1, WEB, "web", tuple(map(ip_address, ["10.1.2.1", "fd00::1", "10.1.2.1", "fd00::2"])))
    assert found[2] == Identity(2, DB)
    assert cluster.addresses_of(database.reader(), "n", 1) == found[1].addresses


def test_addresses_mean_something_again_when_the_host_is_back(database: Database, write: Write) -> None:
    write(cluster.put_identity, "n", Identity(1, WEB))
    write(cluster.put_addresses, "n", 1, "h2", ["10.1.1.1"])
    assert cluster.addresses_of(database.reader(), "n", 1) == ()
    write(cluster.put_member, "n", "h2", {})
    assert cluster.addresses_of(database.reader(), "n", 1) == (ip_address("10.1.1.1"),)
    write(cluster.delete_member, "n", "h2")
    assert cluster.addresses_of(database.reader(), "n", 1) == ()
    assert cluster.addresses_at(database.reader(), "n", "h2") == {1: ["10.1.1.1"]}


def test_no_addresses_are_no_row(database: Database, write: Write) -> None:
    write(cluster.put_addresses, "n", 1, "h2", ["10.1.1.1"])
    write(cluster.put_addresses, "n", 1, "h2", [])
    assert cluster.addresses_at(database.reader(), "n", "h2") == {}


def test_a_number_has_one_label_set(database: Database, write: Write) -> None:
    write(cluster.put_identity, "n", Identity(1, WEB))
    write(cluster.put_identity, "n", Identity(1, DB))
    assert cluster.identities(database.reader(), "n").by_number == {1: Identity(1, DB)}


def test_a_deleted_identity_takes_its_addresses_with_it_and_nobody_elses(database: Database, write: Write) -> None:
    for name in ("n", "other"):
        write(cluster.put_identity, name, Identity(1, WEB))
        write(cluster.put_addresses, name, 1, "h2", ["10.1.1.1"])
        write(cluster.put_addresses, name, 2, "h2", ["10.1.1.2"])
    write(cluster.delete_identity, "n", 1)
    assert cluster.identities(database.reader(), "n").by_number == {}
    assert cluster.addresses_at(database.reader(), "n", "h2") == {2: ["10.1.1.2"]}
    assert cluster.addresses_at(database.reader(), "other", "h2") == {1: ["10.1.1.1"], 2: ["10.1.1.2"]}


def test_uses_are_noted_once_and_by_network(database: Database, write: Write) -> None:
    write(cluster.put_uses, "n", [1, 2])
    write(cluster.put_uses, "n", [2, 3])
    write(cluster.put_uses, "other", [9])
    write(cluster.delete_uses, "n", [1, 7])
    assert cluster.uses(database.reader(), "n") == {2, 3}


def test_identities_in_use_are_those_of_attachments_that_have_one(database: Database) -> None:
    def write(db: sqlite3.Connection) -> None:
        for handle, number in (("a", 5), ("b", 5), ("c", 0), ("d", 6)):
            containers.put_container(db, ContainerRecord(handle))
            lease = Lease({}, frozenset({f"ip:{handle}"}))
            record = AttachmentRecord(
                "n", handle, 0, "eth0", Requested(), lease, identity=number, leaving=handle == "d"
            )
            containers.put_attachment(db, record)

    database.write(write)
    assert cluster.identities_in_use(database.reader(), "n") == {5, 6}


# Who asks for whom

LABELS = st.dictionaries(st.text("abc", min_size=1, max_size=2), st.text("xyz", max_size=2), min_size=1).map(label_set)
SELECTORS = st.builds(Selector, labels=LABELS, outbound=st.booleans()) | st.builds(
    Selector, handle=st.text("abc", min_size=1), outbound=st.booleans()
)


@given(st.sets(SELECTORS))
def test_selectors_are_read_back_whatever_their_order(selectors: set[Selector]) -> None:
    documents = cluster.selector_documents(selectors)
    assert cluster.selectors_of(documents) == selectors
    assert documents == cluster.selector_documents(sorted(selectors, key=repr, reverse=True))


def test_asks_are_kept_by_host_and_none_are_no_row(database: Database, write: Write) -> None:
    write(cluster.put_asks, "n", "h1", [Selector(WEB), Selector(handle="db", outbound=True)])
    write(cluster.put_asks, "n", "h2", [Selector(handle="web")])
    found = cluster.asks(database.reader(), "n")
    assert found["h1"] == {Selector(WEB), Selector(handle="db", outbound=True)}
    write(cluster.put_asks, "n", "h1", [])
    assert cluster.asks(database.reader(), "n") == {"h2": {Selector(handle="web")}}


# What others have yet to be told


def test_what_was_told_later_replaces_what_was_told_before(database: Database, write: Write) -> None:
    write(cluster.post, {"/a": "1", "/b": None})
    write(cluster.post, {"/a": None, "/c": "3"})
    assert cluster.outbox(database.reader(), 10) == {"/a": None, "/b": None, "/c": "3"}
    assert cluster.outbox_size(database.reader()) == 3
    assert cluster.in_outbox(database.reader(), "/b")
    assert not cluster.in_outbox(database.reader(), "/d")


def test_what_changed_while_it_was_told_is_told_again(database: Database, write: Write) -> None:
    write(cluster.post, {"/a": "1", "/b": None, "/c": "3"})
    told = cluster.outbox(database.reader(), 10)
    write(cluster.post, {"/a": "2", "/b": "now"})
    write(cluster.posted, told)
    assert cluster.outbox(database.reader(), 10) == {"/a": "2", "/b": "now"}


def test_the_outbox_is_read_in_parts_by_key(database: Database, write: Write) -> None:
    write(cluster.post, {f"/{number}": "" for number in (3, 1, 2)})
    assert list(cluster.outbox(database.reader(), 2)) == ["/1", "/2"]
