"""The order in which tasks are drawn: which domain, by a mixture that changes with the step, and which task of it."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import count
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rl.tasks.epochs import Epochs
from rl.tasks.generated import GeneratedSource
from verifiers.task import Task


class MixtureStage(BaseModel):
    """From which step on, how often each domain is drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    from_step: int = Field(0, ge=0)
    """It holds for what is drawn once so many steps were taken, until the next stage."""
    weights: dict[str, float]
    """Domain -> weight; one that is not named is not drawn."""
    solve_rate: tuple[float, float] | None = None
    """(low, high). A task whose solve rate in this run is outside is drawn a twentieth as often, which is enough to
    notice when the rate has changed. Inside, the rate `low` is drawn twice as often as `high`; a task not tried yet
    counts as `low`. CWM's later stages keep 0.1 to 0.7. For file tasks only."""

    @field_validator("weights")
    @classmethod
    def _draws_something(cls, weights: dict[str, float]) -> dict[str, float]:
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            raise ValueError("weights must be finite and not negative, and one must be positive")
        return weights

    @field_validator("solve_rate")
    @classmethod
    def _is_a_range(cls, rates: tuple[float, float] | None) -> tuple[float, float] | None:
        if rates is not None and not 0 <= rates[0] <= rates[1] <= 1:
            raise ValueError(f"a solve_rate goes from one share to another, such as [0.1, 0.7], not {list(rates)}")
        return rates


class SoftTokens(BaseModel):
    """A limit on an episode's sampled tokens that grows linearly with the steps; the defaults are CWM's."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    first: int = Field(8192, gt=0)
    """The limit at step 0."""
    last: int = Field(65536, gt=0)
    """The limit from step `steps` on."""
    steps: int = Field(10_000, gt=0)
    """Steps from `first` to `last`."""

    def at(self, step: int) -> int:
        """The limit at `step`, in sampled tokens of an episode."""
        return round(self.first + (self.last - self.first) * min(1.0, step / self.steps))


def softened(tasks: Iterator[Task], schedule: SoftTokens | None, step: Callable[[], int]) -> Iterator[Task]:
    """The same tasks, with the limit that holds at `step()` when each is drawn."""
    if schedule is None:
        return tasks
    return (replace(task, limits=replace(task.limits, soft_tokens=schedule.at(step()))) for task in tasks)


AGAIN = 0.05
"""Probability that a drawn task outside `solve_rate` is taken all the same: only trying it tells its rate."""


class Pool(Protocol):
    """Tasks of one domain, numbered without end."""

    @property
    def domain(self) -> str:
        """The name under which `data.mixture` weighs it."""
        ...

    @property
    def verifiers(self) -> Set[str]:
        """Names of the verifiers that its tasks name."""
        ...

    def task(self, number: int) -> Task:
        """The task at place `number` of its order; always the same one."""
        ...

    def drawn(self, counts: Mapping[str, int]) -> int:
        """How often it was drawn from, by `counts`: task id -> times drawn, of all pools."""
        ...


class FilePool:
    """A finite set of tasks: all of them in random order, then all again in another."""

    def __init__(self, domain: str, tasks: Sequence[Task], seed: int) -> None:
        self.domain = domain
        self.tasks = tasks
        self.verifiers = frozenset(task.verifier for task in tasks)
        self._order = Epochs(len(tasks), seed)

    def task(self, number: int) -> Task:
        """See `Pool.task`."""
        return self.tasks[self._order(number)]

    def drawn(self, counts: Mapping[str, int]) -> int:
        """See `Pool.drawn`."""
        return sum(counts.get(task.id, 0) for task in self.tasks)


class GeneratedPool:
    """What a generator draws, in its order."""

    def __init__(self, source: GeneratedSource) -> None:
        self.domain = source.domain
        self.verifiers = frozenset({source.verifier})
        self._source = source

    def task(self, number: int) -> Task:
        """See `Pool.task`."""
        return self._source.task(number)

    def drawn(self, counts: Mapping[str, int]) -> int:
        """See `Pool.drawn`."""
        return sum(times for name, times in counts.items() if name.startswith(self._source.prefix))


def stage_at(mixture: Sequence[MixtureStage], step: int) -> MixtureStage | None:
    """The last stage that has begun; none where there is no mixture."""
    begun = [stage for stage in mixture if stage.from_step <= step]
    return begun[-1] if begun else None


def stream(
    pools: Sequence[Pool],
    mixture: Sequence[MixtureStage],
    seed: int,
    counts: Mapping[str, int],
    step: Callable[[], int],
    solved: Callable[[str], float | None] = lambda _: None,
) -> Iterator[Task]:
    """Tasks without end: each time a domain is drawn by its weight at `step()`, then a pool of it, then the next task.

    Without a mixture all domains weigh the same. `counts`, task id -> times drawn, is what a resumed run has drawn
    before. `solved` gives the share of a task's episodes that solved it, None before the first; a task that
    `solve_rate` rejects is replaced by the next one of its pool, so the mixture keeps its weights. The same seed gives
    the same order as long as nothing is rejected: no count has those draws, so a resumed run would make them again.
    """
    numbers = [pool.drawn(counts) for pool in pools]
    alike = dict.fromkeys((pool.domain for pool in pools), 1.0)
    sharing = {domain: sum(pool.domain == domain for pool in pools) for domain in alike}
    for place in count(sum(numbers)):
        stage = stage_at(mixture, step())
        weights = stage.weights if stage else alike
        chances = [weights.get(pool.domain, 0.0) / sharing[pool.domain] for pool in pools]
        chance = random.Random(f"{seed}/{place}")  # noqa: S311
        chosen = chance.choices(range(len(pools)), chances)[0]
        while True:
            task = pools[chosen].task(numbers[chosen])
            numbers[chosen] += 1
            rates = stage.solve_rate if stage else None
            if rates is None or chance.random() < interest(solved(task.id), *rates):
                break
        yield task


def interest(rate: float | None, low: float, high: float) -> float:
    """Probability that a drawn task is taken, by the rate at which it is solved: see `MixtureStage.solve_rate`."""
    if rate is None:
        return 1.0
    if not low <= rate <= high:
        return AGAIN
    return 1.0 if low == high else 1.0 - 0.5 * (rate - low) / (high - low)
