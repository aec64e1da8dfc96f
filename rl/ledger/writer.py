"""The one that writes.

Synchronous: a call takes under a millisecond, and some five where it is durable or SQLite folds its log into the file,
so the driver's event loop makes it itself.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from rl.ledger import codec, queries
from rl.ledger.lives import Lives, columns
from rl.ledger.states import LedgerError
from rollout_workers.trajectory import EpisodeKey

_TRAIN = (
    "UPDATE episodes SET state = 'trained', ended_at = ?, lineage = ?, step = ?"
    " WHERE group_id = ? AND idx = ? AND attempt = ? AND state = 'scored'"
    " AND (SELECT closed_at FROM groups WHERE id = group_id) IS NOT NULL"
)
_ADD_UP = (
    "UPDATE steps SET (episodes, sampled_tokens) ="
    " (SELECT COUNT(*), SUM(sampled_tokens) FROM episodes AS e WHERE e.lineage = ?1 AND e.step = ?2)"
    " WHERE lineage = ?1 AND step = ?2"
)


class Ledger(Lives):
    """Every episode's life, every step, version and checkpoint of one run.

    All methods raise LedgerError, with nothing changed, on what the laws forbid or the disk refuses.
    """

    @property
    def step(self) -> int:
        """The last committed step of the current lineage; 0 before the first."""
        return queries.current_step(self._connection)

    @property
    def version(self) -> int:
        """The newest published version; -1 before the first."""
        return queries.newest_version(self._connection)

    @property
    def lineage(self) -> int:
        """The learner's present line of descent: 0, and one more with every rollback."""
        return queries.current_lineage(self._connection)

    def commit(self, step: int, keys: Collection[EpisodeKey], stats: Mapping[str, object]) -> None:
        """Step `step` trained exactly `keys`. Durable on return.

        Raises LedgerError unless `step` is the next one and every key is scored, in a closed group, and there once.
        """
        with self._transaction(durable=True) as at:
            if step != self.step + 1:
                raise LedgerError(
                    f"step {step} cannot be committed after step {self.step}: roll back, or go on from it"
                )
            if not keys:
                raise LedgerError(f"step {step} trained no episode: nothing to commit")
            lineage = self.lineage
            row = (lineage, step, at, self.version, codec.to_json(stats))
            self._connection.execute("INSERT INTO steps VALUES (?, ?, ?, ?, 0, 0, ?)", row)
            for key in keys:
                trained = self._connection.execute(_TRAIN, (at, lineage, step, *columns(key))).rowcount
                if not trained:
                    raise LedgerError(f"episode {key} cannot be trained: it is {self.state(key)}, or its group is open")
            self._connection.execute(_ADD_UP, (lineage, step))

    def publish(self, step: int) -> int:
        """The version under which the weights of `step`, the last one, go out. Durable on return, never used twice."""
        with self._transaction(durable=True) as at:
            if step != self.step:
                raise LedgerError(f"the weights of step {step} cannot be published: step {self.step} is committed")
            version = self.version + 1
            self._connection.execute("INSERT INTO versions VALUES (?, ?, ?, ?)", (version, self.lineage, step, at))
        return version

    def checkpoint(self, step: int, path: Path | str) -> None:
        """A checkpoint of `step` lies, whole, at `path`. Durable on return."""
        with self._transaction(durable=True) as at:
            if not 0 <= step <= self.step:
                raise LedgerError(f"a checkpoint of step {step} cannot be recorded: the last step is {self.step}")
            row = (self.lineage, step, str(path), at)
            self._connection.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?)", row)

    def newest_checkpoint(self) -> tuple[int, Path] | None:
        """(step, path) of the newest checkpoint that no rollback abandoned. For older ones see Reader.checkpoints."""
        found = queries.checkpoints(self._connection)
        return found[0] if found else None

    def solve_rate(self, task_id: str) -> float | None:
        """Share of a task's graded episodes that solved it, in this run so far; none before the first."""
        return queries.solve_rate(self._connection, task_id)

    def rollback(self, step: int) -> int:
        """The learner goes on from `step` in a new lineage; what was trained after it is pending again. How many.

        Steps after it stay on record, abandoned. Durable on return.
        """
        with self._transaction(durable=True) as at:
            if not 0 <= step <= self.step:
                raise LedgerError(f"there is no step {step} to go back to: the last one is {self.step}")
            old = self.lineage
            self._connection.execute("INSERT INTO lineages VALUES (?, ?, ?, ?)", (old + 1, old, step, at))
            return self._connection.execute(
                "UPDATE episodes SET state = 'scored', lineage = NULL, step = NULL, ended_at = NULL"
                " WHERE state = 'trained' AND (lineage, step) NOT IN (SELECT lineage, step FROM history)"
            ).rowcount
