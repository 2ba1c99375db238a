"""Whether what was prepared of a change that Garden asks for may still be put in force."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conetd.garden.answers import UnknownHandle
from conetd.model import Lease, Requested
from conetd.reconcile.garden import Prepared, Target, fresh
from conetd.store import AttachmentRecord, ContainerRecord, Database, Life, NetworkRecord, containers, networks

LIFE = Life(pid=1, start_time=2, netns=3, boot_id="boot")
WEB = ContainerRecord("web", life=LIFE)
ATTACHED = AttachmentRecord("blue", "web", 0, "eth0", Requested(), Lease({}, frozenset({"ip:10.0.0.2"})), rev=7)


class Edited(Exception):
    """The document is made anew, of this revision."""


class Store:
    """A store in which `web` is up on blue, and the change that was prepared of its policy."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.write(lambda db: networks.put_network(db, NetworkRecord("blue", "bridge", {}, {}, 1500)))
        self.write(lambda db: containers.put_container(db, WEB))
        self.write(lambda db: containers.put_attachment(db, ATTACHED))
        self.prepared = Prepared(Target(WEB, cast(Any, None), ATTACHED, {}, "default_policy"), {"net_out": []}, None)

    def write(self, change: Callable[[sqlite3.Connection], None]) -> None:
        self.database.write(change)

    def fresh(self) -> Prepared:
        def edit(target: Target) -> dict[str, Any]:
            raise Edited(target.record.rev)

        driver = SimpleNamespace(capabilities=frozenset({"garden"}))
        live = SimpleNamespace(loaded=SimpleNamespace(driver=driver), record=SimpleNamespace(default_policy={}))
        core = SimpleNamespace(database=self.database, networks=SimpleNamespace(get=lambda name: live))
        return fresh(cast(Any, core), "web", self.prepared, edit)

    def close(self) -> None:
        self.database.close()


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with closing(Store(tmp_path / "conetd.sqlite")) as store:
        yield store


def test_what_was_prepared_is_put_in_force_while_nothing_else_was_wished_for(store: Store) -> None:
    assert store.fresh() is store.prepared


def test_it_is_not_once_the_container_was_taken_down_without_its_turn_as_a_start_does(store: Store) -> None:
    def down(db: sqlite3.Connection) -> None:
        containers.leave(db, "web", "blue")
        containers.end_life(db, "web")

    store.write(down)
    with pytest.raises(UnknownHandle):
        store.fresh()


def test_it_is_prepared_again_once_the_policy_has_become_another(store: Store) -> None:
    store.write(lambda db: containers.wish_attachment(db, "web", "blue", 8))
    with pytest.raises(Edited, match="8"):
        store.fresh()
