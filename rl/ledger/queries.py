"""Questions that the writer and the readers both ask. Pure SQL on a connection; every parameter is bound."""

import math
import sqlite3
from pathlib import Path

from rl.ledger import codec
from rl.ledger.records import Counts
from rl.ledger.states import PENDING, LedgerError, State
from rollout_workers.trajectory import DropReason, Group, Scored
from verifiers.verdict import Outcome, Verdict


def current_step(connection: sqlite3.Connection) -> int:
    """The last committed step that no rollback abandoned; 0 before the first."""
    return int(connection.execute("SELECT COALESCE(MAX(step), 0) FROM history").fetchone()[0])


def newest_version(connection: sqlite3.Connection) -> int:
    """The newest published version; -1 before the first."""
    return int(connection.execute("SELECT COALESCE(MAX(version), -1) FROM versions").fetchone()[0])


def current_lineage(connection: sqlite3.Connection) -> int:
    """The learner's present line of descent; 0 until a rollback."""
    return int(connection.execute("SELECT MAX(id) FROM lineages").fetchone()[0])


def counts(connection: sqlite3.Connection) -> Counts:
    """Episodes by where they stand; inside a transaction, of one moment."""
    seats = "SELECT (SELECT COALESCE(SUM(size), 0) FROM groups) + COUNT(*) FROM episodes WHERE attempt > 0"
    dispatched = connection.execute(seats).fetchone()[0]
    trained = connection.execute("SELECT COALESCE(SUM(episodes), 0) FROM history").fetchone()[0]
    rows = connection.execute("SELECT state, reason, COUNT(*) FROM episodes GROUP BY state, reason")
    found = {(state, reason): count for state, reason, count in rows}
    dropped = {reason: found.get((State.DROPPED, reason), 0) for reason in DropReason}
    return Counts(dispatched, trained, dropped, {state: found.get((state, None), 0) for state in PENDING})


def checkpoints(connection: sqlite3.Connection) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint that no rollback abandoned, newest first."""
    rows = connection.execute(
        "SELECT step, path FROM checkpoints JOIN ancestry USING (lineage) WHERE step <= upto"
        " ORDER BY step DESC, lineage DESC"
    )
    return [(step, Path(path)) for step, path in rows]


def ready(connection: sqlite3.Connection) -> list[int]:
    """Ids of closed groups with members that wait for the learner, oldest first."""
    rows = connection.execute(
        "SELECT DISTINCT id FROM groups JOIN episodes ON group_id = id"
        " WHERE state = 'scored' AND closed_at IS NOT NULL ORDER BY id"
    )
    return [row[0] for row in rows]


def group(connection: sqlite3.Connection, group_id: int) -> Group:
    """A group with those members that were scored and wait. Raises LedgerError if there is no such group."""
    task = connection.execute("SELECT task_id, domain FROM groups WHERE id = ?", (group_id,)).fetchone()
    if task is None:
        raise LedgerError(f"there is no group {group_id} in this ledger: it was dispatched in another run")
    rows = connection.execute(
        "SELECT data, outcome, reward, correct, verdict_detail, parts FROM episodes"
        " JOIN payloads USING (group_id, idx, attempt) WHERE group_id = ? AND state = 'scored' ORDER BY idx",
        (group_id,),
    )
    members = tuple(Scored(codec.unpack(data), verdict(*columns)) for data, *columns in rows)
    task_id, domain = task
    return Group(group_id, task_id, domain, members)


def solve_rate(connection: sqlite3.Connection, task_id: str) -> float | None:
    """Share of a task's graded episodes that solved it; none before the first."""
    rate = connection.execute(
        "SELECT AVG(correct) FROM groups JOIN episodes ON group_id = id WHERE task_id = ?", (task_id,)
    ).fetchone()[0]
    return None if rate is None else float(rate)


def verdict(outcome: str, reward: float | None, correct: int | None, detail: str, parts: str) -> Verdict:
    """A verdict from its columns. Raises ValueError if they contradict each other."""
    values = {name: math.nan if value is None else float(str(value)) for name, value in codec.from_json(parts).items()}
    return Verdict(Outcome(outcome), reward, None if correct is None else bool(correct), detail, values)
