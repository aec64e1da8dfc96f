"""What a verifier says of an answer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """The five things that can come of grading. Only the first two carry a reward."""

    SCORED = "scored"
    """Graded, a broken format and an exhausted budget included."""
    TAMPERED = "tampered"
    """Graded with the lowest reward: the answer attacked its grader."""
    INVALID_TASK = "invalid_task"
    """The task itself is broken: no gold, tests that do not compile."""
    VERIFIER_ERROR = "verifier_error"
    """The verifier raised, hung or returned nonsense."""
    INFRA_ERROR = "infra_error"
    """A failure of ours, proven from outside the sandbox."""

    @property
    def is_infrastructure(self) -> bool:
        """Whether it says nothing of the answer, and is worth a retry."""
        return self in (Outcome.VERIFIER_ERROR, Outcome.INFRA_ERROR)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome, its reward if it has one, and what a person would want to know.

    Raises ValueError where reward and outcome contradict each other, or the reward is not finite.
    """

    outcome: Outcome
    reward: float | None = None
    correct: bool | None = None
    """Whether the task counts as solved; pass rates are made of it, never of the reward."""
    detail: str = ""
    """One sentence for people."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """The reward by component, before weights."""

    def __post_init__(self) -> None:
        graded = self.outcome in (Outcome.SCORED, Outcome.TAMPERED)
        if graded != (self.reward is not None):
            raise ValueError(f"a verdict '{self.outcome}' {'needs' if graded else 'has no'} reward")
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"a reward must be finite, not {self.reward}")

    @classmethod
    def scored(
        cls, reward: float, *, correct: bool, detail: str = "", parts: Mapping[str, float] | None = None
    ) -> "Verdict":
        """A verdict with a reward, the ordinary one."""
        return cls(Outcome.SCORED, reward, correct, detail, parts or {})
