"""What the service says, as types. The JSON is these, and the pages are made of them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from rl.ledger import State, Where
from rollout_workers.trajectory import EpisodeKey

Finite = Annotated[float, Field(allow_inf_nan=False)]
KEY = r"^[0-9]{1,15}/[0-9]{1,9}/[0-9]{1,9}$"


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class RunSummary(_Answer):
    """A run in one line."""

    name: str
    state: Literal["running", "finished", "stopped", "unreadable"]
    step: int = 0
    steps: int | None = None
    """How many it was to take when it was made; None if its configuration does not say."""
    reward: dict[str, float] = {}
    """Mean of the last step, by domain."""
    written_at: float | None = None
    """Unix seconds of the last change."""
    problem: str = ""
    """Why it is unreadable, in one sentence."""


class Fault(_Answer):
    """Something that failed and was dealt with."""

    at: float
    actor: str
    kind: str
    detail: str


class RunDetail(RunSummary):
    """A run as its page shows it."""

    version: int
    """The newest published weights; -1 before the first."""
    dispatched: int
    trained: int
    pending: dict[str, int]
    """By state: `dispatched` are being sampled, `sampled` graded, `scored` wait for the learner."""
    dropped: dict[str, int]
    """By reason; zeros included."""
    balanced: bool
    """dispatched = trained + pending + dropped."""
    multi_version_fraction: float
    waiting: str
    """What it is waiting for, as far as the ledger tells; empty unless it is running."""
    faults: tuple[Fault, ...]
    """The last ones, newest first."""


class Runs(_Answer):
    """All runs, newest first."""

    runs: tuple[RunSummary, ...]


class Metrics(_Answer):
    """Series by name, each as long as `step`; what a step has no number for is null."""

    step: tuple[int, ...]
    at: tuple[float, ...]
    """When it was committed, Unix seconds."""
    series: dict[str, tuple[float | None, ...]]


class EpisodeRow(_Answer):
    """An episode in one line."""

    key: str
    """group/index/attempt"""
    task_id: str
    domain: str
    state: State
    reason: str | None
    """Why it was dropped."""
    detail: str
    step: int | None
    outcome: str | None
    reward: float | None
    correct: bool | None
    dispatched_at: float
    sampled_at: float | None
    scored_at: float | None
    ended_at: float | None


class EpisodePage(_Answer):
    """Episodes, newest first."""

    episodes: tuple[EpisodeRow, ...]
    next: str | None
    """What to give as `before` for older ones."""


class Message(_Answer):
    """One turn."""

    role: str
    content: str


class Sampled(_Answer):
    """What the policy did."""

    messages: tuple[Message, ...]
    stop: str
    sampled_tokens: int
    tokens: int
    versions: tuple[int, ...]
    seconds: dict[str, float]


class Verdict(_Answer):
    """What the verifier said."""

    outcome: str
    reward: float | None
    correct: bool | None
    detail: str
    parts: dict[str, float | None]


class EpisodeWhole(EpisodeRow):
    """An episode turn by turn."""

    sampled: Sampled | None
    """None while it is being sampled, or if it never was."""
    verdict: Verdict | None
    """None while it is being graded, or if it never was."""


class EpisodeQuery(BaseModel):
    """Which episodes. What is left empty, as a form sends it, lets all through."""

    model_config = ConfigDict(extra="forbid")

    domain: Annotated[str, StringConstraints(max_length=200)] | None = None
    state: State | None = None
    step: int | None = Field(None, ge=1, le=2**31)
    reward_min: Finite | None = None
    reward_max: Finite | None = None
    before: str | None = Field(None, pattern=KEY, description="Only those older than group/index/attempt.")
    limit: int = Field(50, ge=1, le=500)

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value != ""} if isinstance(given, dict) else given

    @property
    def where(self) -> Where:
        """For the ledger."""
        return Where(self.state, self.domain, self.step, self.reward_min, self.reward_max)

    @property
    def older_than(self) -> EpisodeKey | None:
        """For the ledger."""
        return EpisodeKey(*map(int, self.before.split("/"))) if self.before else None
