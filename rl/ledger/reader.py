"""Reading a ledger, while its writer works or long after it is dead."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rl.ledger import codec, queries, schema
from rl.ledger.records import Counts, Fault, Record, Step
from rl.ledger.states import LedgerError, State
from rollout_workers.trajectory import DropReason, EpisodeKey
from verifiers.verdict import Outcome

_SELECT = """
    SELECT group_id, idx, attempt, task_id, domain, state, reason, detail, e.dispatched_at, sampled_at, scored_at,
        ended_at, lineage, step, CASE WHEN :payloads THEN data END AS data,
        outcome, reward, correct, verdict_detail, parts
    FROM episodes AS e JOIN groups AS g ON g.id = e.group_id LEFT JOIN payloads USING (group_id, idx, attempt)
"""
_EPISODES = f"""{_SELECT}
    WHERE (group_id, idx, attempt) > (:group_id, :idx, :attempt) AND (:state IS NULL OR state = :state)
        AND group_id BETWEEN :first AND :last AND (:step IS NULL OR step = :step)
        AND (:since IS NULL OR last_version >= :since)
    ORDER BY group_id, idx, attempt LIMIT 64
"""
_NEWEST = f"""{_SELECT}
    WHERE (group_id, idx, attempt) < (:group_id, :idx, :attempt)
        AND (group_id, idx, attempt) >= (:floor_group, :floor_idx, :floor_attempt) {{of_step}}
        AND (:state IS NULL OR state = :state) AND (:domain IS NULL OR domain = :domain)
        AND (:reward_min IS NULL OR reward >= :reward_min) AND (:reward_max IS NULL OR reward <= :reward_max)
        AND (:outcome IS NULL OR outcome = :outcome) AND (:correct IS NULL OR correct = :correct)
        AND (:tokens_min IS NULL OR sampled_tokens >= :tokens_min)
        AND (:tokens_max IS NULL OR sampled_tokens <= :tokens_max)
    ORDER BY group_id DESC, idx DESC, attempt DESC LIMIT :limit
"""
_OF_STEP = "AND lineage IN (SELECT id FROM lineages) AND step = :step"
"""In words that let SQLite take the index."""
_FLOOR = """
    SELECT group_id, idx, attempt FROM episodes WHERE (group_id, idx, attempt) < (:group_id, :idx, :attempt)
    ORDER BY group_id DESC, idx DESC, attempt DESC LIMIT 1 OFFSET :scanned
"""
_SCANNED = 20_000
"""Episodes that one answer looks at, so that a filter which lets nothing through is answered in time as well."""
_EPISODE = f"{_SELECT} WHERE (group_id, idx, attempt) = (:group_id, :idx, :attempt)"
_END = EpisodeKey(2**62, 0, 0)
_PLAIN = ("task_id", "domain", "detail", "dispatched_at", "sampled_at", "scored_at", "ended_at", "lineage", "step")


@dataclass(frozen=True, slots=True)
class Where:
    """A filter of episodes; None lets all through. An episode without a reward is outside of every range."""

    state: State | None = None
    domain: str | None = None
    step: int | None = None
    reward_min: float | None = None
    reward_max: float | None = None
    outcome: Outcome | None = None
    correct: bool | None = None
    tokens_min: int | None = None
    """Sampled tokens of the episode, at least; `tokens_max`: at most."""
    tokens_max: int | None = None


class Reader:
    """A read-only view. A context manager; used by one thread; each answer is of one moment.

    Raises LedgerError if there is no ledger at `path`, which may be its file or the run's directory, later where a
    row is damaged, and on leaving where the file was.
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
        if schema.is_of_the_file(error):
            raise LedgerError(f"{self.path} cannot be read ({error}): restore it from a copy") from error

    @property
    def is_written(self) -> bool:
        """Whether a living process writes: the run goes on."""
        return schema.is_held(self.path)

    @property
    def run_id(self) -> str:
        """The name of the run."""
        return str(self._connection.execute("SELECT id FROM run").fetchone()[0])

    @property
    def config(self) -> dict[str, object]:
        """The run's configuration, as it was created with."""
        with self._whole():
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
        """Groups dispatched so far."""
        return int(self._connection.execute("SELECT COUNT(*) FROM groups").fetchone()[0])

    def drawn(self) -> dict[str, int]:
        """Task id -> groups of it that were dispatched so far."""
        return dict(self._connection.execute("SELECT task_id, COUNT(*) FROM groups GROUP BY task_id").fetchall())

    @property
    def balanced(self) -> bool:
        """Whether dispatched = trained + dropped + pending."""
        return self.counts().balanced

    def counts(self) -> Counts:
        """Episodes by state and, if dropped, by reason."""
        with self._moment():
            return queries.counts(self._connection)

    @property
    def lineage(self) -> int:
        """The learner's present lineage: a new one begins where it falls back to a checkpoint."""
        return queries.current_lineage(self._connection)

    @property
    def made_at(self) -> float:
        """When the run was made, Unix seconds."""
        return float(self._connection.execute("SELECT at FROM run").fetchone()[0])

    def steps(self, after: int = 0) -> list[Step]:
        """The steps that count, from the one after `after` to the last."""
        rows = self._connection.execute(
            "SELECT lineage, step, at, version, episodes, sampled_tokens, stats FROM history WHERE step > ?"
            " ORDER BY step",
            (after,),
        )
        with self._whole():
            return [
                Step(lineage, step, at, version, episodes, tokens, codec.from_json(stats))
                for lineage, step, at, version, episodes, tokens, stats in rows
            ]

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, path) of every checkpoint that no rollback abandoned, newest first.

        In the run's directory as it lies now, which may have been moved or copied since.
        """
        found = queries.checkpoints(self._connection)
        near = {path: self.path.parent / path.parent.name / path.name for _, path in found}
        return [(step, near[path] if near[path].exists() else path) for step, path in found]

    def trend(self, points: int) -> list[dict[str, object]]:
        """The reward by domain of the first step, of the last one, and of some between."""
        step = self.step
        every = max(1, -(-step // points))
        rows = self._connection.execute(
            "SELECT json_extract(stats, '$.reward') FROM history WHERE step % :every = :step % :every ORDER BY step",
            {"every": every, "step": step},
        )
        with self._whole():
            return [codec.from_json(reward) if reward else {} for (reward,) in rows]

    @property
    def fault_count(self) -> int:
        """Number of recorded faults."""
        return int(self._connection.execute("SELECT COUNT(*) FROM faults").fetchone()[0])

    def faults(self, after: int = 0) -> list[Fault]:
        """What failed, in order, without the first `after`."""
        select = "SELECT at, actor, kind, detail FROM faults WHERE rowid > ? ORDER BY rowid"
        rows = self._connection.execute(select, (after,))
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
        """Sampled tokens of all episodes that ended their acting at `since` or later, Unix seconds."""
        total = "SELECT COALESCE(SUM(sampled_tokens), 0) FROM episodes WHERE sampled_at >= ?"
        return int(self._connection.execute(total, (since,)).fetchone()[0])

    def verdicts(self) -> dict[str, int]:
        """Outcome of the verdict -> episodes."""
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
        self,
        *,
        state: State | None = None,
        step: int | None = None,
        group: int | None = None,
        since: int | None = None,
        payloads: bool = True,
    ) -> Iterator[Record]:
        """Episodes in order: those in `state`, of `step`, of `group`, whose last version is `since` or a newer one.

        Without `payloads` their `episode` is None.

        It reads page by page and holds no transaction between them, so that a slow caller never makes the log grow.
        """
        first, final = (0, _END.group) if group is None else (group, group)
        wanted = {
            "state": state,
            "step": step,
            "since": since,
            "first": first,
            "last": final,
            "payloads": payloads,
        }
        last = {"group_id": first - 1, "idx": -1, "attempt": -1}
        cursor = self._connection.cursor()
        cursor.row_factory = sqlite3.Row
        while page := cursor.execute(_EPISODES, wanted | last).fetchall():
            with self._whole():
                records = list(map(_record, page))
            yield from records
            last = dict(zip(last, page[-1], strict=False))

    def newest(
        self, limit: int, *, before: EpisodeKey | None = None, where: Where | None = None, payloads: bool = False
    ) -> tuple[list[Record], EpisodeKey | None]:
        """The last `limit` episodes older than `before` that `where` lets through, newest first.

        It looks at some thousands; the key, unless none is older, is where the next question goes on.
        """
        where = where or Where()
        place = _columns(before or _END)
        found = self._connection.execute(_FLOOR, place | {"scanned": _SCANNED}).fetchone()
        floor = EpisodeKey(*found) if found and where.step is None else None
        wanted = asdict(where) | {"limit": limit, "payloads": payloads} | place
        wanted |= dict(zip(("floor_group", "floor_idx", "floor_attempt"), found if floor else (0, 0, 0), strict=True))
        records = self._records(_NEWEST.format(of_step=_OF_STEP if where.step is not None else ""), wanted)
        return records, records[-1].key if len(records) == limit else floor

    def episode(self, key: EpisodeKey) -> Record | None:
        """One episode, with its payload; None if it was never dispatched."""
        found = self._records(_EPISODE, {"payloads": True, **_columns(key)})
        return found[0] if found else None

    def returns(self, group: int) -> dict[EpisodeKey, tuple[float, int]]:
        """Key -> (reward, sampled tokens) of the members that have a reward and were not dropped, in their order."""
        select = (
            "SELECT idx, attempt, reward, sampled_tokens FROM episodes "
            "WHERE group_id = ? AND reward IS NOT NULL AND state != ? ORDER BY idx, attempt"
        )
        rows = self._connection.execute(select, (group, State.DROPPED.value))
        return {EpisodeKey(group, index, attempt): (reward, tokens) for index, attempt, reward, tokens in rows}

    def domains(self) -> list[str]:
        """Names of all domains that were dispatched, sorted."""
        return [row[0] for row in self._connection.execute("SELECT DISTINCT domain FROM groups ORDER BY domain")]

    def _records(self, select: str, values: Mapping[str, object]) -> list[Record]:
        cursor = self._connection.cursor()
        cursor.row_factory = sqlite3.Row
        with self._whole():
            return [_record(row) for row in cursor.execute(select, values).fetchall()]

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What a row holds can be read, or else a sentence says that it cannot."""
        try:
            yield
        except ValueError as error:
            raise LedgerError(f"{self.path} is damaged ({error}): restore it from a copy") from error

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
    key = EpisodeKey(row["group_id"], row["idx"], row["attempt"])
    try:
        return Record(
            key,
            **{name: row[name] for name in _PLAIN},
            state=State(row["state"]),
            reason=DropReason(row["reason"]) if row["reason"] else None,
            episode=codec.unpack(row["data"]) if row["data"] else None,
            verdict=queries.verdict(outcome, *graded) if outcome else None,
        )
    except ValueError as error:
        raise ValueError(f"episode {key}: {error}") from error
