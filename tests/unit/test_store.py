"""The store: durable wishes, shared commits, claims that nobody else may hold."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from conetd.errors import ConetError
from conetd.model import HostPort, Lease, Requested
from conetd.store import (
    AttachmentRecord,
    ContainerRecord,
    Database,
    HostPortRecord,
    Join,
    Life,
    NetworkRecord,
    containers,
    networks,
)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "state" / "conetd.sqlite")


def network(name: str = "blue") -> NetworkRecord:
    return NetworkRecord(name, "bridge", {"subnet": "10.0.0.0/24"}, {"net_out": []}, 1500, rev=3)


def attachment(handle: str, *claims: str, network: str = "blue") -> AttachmentRecord:
    lease = Lease({"ip": "10.0.0.2"}, frozenset(claims), frozenset({4}))
    return AttachmentRecord(network, handle, 0, "eth0", Requested(mac="0a:00:00:00:00:02"), lease, rev=4)


def attached(database: Database, *records: AttachmentRecord) -> None:
    def write(db: sqlite3.Connection) -> None:
        networks.put_network(db, network())
        for record in records:
            containers.put_container(db, ContainerRecord(record.handle))
            containers.put_attachment(db, record)

    database.write(write)


def test_a_network_comes_back_as_it_was_put(database: Database) -> None:
    database.write(lambda db: networks.put_network(db, network()))
    assert networks.networks(database.reader()) == [network()]


def test_a_container_comes_back_as_it_was_put(database: Database) -> None:
    record = ContainerRecord(
        "web", (Join("blue", ip="10.0.0.9"), Join("red")), {"app": "shop"}, {"k": "v"}, Life(12, 345, 678, "boot")
    )
    database.write(lambda db: containers.put_container(db, record))
    assert containers.container(database.reader(), "web") == record


def test_an_attachment_comes_back_as_it_was_put(database: Database) -> None:
    record = attachment("web", "ip:10.0.0.2", "mac:0a:00:00:00:00:02")
    attached(database, record)
    assert containers.attachments_of(database.reader(), "web") == [record]
    assert sorted(containers.claims(database.reader())) == [
        ("blue", "ip:10.0.0.2", "web"),
        ("blue", "mac:0a:00:00:00:00:02", "web"),
    ]


def test_putting_an_attachment_twice_is_putting_it_once(database: Database) -> None:
    record = attachment("web", "ip:10.0.0.2")
    attached(database, record, record)
    assert containers.claims(database.reader()) == [("blue", "ip:10.0.0.2", "web")]


def test_a_claim_held_by_another_container_is_refused(database: Database) -> None:
    attached(database, attachment("web", "ip:10.0.0.2"))
    with pytest.raises(sqlite3.IntegrityError):
        attached(database, attachment("db", "ip:10.0.0.2"))
    assert containers.attachments_of(database.reader(), "db") == []


def test_an_attachment_is_deleted_only_once_it_is_leaving(database: Database) -> None:
    attached(database, attachment("web", "ip:10.0.0.2"))
    database.write(lambda db: containers.delete_attachment(db, "web", "blue"))
    assert len(containers.attachments_of(database.reader(), "web")) == 1

    def go(db: sqlite3.Connection) -> None:
        containers.leave(db, "web", "blue")
        containers.delete_attachment(db, "web", "blue")

    database.write(go)
    assert containers.attachments_of(database.reader(), "web") == []
    assert containers.claims(database.reader()) == []


def test_leaving_gives_host_ports_back_and_keeps_claims(database: Database) -> None:
    attached(database, attachment("web", "ip:10.0.0.2"))
    port = HostPortRecord(HostPort(6, 8080, 80), 0, 80)
    database.write(lambda db: containers.put_host_ports(db, "web", "blue", [port]))
    assert containers.host_ports(database.reader(), "web", "blue") == (port,)
    database.write(lambda db: containers.leave(db, "web", "blue"))
    assert containers.host_ports(database.reader(), "web", "blue") == ()
    assert containers.claims(database.reader()) == [("blue", "ip:10.0.0.2", "web")]


def test_a_network_with_an_attachment_cannot_be_deleted(database: Database) -> None:
    attached(database, attachment("web"))
    with pytest.raises(sqlite3.IntegrityError):
        database.write(lambda db: networks.delete_network(db, "blue"))


def test_a_container_nobody_configured_goes_when_its_life_ends(database: Database) -> None:
    database.write(lambda db: containers.put_container(db, ContainerRecord("web", life=Life(1, 2, 3, "boot"))))
    database.write(lambda db: containers.delete_if_unwanted(db, "web"))
    assert containers.container(database.reader(), "web") is not None

    def end(db: sqlite3.Connection) -> None:
        containers.end_life(db, "web")
        containers.delete_if_unwanted(db, "web")

    database.write(end)
    assert containers.container(database.reader(), "web") is None


def test_a_policy_a_client_put_outlives_the_container(database: Database) -> None:
    def write(db: sqlite3.Connection) -> None:
        networks.put_network(db, network())
        containers.put_container(db, ContainerRecord("web", life=Life(1, 2, 3, "boot")))
        containers.put_policy(db, "web", "blue", "client", {"net_out": [1]})
        containers.put_policy(db, "web", "blue", "garden", {"net_out": [2]})

    database.write(write)
    assert containers.policies_of(database.reader(), "web") == {"blue": ("garden", {"net_out": [2]})}

    def end(db: sqlite3.Connection) -> None:
        containers.end_life(db, "web")
        containers.delete_if_unwanted(db, "web")

    database.write(end)
    assert containers.policies_of(database.reader(), "web") == {"blue": ("client", {"net_out": [1]})}


def test_containers_whose_config_names_a_network_are_found(database: Database) -> None:
    def write(db: sqlite3.Connection) -> None:
        containers.put_container(db, ContainerRecord("a", (Join("blue"),)))
        containers.put_container(db, ContainerRecord("b", (Join("red"), Join("blue", ip="10.0.0.9"))))
        containers.put_container(db, ContainerRecord("c", (Join("blueish"),)))
        containers.put_container(db, ContainerRecord("d"))

    database.write(write)
    assert containers.configured_on(database.reader(), "blue") == ["a", "b"]


def test_work_that_fails_leaves_the_others_in_its_commit_alone(database: Database) -> None:
    start = threading.Barrier(9)
    errors: list[Exception] = []

    def write(number: int) -> None:
        def work(db: sqlite3.Connection) -> None:
            networks.put_meta(db, f"k{number}", "v")
            if number % 2:
                raise ValueError(number)

        start.wait()
        try:
            database.write(work)
        except ValueError as err:
            errors.append(err)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    stored = {key for (key,) in database.reader().execute("SELECT key FROM meta")}
    assert stored == {"k0", "k2", "k4", "k6"}


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "conetd.sqlite"
    database = Database(path)
    database.write(lambda db: networks.put_network(db, network()))
    database.close()
    assert networks.network(Database(path).reader(), "blue") == network()


def test_a_file_of_a_newer_conetd_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "conetd.sqlite"
    Database(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 9999")
    db.close()
    with pytest.raises(ConetError, match=r"version 9999.*newer conetd"):
        Database(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "conetd.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(ConetError, match="cannot open the state file"):
        Database(path)


def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.reader().execute("INSERT INTO meta VALUES ('a', 'b')")


def test_the_first_old_value_of_a_sysctl_stays(database: Database) -> None:
    database.write(lambda db: networks.put_sysctl(db, "ipv4/conf/up0/forwarding", "0", "1"))
    database.write(lambda db: networks.put_sysctl(db, "ipv4/conf/up0/forwarding", "1", "1"))
    assert networks.sysctls(database.reader()) == {"ipv4/conf/up0/forwarding": ("0", "1")}
