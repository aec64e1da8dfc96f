"""The tables, and how to reach them: one writer at a time under a lock, any number of readers that never block.

Commits are appended to SQLite's write-ahead log. Ordinary rows are not synced one by one: they survive a killed
process, and only a power cut may take the newest ones. Step commits, publications, checkpoints and rollbacks are
synced before they return (`PRAGMA synchronous=FULL`), and with them every row before them, as the log is one file.
"""

import fcntl
import os
import re
import sqlite3
import time
from pathlib import Path
from typing import IO

from rl.ledger.states import LedgerError, State
from rollout_workers.trajectory import DropReason

FILE = "ledger.sqlite"
_OF_THE_FILE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
}
VERSION = 1
"""`user_version` of the file; another one is refused."""


def _words(enum: type[State] | type[DropReason]) -> str:
    return ", ".join(f"'{word}'" for word in enum)


_REASON = f"reason TEXT CHECK (reason IN ({_words(DropReason)}))"

# Times are Unix seconds. A payload stands in a table of its own, as an update rewrites the whole row.
_TABLES = f"""
CREATE TABLE run (id TEXT NOT NULL, config TEXT NOT NULL, at REAL NOT NULL) STRICT;

CREATE TABLE groups (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL,
    domain TEXT NOT NULL,
    size INTEGER NOT NULL CHECK (size > 0),
    dispatched_at REAL NOT NULL,
    deadline REAL NOT NULL,
    closed_at REAL
) STRICT;
CREATE INDEX open_groups ON groups (id) WHERE closed_at IS NULL;
CREATE INDEX groups_by_task ON groups (task_id);

CREATE TABLE lineages (
    id INTEGER PRIMARY KEY,
    parent INTEGER REFERENCES lineages (id),
    from_step INTEGER NOT NULL,
    at REAL NOT NULL
) STRICT;

CREATE TABLE steps (
    lineage INTEGER NOT NULL REFERENCES lineages (id),
    step INTEGER NOT NULL CHECK (step > 0),
    at REAL NOT NULL,
    version INTEGER NOT NULL,  -- the newest one published when the step was committed; -1 if none
    episodes INTEGER NOT NULL,
    sampled_tokens INTEGER NOT NULL,
    stats TEXT NOT NULL,
    PRIMARY KEY (lineage, step)
) STRICT;

CREATE TABLE versions (
    version INTEGER PRIMARY KEY,
    lineage INTEGER NOT NULL REFERENCES lineages (id),
    step INTEGER NOT NULL,
    at REAL NOT NULL
) STRICT;

CREATE TABLE checkpoints (
    lineage INTEGER NOT NULL REFERENCES lineages (id),
    step INTEGER NOT NULL,
    path TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (lineage, step)
) STRICT;

CREATE TABLE episodes (
    group_id INTEGER NOT NULL REFERENCES groups (id),
    idx INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ({_words(State)})),
    {_REASON},
    detail TEXT NOT NULL DEFAULT '',
    dispatched_at REAL NOT NULL,
    sampled_at REAL,
    scored_at REAL,
    ended_at REAL,
    first_version INTEGER,  -- of the first and the last sampled token
    last_version INTEGER,
    multi_version INTEGER,
    sampled_tokens INTEGER,
    tokens INTEGER,
    turns INTEGER,
    stop TEXT,
    outcome TEXT,
    reward REAL,
    correct INTEGER,
    parts TEXT,
    verdict_detail TEXT,
    lineage INTEGER,
    step INTEGER,
    PRIMARY KEY (group_id, idx, attempt),
    FOREIGN KEY (lineage, step) REFERENCES steps (lineage, step),
    CHECK ((state = 'dropped') = (reason IS NOT NULL)),
    CHECK ((state = 'trained') = (step IS NOT NULL AND lineage IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX episodes_by_state ON episodes (state, reason);
CREATE INDEX episodes_by_step ON episodes (lineage, step) WHERE step IS NOT NULL;

CREATE TABLE payloads (
    group_id INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (group_id, idx, attempt),
    FOREIGN KEY (group_id, idx, attempt) REFERENCES episodes (group_id, idx, attempt)
) STRICT;

CREATE TABLE faults (at REAL NOT NULL, actor TEXT NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL) STRICT;

-- Every lineage with itself and those it grew out of, each with the last step of it that still counts there.
CREATE VIEW ancestries AS
WITH RECURSIVE line (seen_from, lineage, parent, from_step, upto) AS (
    SELECT id, id, parent, from_step, 9223372036854775807 FROM lineages
    UNION ALL
    SELECT line.seen_from, older.id, older.parent, older.from_step, MIN(line.upto, line.from_step)
    FROM line JOIN lineages AS older ON older.id = line.parent AND older.id < line.lineage
)
SELECT seen_from, lineage, upto FROM line;

-- The steps that count in the eyes of each lineage.
CREATE VIEW committed AS
SELECT seen_from, steps.* FROM steps JOIN ancestries USING (lineage) WHERE steps.step <= ancestries.upto;

-- The same for the newest lineage alone, which is the current one: asked for often.
CREATE VIEW ancestry AS
WITH RECURSIVE line (lineage, parent, from_step, upto) AS (
    SELECT id, parent, from_step, 9223372036854775807 FROM lineages WHERE id = (SELECT MAX(id) FROM lineages)
    UNION ALL
    SELECT older.id, older.parent, older.from_step, MIN(line.upto, line.from_step)
    FROM line JOIN lineages AS older ON older.id = line.parent AND older.id < line.lineage
)
SELECT lineage, upto FROM line;

-- The steps that no rollback abandoned.
CREATE VIEW history AS SELECT steps.* FROM steps JOIN ancestry USING (lineage) WHERE steps.step <= ancestry.upto;
"""  # noqa: S608 - the words come from our own enumerations


def locate(path: Path | str) -> Path:
    """The ledger's file; `path` may be its run's directory."""
    path = Path(path).absolute()
    return path / FILE if path.is_dir() else path


def lock(path: Path) -> IO[bytes]:
    """The right to write, until the result is closed or the process is gone. Raises LedgerError if it is taken."""
    held = open(path.with_name(path.name + ".lock"), "a+b")  # noqa: SIM115 - it outlives this function
    try:
        _take(held)
    except BlockingIOError:
        held.seek(0)
        owner = held.read(32).decode("ascii", "replace").strip() or "unknown"
        held.close()
        raise LedgerError(
            f"{path} already has a writer (process {owner}): stop that run, or wait for its end"
        ) from None
    held.truncate(0)
    held.write(f"{os.getpid()}\n".encode())
    held.flush()
    return held


def _take(held: IO[bytes]) -> None:
    """Raises BlockingIOError. `is_held` may have the lock for some microseconds: that must not keep a run away."""
    for pause in (0.01, 0.02, 0.04):
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(pause)
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(path: Path) -> bool:
    """Whether a living process has the right to write."""
    try:
        with open(path.with_name(path.name + ".lock"), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def connect_writer(path: Path) -> sqlite3.Connection:
    """A connection that may write; the caller holds the lock. Transactions are begun by hand. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write and blocks nobody. Raises LedgerError if there is no ledger that we know."""
    if not path.is_file():
        raise LedgerError(f"no ledger at {path}: name the directory of a run")
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=30.0)
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger {path} cannot be opened: {error}") from error
    try:
        check(connection, path, ours=False)
    except BaseException:
        connection.close()
        raise
    return connection


def is_of_the_file(error: BaseException | None) -> bool:
    """Whether SQLite complains of the file or its disk; else the fault is ours."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _OF_THE_FILE


def create_tables(connection: sqlite3.Connection) -> None:
    """All tables, inside the caller's transaction: a process killed half-way leaves an empty file."""
    for statement in filter(str.strip, _TABLES.split(";\n")):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def learn_reasons(connection: sqlite3.Connection) -> None:
    """Have a ledger of an earlier program take the drop reasons of today; the caller holds the lock.

    SQLite changes a CHECK by its text alone, see "Making Other Kinds Of Table Schema Changes" in sqlite.org's manual of
    ALTER TABLE.
    """
    (made,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'episodes'").fetchone()
    renewed = re.sub(r"reason TEXT CHECK \(reason IN \([^)]*\)\)", _REASON, made)
    if renewed != made:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'episodes'", (renewed,))
        connection.execute("PRAGMA writable_schema = RESET")


def check(connection: sqlite3.Connection, path: Path, *, ours: bool) -> None:
    """Raises LedgerError unless the file is a ledger of this schema; `ours` says that the lock is the caller's."""
    try:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise LedgerError(f"{path} cannot be read ({error}): restore it from a copy") from error
    if found == 0 and not ours and is_held(path):  # a run that begins has no tables yet: nothing to remove
        raise LedgerError(f"{path} is being made: look again in a moment")
    if found == 0:
        raise LedgerError(f"{path} is no ledger, or was never finished: remove it and start the run anew")
    if found != VERSION:
        raise LedgerError(f"{path} has schema {found}, this program knows {VERSION}: use the program that wrote it")
