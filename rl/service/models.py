"""What the service says, as types. The JSON is these, and the pages are made of them."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    Strict,
    StringConstraints,
    model_validator,
)

from rl.ledger import State, Where
from rollout_workers.trajectory import EpisodeKey
from verifiers.verdict import Outcome

RunState = Literal["running", "finished", "stopped", "failed", "crashed", "unreadable"]
"""`stopped` was asked to end, `failed` ended by an error of its own, `crashed` was killed before it could tell."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Number = Annotated[int, Strict()] | Annotated[float, Strict(), Field(allow_inf_nan=False)]
KEY = r"^[0-9]{1,15}/[0-9]{1,9}/[0-9]{1,9}$"


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Refusal(_Answer):
    """Why a request was refused, in a sentence."""

    detail: str


class RunSummary(_Answer):
    """A run in one line."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "nano",
                    "state": "running",
                    "step": 12,
                    "steps": 78,
                    "reward": {"math": 0.25, "code": -0.5},
                    "trend": [-0.6, -0.1],
                    "age": 340.0,
                    "waiting": "a batch of scored groups (3 s)",
                    "written_at": 1767225600.0,
                    "problem": "",
                }
            ]
        }
    )

    name: str
    state: RunState
    step: int = 0
    steps: int | None = None
    """How many it was to take when it was made; None if its configuration does not say."""
    reward: dict[str, float] = {}
    """Mean of the last step, by domain."""
    trend: tuple[float, ...] = ()
    """Mean over all domains, from the first step to the last, at most 60 points."""
    age: float | None = None
    """Seconds since it was made."""
    waiting: str = ""
    """What it waits for, in words; empty unless it is running."""
    written_at: float | None = None
    """Unix seconds of the last change."""
    problem: str = ""
    """Why it failed or is unreadable, in one sentence."""


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
    """Dropped episodes by reason; zeros included."""
    balanced: bool
    """dispatched = trained + pending + dropped."""
    multi_version_fraction: float
    checkpoints: tuple[int, ...]
    """Steps of those that can be gone back to, newest first."""
    faults: tuple[Fault, ...]
    """The last ones, newest first."""


class Runs(_Answer):
    """All runs, newest first."""

    runs: tuple[RunSummary, ...]


class Wait(_Answer):
    """Something that is waited for, with its deadline."""

    name: str
    since: float
    until: float
    """Unix seconds."""


class Actor(_Answer):
    """An actor of a run, as its driver saw it last."""

    name: str
    state: str
    """`up`, `starting`, or `gone` where no driver lives."""
    seen: float | None
    """Its last heartbeat, Unix seconds."""
    pid: int | None
    version: int | None
    acting: int
    slots: int
    grading: int
    sandboxes: int
    seconds: dict[str, float]
    """Where its time went, by cause."""


class Fleet(_Answer):
    """Who works for a run, and what is waited for."""

    state: RunState
    at: float | None
    """When the driver told this, Unix seconds; None if it never did."""
    host: str
    pid: int | None
    phase: str
    version: int
    """The newest published weights."""
    waits: tuple[Wait, ...]
    actors: tuple[Actor, ...]


class Checkpoint(_Answer):
    """A saved state of the learner."""

    step: int
    path: str
    there: bool
    """Whether its directory is still there; older ones are pruned."""


class Checkpoints(_Answer):
    """Newest first."""

    checkpoints: tuple[Checkpoint, ...]


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


class Group(_Answer):
    """The members of one task under one dispatch."""

    group: int
    members: tuple["EpisodeWhole", ...]


class EpisodePage(_Answer):
    """Episodes, newest first."""

    episodes: tuple[EpisodeRow, ...]
    next: str | None
    """What to give as `before` for older ones; a page may hold fewer than asked for, or none, and still have one."""


class Message(_Answer):
    """One message of the conversation."""

    role: str
    content: str


class Sampled(_Answer):
    """What the policy did: the conversation, why it stopped, token counts."""

    messages: tuple[Message, ...]
    stop: str
    sampled_tokens: int
    tokens: int
    versions: tuple[int, ...]
    seconds: dict[str, float]


class Verdict(_Answer):
    """The verdict on an episode."""

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


class Segment(_Answer):
    """A stretch of one author's tokens."""

    sampled: bool
    version: int | None
    """Of the weights that sampled it."""
    tokens: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    """Of sampled tokens, in nats."""
    texts: tuple[str, ...]
    """What each token decodes to; empty where the run's tokenizer is not at hand."""


class Tokens(_Answer):
    """An episode as the learner sees it."""

    key: str
    advantage: float | None
    """By the run's estimator, among the scored members of its group that were not dropped; None if it is not one."""
    trajectories: tuple[tuple[Segment, ...], ...]


class Compared(_Answer):
    """One task on both sides: the share of samples that solved it."""

    task_id: str
    domain: str
    a: float | None
    b: float | None


class Side(_Answer):
    """What was compared: `RUN:before`, `RUN:after` or `RUN`."""

    name: str
    pass_at_1: dict[str, float]
    """By domain, over the tasks that both sides have."""


class Comparison(_Answer):
    """Two evaluations on the tasks that both have."""

    a: Side
    b: Side
    better: int
    """Tasks that b solved more often."""
    worse: int
    same: int
    tasks: tuple[Compared, ...]
    """The largest differences first, at most 200."""


class Answer(_Answer):
    """One try at a task of an evaluation."""

    sample: int
    outcome: str
    """A verdict's, or the reason why there is no episode."""
    reward: float | None
    correct: bool | None
    detail: str
    messages: tuple[Message, ...]


class Answers(_Answer):
    """What two evaluations answered to one task."""

    task_id: str
    domain: str
    a: tuple[Answer, ...]
    b: tuple[Answer, ...]


class Configuration(_Answer):
    """A configuration that may be started."""

    name: str
    overrides: tuple[str, ...]
    """Keys that a start may set, each to a number."""


class Configurations(_Answer):
    """By name."""

    configurations: tuple[Configuration, ...]


class Start(BaseModel):
    """What to start: one of the server's own configurations."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"config": "nano.toml", "run": "try-1", "overrides": {"run.steps": 20}}]},
    )

    config: Annotated[str, StringConstraints(max_length=100)]
    run: str | None = Field(None, pattern=RUN_NAME, description="The run's name; none takes the time.")
    overrides: dict[Annotated[str, StringConstraints(max_length=100)], Number] = Field({}, max_length=20)


class Launch(_Answer):
    """A start that this service was asked for."""

    run: str
    config: str
    state: Literal["starting", "begun", "failed"]
    """`begun`: it has a ledger, and stands among the runs."""
    said: str
    """The last lines of its output."""


class Launches(_Answer):
    """Newest first; forgotten when the service ends, which the runs are not."""

    launches: tuple[Launch, ...]


class Accepted(_Answer):
    """A start or stop that was accepted, and will be done."""

    run: str
    url: str


class _Blank:
    """An address has no null: what is left out there, is out or empty, and so the document says it."""

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        given = schema.pop("anyOf", None) or [dict(schema)]
        blank = {"type": "string", "const": ""}
        return {"anyOf": [one for one in given if one != {"type": "null"}] + [blank]}


_T = TypeVar("_T")
_Filter = Annotated[_T | None, _Blank()]


class EpisodeQuery(BaseModel):
    """Which episodes. What is left empty, as a form sends it, lets all through."""

    model_config = ConfigDict(extra="forbid")

    domain: _Filter[Annotated[str, StringConstraints(max_length=200)]] = None
    state: _Filter[State] = None
    step: _Filter[int] = Field(None, ge=1, le=2**31)
    reward_min: _Filter[Finite] = None
    reward_max: _Filter[Finite] = None
    outcome: _Filter[Outcome] = None
    correct: _Filter[bool] = None
    tokens_min: _Filter[int] = Field(None, ge=0, le=2**31, description="Sampled tokens, at least.")
    tokens_max: _Filter[int] = Field(None, ge=0, le=2**31)
    text: _Filter[Annotated[str, StringConstraints(max_length=200)]] = Field(
        None, description="In its task's id, its messages, or what the verifier said; case does not count."
    )
    before: _Filter[str] = Field(None, pattern=KEY, description="Only those older than group/index/attempt.")
    limit: Annotated[int, _Blank()] = Field(50, ge=1, le=500)

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value != ""} if isinstance(given, dict) else given

    @property
    def where(self) -> Where:
        """For the ledger."""
        return Where(
            self.state,
            self.domain,
            self.step,
            self.reward_min,
            self.reward_max,
            self.outcome,
            self.correct,
            self.tokens_min,
            self.tokens_max,
        )

    @property
    def older_than(self) -> EpisodeKey | None:
        """For the ledger."""
        return EpisodeKey(*map(int, self.before.split("/"))) if self.before else None
