"""The file under the ledger: its one writer's lock, its transactions, its clock."""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rl.ledger import codec, schema
from rl.ledger.states import LedgerError


class Storage:
    """A ledger's file, open for writing by this process alone. A context manager; used by one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: IO[bytes]) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._clock = 0.0

    @classmethod
    def create(cls, path: Path | str, run_id: str, config: Mapping[str, object]) -> Self:
        """A new ledger; `path` is its file or the run's directory. Raises LedgerError if there is one already."""
        path = schema.locate(path)
        with _opening(path) as (connection, lock):
            if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                raise LedgerError(f"{path} exists already: resume that run, or name another directory")
            store = cls(path, connection, lock)
            with store._transaction(durable=True) as at:
                schema.create_tables(connection)
                connection.execute("INSERT INTO run VALUES (?, ?, ?)", (run_id, codec.to_json(config), at))
                connection.execute("INSERT INTO lineages VALUES (0, NULL, 0, ?)", (at,))
        return store

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Go on with a ledger that is there. Raises LedgerError if it is not, or if another process writes it."""
        path = schema.locate(path)
        if not path.is_file():
            raise LedgerError(f"no ledger at {path}: name the directory of a run")
        with _opening(path) as (connection, lock):
            schema.check(connection, path, ours=True)
            schema.learn_reasons(connection)
            store = cls(path, connection, lock)
            newest = "SELECT MAX(at) FROM (SELECT at FROM steps UNION ALL SELECT at FROM versions)"
            store._clock = connection.execute(newest).fetchone()[0] or 0.0
        return store

    def release(self) -> None:
        """Give the file and the right to write back. What was recorded is safe without this."""
        self._connection.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[float]:
        """All or nothing; yields the time to record. `durable`: synced to the disk, with all before it, on leaving.

        Raises LedgerError where SQLite fails: a full disk, a damaged file.
        """
        connection = self._connection
        try:
            if durable:
                connection.execute("PRAGMA synchronous = FULL")
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield self._now()
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if durable:
                    connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path} was not written ({error}): nothing changed, see to the disk") from error

    def _now(self) -> float:
        """Unix seconds that never go back within a run, whatever is done to the machine's clock."""
        self._clock = max(self._clock, time.time())
        return self._clock


@contextmanager
def _opening(path: Path) -> Iterator[tuple[sqlite3.Connection, IO[bytes]]]:
    """Lock and connection, both given back if what is done with them fails."""
    lock = schema.lock(path)
    try:
        connection = schema.connect_writer(path)
        try:
            yield connection, lock
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        lock.close()
        raise LedgerError(f"{path} cannot be opened ({error}): is it a ledger, and is the disk well?") from error
    except BaseException:
        lock.close()
        raise
