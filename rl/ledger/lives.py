"""An episode's life as it is written, in the order in which it happens."""

from collections.abc import Iterable

from rl.ledger import codec, queries
from rl.ledger.states import PENDING, RETRIABLE, UNFINISHED, LedgerError, State
from rl.ledger.storage import Storage
from rollout_workers.trajectory import Completion, DropReason, Episode, EpisodeKey, Group, Trajectory
from verifiers.verdict import Verdict

_DETAIL_LIMIT = 2000
_DROP_ONE = (
    "UPDATE episodes SET state = 'dropped', reason = ?, detail = ?, ended_at = ?"
    " WHERE group_id = ? AND idx = ? AND attempt = ? AND state IN ('dispatched', 'sampled', 'scored')"
)
_DROP_UNFINISHED_OF_GROUP = (
    "UPDATE episodes SET state = 'dropped', reason = 'deadline', ended_at = ?"
    " WHERE group_id = ? AND state IN ('dispatched', 'sampled')"
)
_DROP_IN_STATE = "UPDATE episodes SET state = 'dropped', reason = ?, ended_at = ? WHERE state = ?"


class Lives(Storage):
    """From dispatch to the closing of the group. The learner's part stands in `Ledger`."""

    def state(self, key: EpisodeKey) -> State:
        """Where an episode stands. Raises LedgerError for a key that was never dispatched."""
        select = "SELECT state FROM episodes WHERE group_id = ? AND idx = ? AND attempt = ?"
        found = self._connection.execute(select, columns(key)).fetchone()
        if found is None:
            raise LedgerError(f"there is no episode {key} in this ledger: it was dispatched in another run")
        return State(found[0])

    def dropped(self) -> dict[DropReason, int]:
        """Episodes by why they were dropped, zeros left out."""
        rows = self._connection.execute("SELECT reason, COUNT(*) FROM episodes WHERE state = 'dropped' GROUP BY reason")
        return {DropReason(reason): count for reason, count in rows}

    def dispatch(self, task_id: str, domain: str, size: int, deadline: float) -> int:
        """A new group of `size` episodes, attempt 0 each; its id. `deadline` in Unix seconds."""
        if size < 1:
            raise LedgerError(f"a group of {size} episodes of task {task_id} was dispatched: it needs at least one")
        with self._transaction() as at:
            cursor = self._connection.execute(
                "INSERT INTO groups (task_id, domain, size, dispatched_at, deadline) VALUES (?, ?, ?, ?, ?)",
                (codec.clean(task_id), codec.clean(domain), size, at, deadline),
            )
            group = int(cursor.lastrowid or 0)
            for index in range(size):
                self._insert(EpisodeKey(group, index, 0), at)
        return group

    def retry(self, key: EpisodeKey, reason: DropReason, detail: str = "") -> EpisodeKey | None:
        """After a failure of ours: this attempt is dropped, the next one dispatched.

        None, and nothing changed, if the attempt is over already: its group has closed, or the news came twice.
        Raises LedgerError unless `reason` is one of RETRIABLE.
        """
        if reason not in RETRIABLE:
            raise LedgerError(f"episode {key} cannot be tried again after '{reason}': drop it")
        with self._transaction() as at:
            if self.state(key) not in UNFINISHED:
                return None
            self._end(key, reason, detail, at)
            successor = EpisodeKey(key.group, key.index, key.attempt + 1)
            self._insert(successor, at)
        return successor

    def sampled(self, episode: Episode) -> bool:
        """The episode's acting part has ended. False, and nothing changed, if it was delivered before or is over."""
        payload = codec.pack(episode)
        with self._transaction() as at:
            if self.state(episode.key) != State.DISPATCHED:
                return False
            self._connection.execute(
                "UPDATE episodes SET state = 'sampled', sampled_at = ?, first_version = ?, last_version = ?,"
                " multi_version = ?, sampled_tokens = ?, tokens = ?, turns = ?, stop = ?"
                " WHERE group_id = ? AND idx = ? AND attempt = ?",
                (at, *summary(episode), *columns(episode.key)),
            )
            self._connection.execute("INSERT INTO payloads VALUES (?, ?, ?, ?)", (*columns(episode.key), payload))
        return True

    def scored(self, key: EpisodeKey, verdict: Verdict) -> bool:
        """The verdict is there; one without a reward drops the episode, its outcome being the reason.

        False, and nothing changed, if it was delivered before or the episode is over.
        """
        parts = codec.to_json({_short(name): float(value) for name, value in verdict.parts.items()})
        graded = (verdict.outcome, verdict.reward, verdict.correct, _short(verdict.detail), parts)
        with self._transaction() as at:
            state = self.state(key)
            if state == State.DISPATCHED:
                raise LedgerError(f"episode {key} got a verdict before it was sampled: record the episode first")
            if state != State.SAMPLED:
                return False
            self._connection.execute(
                "UPDATE episodes SET state = 'scored', scored_at = ?, outcome = ?, reward = ?, correct = ?,"
                " verdict_detail = ?, parts = ? WHERE group_id = ? AND idx = ? AND attempt = ?",
                (at, *graded, *columns(key)),
            )
            if verdict.reward is None:
                self._end(key, DropReason(verdict.outcome), verdict.detail, at)
        return True

    def drop(self, keys: Iterable[EpisodeKey], reason: DropReason, detail: str = "") -> int:
        """Those of `keys` that are pending will not be trained; how many that were."""
        with self._transaction() as at:
            return sum([self._end(key, reason, detail, at) for key in keys if self.state(key)])

    def close(self, group_id: int) -> Group:
        """The group takes no more results: who is unfinished becomes dropped(deadline). Its scored members.

        A second call changes nothing.
        """
        with self._transaction() as at:
            group = queries.group(self._connection, group_id)
            self._connection.execute(_DROP_UNFINISHED_OF_GROUP, (at, group_id))
            self._connection.execute(
                "UPDATE groups SET closed_at = ? WHERE id = ? AND closed_at IS NULL", (at, group_id)
            )
        return group

    def ready(self) -> list[Group]:
        """Closed groups whose scored members wait for the learner, oldest first: where a resumed run goes on."""
        return [queries.group(self._connection, group_id) for group_id in queries.ready(self._connection)]

    def interrupt(self) -> int:
        """At a resume: what was running is dropped(interrupted), and every group closes. How many were running."""
        return self._close_all(UNFINISHED, DropReason.INTERRUPTED)

    def finish(self) -> int:
        """At the run's end: what is pending is dropped(unused), and every group closes. How many were pending."""
        return self._close_all(PENDING, DropReason.UNUSED)

    def fault(self, actor: str, kind: str, detail: str = "") -> None:
        """Something of ours failed and was dealt with."""
        with self._transaction() as at:
            words = map(_short, (actor, kind, detail))
            self._connection.execute("INSERT INTO faults VALUES (?, ?, ?, ?)", (at, *words))

    def _insert(self, key: EpisodeKey, at: float) -> None:
        self._connection.execute(
            "INSERT INTO episodes (group_id, idx, attempt, state, dispatched_at) VALUES (?, ?, ?, 'dispatched', ?)",
            (*columns(key), at),
        )

    def _end(self, key: EpisodeKey, reason: DropReason, detail: str, at: float) -> int:
        return self._connection.execute(_DROP_ONE, (reason, _short(detail), at, *columns(key))).rowcount

    def _close_all(self, states: tuple[State, ...], reason: DropReason) -> int:
        with self._transaction() as at:
            self._connection.execute("UPDATE groups SET closed_at = ? WHERE closed_at IS NULL", (at,))
            return sum([self._connection.execute(_DROP_IN_STATE, (reason, at, state)).rowcount for state in states])


def columns(key: EpisodeKey) -> tuple[int, int, int]:
    """Its columns, in their order."""
    return key.group, key.index, key.attempt


def _short(text: str) -> str:
    return codec.clean(text[:_DETAIL_LIMIT])


def summary(episode: Episode) -> tuple[object, ...]:
    """The columns that are derived from an episode, in the order of the table."""
    versions = [completion.version for completion in episode.completions if completion.tokens]
    return (
        versions[0] if versions else None,
        versions[-1] if versions else None,
        len(set(versions)) > 1,
        episode.sampled_tokens,
        sum(map(len, episode.trajectories)),
        sum(map(_turns, episode.trajectories)),
        episode.stop,
    )


def _turns(trajectory: Trajectory) -> int:
    """Runs of completions: two in a row are one turn with a swap of weights in it."""
    written = [isinstance(segment, Completion) for segment in trajectory.segments]
    return sum(now and not before for before, now in zip([False, *written], written, strict=False))
