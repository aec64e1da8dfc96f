"""What anybody may ask, while the writer works or long after it is dead."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rl.ledger import codec, queries, schema
from rl.ledger.records import Counts, Fault, Record, Step
from rl.ledger.states import DropReason, State
from rollout_workers.trajectory import EpisodeKey

_SELECT = """
    SELECT group_id, idx, attempt, task_id, domain, state, reason, detail, e.dispatched_at, sampled_at, scored_at,
        ended_at, lineage, step, CASE WHEN :payloads THEN data END AS data,
        outcome, reward, correct, verdict_detail, parts
    FROM episodes AS e JOIN groups AS g ON g.id = e.group_id LEFT JOIN payloads USING (group_id, idx, attempt)
"""
_EPISODES = f"""{_SELECT}
    WHERE (group_id, idx, attempt) > (:group_id, :idx, :attempt) AND (:state IS NULL OR state = :state)
        AND (:step IS NULL OR step = :step) AND (:group IS NULL OR group_id = :group)
    ORDER BY group_id, idx, attempt LIMIT 64
"""
_NEWEST = f"""{_SELECT}
    WHERE (group_id, idx, attempt) < (:group_id, :idx, :attempt)
        AND (:state IS NULL OR state = :state) AND (:domain IS NULL OR domain = :domain)
        AND (:step IS NULL OR step = :step)
        AND (:reward_min IS NULL OR reward >= :reward_min) AND (:reward_max IS NULL OR reward <= :reward_max)
    ORDER BY group_id DESC, idx DESC, attempt DESC LIMIT :limit
"""
_EPISODE = f"{_SELECT} WHERE (group_id, idx, attempt) = (:group_id, :idx, :attempt)"
_END = EpisodeKey(2**62, 0, 0)
_PLAIN = ("task_id", "domain", "detail", "dispatched_at", "sampled_at", "scored_at", "ended_at", "lineage", "step")


@dataclass(frozen=True, slots=True)
class Where:
    """Which episodes; None lets all through. An episode without a reward is outside of every range."""

    state: State | None = None
    domain: str | None = None
    step: int | None = None
    reward_min: float | None = None
    reward_max: float | None = None


class Reader:
    """A read-only view. A context manager; used by one thread; each answer is of one moment.

    Raises LedgerError if there is no ledger at `path`, which may be its file or the run's directory.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = schema.locate(path)
        self._connection = schema.connect_reader(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def is_written(self) -> bool:
        """Whether a living process writes: the run goes on."""
        return schema.is_held(self.path)

    @property
    def run_id(self) -> str:
        """The run that this is the ledger of."""
        return str(self._connection.execute("SELECT id FROM run").fetchone()[0])

    @property
    def config(self) -> dict[str, object]:
        """The run's configuration, as it was created with."""
        return codec.from_json(self._connection.execute("SELECT config FROM run").fetchone()[0])

    @property
    def step(self) -> int:
        """The last committed step that counts; 0 before the first."""
        return queries.current_step(self._connection)

    @property
    def version(self) -> int:
        """The newest published version; -1 before the first."""
        return queries.newest_version(self._connection)

    @property
    def groups(self) -> int:
        """How many were dispatched so far."""
        return int(self._connection.execute("SELECT COUNT(*) FROM groups").fetchone()[0])

    def drawn(self) -> dict[str, int]:
        """Task id -> groups of it that were dispatched so far."""
        return dict(self._connection.execute("SELECT task_id, COUNT(*) FROM groups GROUP BY task_id").fetchall())

    @property
    def balanced(self) -> bool:
        """Whether the counts add up."""
        return self.counts().balanced

    def counts(self) -> Counts:
        """Episodes by where they stand."""
        with self._moment():
            return queries.counts(self._connection)

    def steps(self) -> list[Step]:
        """The steps that count, 1 to the last."""
        rows = self._connection.execute(
            "SELECT lineage, step, at, version, episodes, sampled_tokens, stats FROM history ORDER BY step"
        )
        return [
            Step(lineage, step, at, version, episodes, tokens, codec.from_json(stats))
            for lineage, step, at, version, episodes, tokens, stats in rows
        ]

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, path) of every checkpoint that no rollback abandoned, newest first."""
        return queries.checkpoints(self._connection)

    def faults(self) -> list[Fault]:
        """What failed, in order."""
        rows = self._connection.execute("SELECT at, actor, kind, detail FROM faults ORDER BY rowid")
        return [Fault(*row) for row in rows]

    def multi_version_fraction(self) -> float:
        """The share of trained episodes whose tokens come from several versions; 0 if none was trained."""
        mean = "SELECT COALESCE(AVG(multi_version), 0.0) FROM episodes WHERE state = 'trained'"
        return float(self._connection.execute(mean).fetchone()[0])

    def lags(self) -> dict[int, int]:
        """Lag -> trained episodes: versions published, when its step was committed, after its last token's."""
        rows = self._connection.execute(
            "SELECT version - last_version AS lag, COUNT(*) FROM episodes JOIN steps USING (lineage, step)"
            " WHERE state = 'trained' AND last_version IS NOT NULL GROUP BY lag ORDER BY lag"
        )
        return dict(rows.fetchall())

    def sampled_tokens(self, since: float) -> int:
        """Of all episodes that ended their acting at `since` or later, Unix seconds."""
        total = "SELECT COALESCE(SUM(sampled_tokens), 0) FROM episodes WHERE sampled_at >= ?"
        return int(self._connection.execute(total, (since,)).fetchone()[0])

    def verdicts(self) -> dict[str, int]:
        """Outcome -> episodes."""
        rows = self._connection.execute(
            "SELECT outcome, COUNT(*) FROM episodes WHERE outcome NOT NULL GROUP BY outcome"
        )
        return dict(rows.fetchall())

    def correct(self) -> dict[str, int]:
        """Domain -> episodes whose answer was right; a domain without any is left out."""
        rows = self._connection.execute(
            "SELECT domain, COUNT(*) FROM episodes JOIN groups ON id = group_id WHERE correct GROUP BY domain"
        )
        return dict(rows.fetchall())

    def episodes(
        self, *, state: State | None = None, step: int | None = None, group: int | None = None, payloads: bool = True
    ) -> Iterator[Record]:
        """Episodes in order: those in `state`, of `step`, of `group`. Without `payloads` their `episode` is None.

        It reads page by page and holds no transaction between them, so that a slow caller never makes the log grow.
        """
        wanted = {"state": state, "step": step, "group": group, "payloads": payloads}
        last = {"group_id": -1, "idx": -1, "attempt": -1}
        cursor = self._connection.cursor()
        cursor.row_factory = sqlite3.Row
        while page := cursor.execute(_EPISODES, wanted | last).fetchall():
            yield from map(_record, page)
            last = dict(zip(last, page[-1], strict=False))

    def newest(self, limit: int, *, before: EpisodeKey | None = None, where: Where | None = None) -> list[Record]:
        """The last `limit` episodes older than `before` that `where` lets through, newest first, without payloads."""
        wanted = asdict(where or Where()) | {"limit": limit, "payloads": False}
        return self._records(_NEWEST, wanted | _columns(before or _END))

    def episode(self, key: EpisodeKey) -> Record | None:
        """One episode, with its payload; None if it was never dispatched. Raises ValueError if it is damaged."""
        found = self._records(_EPISODE, {"payloads": True, **_columns(key)})
        return found[0] if found else None

    def domains(self) -> list[str]:
        """Of all groups."""
        return [row[0] for row in self._connection.execute("SELECT DISTINCT domain FROM groups ORDER BY domain")]

    def _records(self, select: str, values: Mapping[str, object]) -> list[Record]:
        cursor = self._connection.cursor()
        cursor.row_factory = sqlite3.Row
        return [_record(row) for row in cursor.execute(select, values).fetchall()]

    @contextmanager
    def _moment(self) -> Iterator[None]:
        """Several questions about the same moment."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")


def _columns(key: EpisodeKey) -> dict[str, int]:
    return {"group_id": key.group, "idx": key.index, "attempt": key.attempt}


def _record(row: sqlite3.Row) -> Record:
    """A row of `_SELECT`. Raises ValueError if its payload or verdict is damaged."""
    outcome, graded = row["outcome"], (row["reward"], row["correct"], row["verdict_detail"], row["parts"])
    return Record(
        EpisodeKey(row["group_id"], row["idx"], row["attempt"]),
        **{name: row[name] for name in _PLAIN},
        state=State(row["state"]),
        reason=DropReason(row["reason"]) if row["reason"] else None,
        episode=codec.unpack(row["data"]) if row["data"] else None,
        verdict=queries.verdict(outcome, *graded) if outcome else None,
    )
