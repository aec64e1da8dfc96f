"""What sampling leaves behind: segments, trajectories, episodes, groups. All frozen; nothing is filled in later."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from verifiers.task import Submission
from verifiers.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Context:
    """Tokens somebody else wrote: a prompt, a tool's output, an end token that was added and not sampled."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """Tokens the policy sampled, all under one version of the weights. Raises ValueError on unequal lengths."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """log pi_version(token | everything before it), in nats, as recorded when it was sampled."""
    version: int

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.logprobs):
            raise ValueError(f"{len(self.tokens)} tokens with {len(self.logprobs)} log-probabilities")


Segment = Context | Completion


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One unbroken token sequence. Masks and log-probabilities are derived from it, never stored beside it."""

    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """All token ids, (T,)."""
        return tuple(token for segment in self.segments for token in segment.tokens)

    @property
    def completions(self) -> Iterator[Completion]:
        """The parts the policy wrote, in order."""
        return (segment for segment in self.segments if isinstance(segment, Completion))

    def __len__(self) -> int:
        return sum(len(segment.tokens) for segment in self.segments)


class StopReason(StrEnum):
    """Why an episode's acting part ended."""

    DONE = "done"
    TURNS = "turns"
    TOKENS = "tokens"
    SANDBOX = "sandbox"
    """Its own commands killed its sandbox."""


@dataclass(frozen=True, slots=True, order=True)
class EpisodeKey:
    """Unique in a run. A retry after a failure of ours keeps group and index, and counts `attempt` up."""

    group: int
    index: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.group}/{self.index}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class Episode:
    """One try of the policy at a task. It counts once in its group, however many trajectories it has."""

    key: EpisodeKey
    task_id: str
    domain: str
    trajectories: tuple[Trajectory, ...]
    stop: StopReason
    submission: Submission
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time by cause: `sampling`, `tool`."""

    @property
    def completions(self) -> Iterator[Completion]:
        """All completions of all its trajectories, in order."""
        return (completion for trajectory in self.trajectories for completion in trajectory.completions)

    @property
    def sampled_tokens(self) -> int:
        """L_i: the tokens the policy wrote."""
        return sum(len(completion.tokens) for completion in self.completions)

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions of the weights that sampled it, first to last, without repeats in a row."""
        found: list[int] = []
        for completion in self.completions:
            if completion.tokens and (not found or found[-1] != completion.version):
                found.append(completion.version)
        return tuple(found)


class FailureReason(StrEnum):
    """Why an episode ended without anything to score."""

    PROMPT_TOO_LONG = "prompt_too_long"
    """The task's own fault: no retry can help."""
    DEADLINE = "deadline"
    """Its acting part outlasted `Limits.seconds`, which is mostly our own speed."""
    INFRA_ERROR = "infra_error"
    """A failure of ours: worth a retry."""


class DropReason(StrEnum):
    """Why an episode was not trained."""

    ZERO_ADVANTAGE = "zero_advantage"
    """Everybody in its group got the same reward."""
    STALE = "stale"
    """Its last token was sampled too many versions ago."""
    GIBBERISH = "gibberish"
    """It holds a rare token at a tiny probability."""
    REFUSED = "refused"
    """The learner refused a step on its batch: loss or gradient were not finite."""
    PROMPT_TOO_LONG = "prompt_too_long"
    GROUP_TOO_SMALL = "group_too_small"
    """Fewer than two members of its group were left."""
    DEADLINE = "deadline"
    """Its group closed without it."""
    INTERRUPTED = "interrupted"
    """It was running when the driver died."""
    INFRA_ERROR = "infra_error"
    VERIFIER_ERROR = "verifier_error"
    INVALID_TASK = "invalid_task"
    WORKER_LOST = "worker_lost"
    UNUSED = "unused"
    """Left over at the run's end."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An episode that came to nothing, as data: no reward, never in a group."""

    key: EpisodeKey
    reason: FailureReason
    detail: str


@dataclass(frozen=True, slots=True)
class Scored:
    """An episode and its verdict."""

    episode: Episode
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Group:
    """The scored episodes of one task under one dispatch. Only members with a reward are in it."""

    id: int
    task_id: str
    domain: str
    members: tuple[Scored, ...]
