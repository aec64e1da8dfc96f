"""Weighted sums of verifiers."""

import math
from collections.abc import Mapping
from typing import Any

from verifiers import registry
from verifiers.registry import Verifier
from verifiers.sandbox import Sandboxes
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict


class Combined:
    """reward = sum_k weight_k * reward_k. The first component is the main one: whether the task is solved is its word.

    `Combined({"math": 1.0, "printable": 0.2})` loads its components by name; `verifiers` supplies ready ones instead,
    `options` what the others are made with, both by name. Raises ValueError on no component or a weight that is not
    positive and finite.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        verifiers: Mapping[str, Verifier] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if not weights:
            raise ValueError("a combined verifier needs at least one component")
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"the weight of verifier '{name}' must be positive and finite, not {weight}")
        given, options = verifiers or {}, options or {}
        self.weights = dict(weights)
        self.verifiers = {
            name: given[name] if name in given else registry.load(name, **options.get(name, {})) for name in weights
        }
        self.lowest = math.fsum(weight * self.verifiers[name].lowest for name, weight in weights.items())

    def check_task(self, task: Task) -> None:
        """Every component checks it. Raises ValueError."""
        for verifier in self.verifiers.values():
            verifier.check_task(task)

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """The weighted sum; a component without a reward passes its own outcome on, an attack on one costs all."""
        verdicts: dict[str, Verdict] = {}
        for name, verifier in self.verifiers.items():
            verdict = await verifier.verify(task, submission, sandboxes)
            if verdict.reward is None:
                return Verdict(verdict.outcome, detail=f"{name}: {verdict.detail}")
            verdicts[name] = verdict
        return self._sum(verdicts)

    def _sum(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        parts = {name: verdict.reward for name, verdict in verdicts.items() if verdict.reward is not None}
        detail = "; ".join(f"{name}: {verdict.detail}" for name, verdict in verdicts.items() if verdict.detail)
        if any(verdict.outcome is Outcome.TAMPERED for verdict in verdicts.values()):
            return Verdict(Outcome.TAMPERED, self.lowest, False, detail, parts)
        reward = math.fsum(self.weights[name] * part for name, part in parts.items())
        main = next(iter(verdicts.values()))
        return Verdict(Outcome.SCORED, reward, main.correct, detail, parts)

    async def aclose(self) -> None:
        """Close every component that can be closed."""
        for verifier in self.verifiers.values():
            if (close := getattr(verifier, "aclose", None)) is not None:
                await close()
