"""Rewards made of several verifiers: weighted sums, gates, and what shapes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verifiers import registry
from verifiers.registry import Verifier
from verifiers.sandbox import Sandboxes
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict


@dataclass(frozen=True, slots=True)
class Part:
    """How one verifier counts, and the options it is made with."""

    weight: float = 1.0
    gate: bool = False
    """It is asked first; what it does not find correct gets the lowest reward, and nobody else is asked."""
    if_correct: bool = False
    """It counts, and is asked, only where the main one finds the answer correct, which then costs at most all of it."""
    options: Mapping[str, Any] = field(default_factory=dict)


class Combined:
    """reward = sum_k weight_k * reward_k. The first that is no gate is the main one: "solved" is its word.

    `Combined({"math": 1.0, "length": Part(0.2, options={"limit": 500})})` loads its components by name; `verifiers`
    supplies ready ones instead. Raises ValueError where all are gates, or a weight is not positive and finite.
    """

    def __init__(self, parts: Mapping[str, float | Part], *, verifiers: Mapping[str, Verifier] | None = None) -> None:
        self.parts = {name: part if isinstance(part, Part) else Part(part) for name, part in parts.items()}
        if all(part.gate or part.if_correct for part in self.parts.values()):
            raise ValueError("a combined verifier needs at least one component that is no gate and always counts")
        for name, part in self.parts.items():
            if part.gate and part.if_correct:
                raise ValueError(f"verifier '{name}' cannot be a gate and count only where the answer is correct")
            if not (math.isfinite(part.weight) and part.weight > 0):
                raise ValueError(f"the weight of verifier '{name}' must be positive and finite, not {part.weight}")
        given = verifiers or {}
        self.verifiers = {
            name: given[name] if name in given else registry.load(name, **part.options)
            for name, part in self.parts.items()
        }
        always = (name for name, part in self.parts.items() if not part.if_correct)
        self.lowest = math.fsum(self.parts[name].weight * self.verifiers[name].lowest for name in always)
        self._main = next(name for name, part in self.parts.items() if not (part.gate or part.if_correct))

    def check_task(self, task: Task) -> None:
        """Every component checks it. Raises ValueError."""
        for verifier in self.verifiers.values():
            verifier.check_task(task)

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """The weighted sum; a component without a reward passes its own outcome on, an attack on one costs all."""
        verdicts: dict[str, Verdict] = {}
        for name, part in sorted(self.parts.items(), key=lambda item: (not item[1].gate, item[1].if_correct)):
            if part.if_correct and not verdicts[self._main].correct:
                break
            verdict = verdicts[name] = await self.verifiers[name].verify(task, submission, sandboxes)
            if verdict.reward is None:
                return Verdict(verdict.outcome, detail=f"{name}: {verdict.detail}")
            if part.gate and not verdict.correct:
                break
        return self._sum(verdicts)

    def _sum(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        rewards = {name: verdict.reward for name, verdict in verdicts.items() if verdict.reward is not None}
        detail = "; ".join(f"{name}: {verdict.detail}" for name, verdict in verdicts.items() if verdict.detail)
        if any(verdict.outcome is Outcome.TAMPERED for verdict in verdicts.values()):
            return Verdict(Outcome.TAMPERED, self.lowest, False, detail, rewards)
        if self._main not in verdicts:  # a gate is shut
            return Verdict(Outcome.SCORED, self.lowest, False, detail or f"{list(verdicts)[-1]} is not met", rewards)
        reward = math.fsum(self.parts[name].weight * part for name, part in rewards.items())
        if any(self.parts[name].if_correct for name in rewards):
            reward = max(self.lowest, reward)
        return Verdict(Outcome.SCORED, reward, verdicts[self._main].correct, detail, rewards)

    async def aclose(self) -> None:
        """Close every component that can be closed."""
        for verifier in self.verifiers.values():
            if (close := getattr(verifier, "aclose", None)) is not None:
                await close()
