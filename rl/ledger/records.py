"""What the ledger answers with."""

from collections.abc import Mapping
from dataclasses import dataclass

from rl.ledger.states import State
from rollout_workers.trajectory import DropReason, Episode, EpisodeKey
from verifiers.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Counts:
    """How many episodes stand where; zeros included."""

    dispatched: int
    """Seats of all groups, and retries."""
    trained: int
    """As the committed steps have it, not as the episodes' rows have it."""
    dropped: Mapping[DropReason, int]
    pending: Mapping[State, int]

    @property
    def balanced(self) -> bool:
        """dispatched = trained + dropped + pending. Both sides come from different tables."""
        return self.dispatched == self.trained + sum(self.dropped.values()) + sum(self.pending.values())


@dataclass(frozen=True, slots=True)
class Step:
    """A committed step that counts."""

    lineage: int
    step: int
    at: float
    version: int
    """The newest one published when it was committed."""
    episodes: int
    sampled_tokens: int
    stats: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something of ours that failed and was dealt with."""

    at: float
    actor: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Record:
    """One episode's row. What has not happened, or never will, is None."""

    key: EpisodeKey
    task_id: str
    domain: str
    state: State
    reason: DropReason | None
    detail: str
    dispatched_at: float
    sampled_at: float | None
    scored_at: float | None
    ended_at: float | None
    lineage: int | None
    step: int | None
    episode: Episode | None
    verdict: Verdict | None
