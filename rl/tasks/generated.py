"""Tasks from generators, as a configuration names them."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rl.tasks.files import LimitsOverride
from rl.tasks.generators import GENERATORS, Problem
from rl.tasks.split import Split, split_of
from verifiers.task import Message, Task

HELD_OUT = 0.25
"""Share of a generator's problems that are never trained on."""
_PATIENCE = 200
"""Draws without a new problem after which there are taken to be no more."""


class GeneratedSource(BaseModel):
    """Endless tasks of one generator. The same index gives the same task."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    generator: Literal["code", "math", "repair", "trace"]
    """Name of a generator in `rl.tasks.generators`."""
    difficulty: int = Field(1, ge=1, le=5)
    """1 is the easiest; the generator's docstring says what changes."""
    seed: int = 0
    """Another seed draws other tasks; the split does not depend on it."""
    limits: LimitsOverride = LimitsOverride()
    """What one episode may use; `turns` are the generator's if unset."""

    @property
    def domain(self) -> str:
        """The domain of its tasks."""
        return GENERATORS[self.generator].domain

    @property
    def verifier(self) -> str:
        """Name of the verifier that scores its tasks."""
        return GENERATORS[self.generator].verifier

    def seeded(self, seed: int) -> "GeneratedSource":
        """The same source for a run of another seed."""
        return self.model_copy(update={"seed": self.seed + seed})

    @property
    def prefix(self) -> str:
        """What the ids of its training tasks begin with."""
        return self._prefix("train")

    def task(self, index: int, split: Split = "train") -> Task:
        """The task at `index` of a split."""
        return self._task(self._problem(index, split), f"{self._prefix(split)}{index}")

    def held_out(self) -> Iterator[tuple[str, Task]]:
        """(key, task) of different held-out tasks; it ends after many draws in a row without a new key."""
        keys, index, last = set[str](), 0, 0
        while index - last < _PATIENCE:
            problem = self._problem(index, "held_out")
            if problem.key not in keys:
                keys.add(problem.key)
                yield problem.key, self._task(problem, f"{self._prefix('held_out')}{index}")
                last = index
            index += 1

    def demonstration(self, index: int, mistakes: float) -> Sequence[Message]:
        """A conversation about a training task, in which each decision goes wrong with probability `mistakes`."""
        chance = Random(f"{self._prefix('train')}{index}/demonstration")  # noqa: S311
        return tuple(GENERATORS[self.generator].demonstrate(self._problem(index, "train"), chance, mistakes))

    def _task(self, problem: Problem, name: str) -> Task:
        generator = GENERATORS[self.generator]
        limits = {"turns": generator.turns} | self.limits.model_dump(exclude_none=True)
        return Task(
            id=name,
            domain=generator.domain,
            messages=problem.messages,
            verifier=generator.verifier,
            environment=generator.environment,
            payload=problem.payload,
            visible=problem.visible,
            limits=LimitsOverride.model_validate(limits).apply(),
        )

    def _problem(self, index: int, split: Split) -> Problem:
        """The problem at `index`: drawn again until it falls on that side of the split."""
        chance = Random(f"{self._prefix(split)}{index}")  # noqa: S311
        while True:
            problem = GENERATORS[self.generator].draw(chance, self.difficulty)
            if split_of(problem.key, HELD_OUT) == split:
                return problem

    def _prefix(self, split: Split) -> str:
        return f"{self.generator}-{self.difficulty}-{split}-{self.seed}/"
