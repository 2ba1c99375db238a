"""How the one SQLite file is opened, migrated, read and written: wishes durably, records cheaply.

Writers that come while a transaction is being made durable share the next one.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Generic, TypeVar

from conetd.errors import ConetError

T = TypeVar("T")
_MIGRATION = re.compile(r"(\d{4})_\w+\.sql")


class Database:
    """One SQLite file in WAL mode. All methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open the file, making it if there is none, and bring its schema up to date.

        Raises ConetError when the file cannot be used or was written by a newer conetd.
        """
        self._path = path
        self._threads = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._writing = threading.Lock()
        self._waiting: deque[_Pending[object]] = deque()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL").fetchone()
            _migrate(self._writer)
        except (sqlite3.Error, OSError) as err:
            raise ConetError(f"cannot open the state file {path}: {err}") from err

    def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run `work` in a transaction of its own fate and return its result.

        When this returns, the change is committed; with `durable` it also survives a power cut. If `work` raises,
        its changes are undone and the error is raised here; others that share the commit are not affected.
        """
        pending: _Pending[T] = _Pending(work, durable)
        self._waiting.append(pending)  # type: ignore[arg-type]  # a queue of results of different types
        with self._writing:
            if not pending.done:
                self._commit_waiting()
        return pending.result()

    def reader(self) -> sqlite3.Connection:
        """This thread's connection for reading. It sees all committed changes."""
        connection: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.execute("PRAGMA query_only = 1")
            self._threads.connection = connection
            self._readers.append(connection)
        return connection

    def close(self) -> None:
        """Finish the running transaction and close every connection."""
        with self._writing:
            for connection in (*self._readers, self._writer):
                connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA foreign_keys = 1")
        return connection

    def _commit_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        writer = self._writer
        level = "FULL" if any(one.durable for one in batch) else "NORMAL"
        try:
            writer.execute(f"PRAGMA synchronous = {level}")
            with _transaction(writer):
                for one in batch:
                    one.run(writer)
        except sqlite3.Error as err:
            for one in batch:
                one.fail(ConetError(f"cannot write the state file {self._path}: {err}"))
        finally:
            for one in batch:
                one.done = True


class _Pending(Generic[T]):
    def __init__(self, work: Callable[[sqlite3.Connection], T], durable: bool) -> None:
        self.durable = durable
        self.done = False
        self._work = work
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        connection.execute("SAVEPOINT one")
        try:
            self._result = [self._work(connection)]
        except Exception as err:  # whatever the work raised is its caller's to handle
            self._error = err
            connection.execute("ROLLBACK TO one")
        connection.execute("RELEASE one")

    def fail(self, error: Exception) -> None:
        self._error = error

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result[0]


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _migrate(connection: sqlite3.Connection) -> None:
    folder = resources.files(__package__) / "migrations"
    steps = sorted((int(match[1]), entry) for entry in folder.iterdir() if (match := _MIGRATION.fullmatch(entry.name)))
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > steps[-1][0]:
        raise ConetError(
            f"the state file is of schema version {version}, this conetd knows up to {steps[-1][0]}: "
            "it was written by a newer conetd"
        )
    for number, entry in steps:
        if number > version:
            script = entry.read_text(encoding="utf-8")
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
