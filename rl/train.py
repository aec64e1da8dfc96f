"""The algorithm. Everything round it (timers, checkpoints, logging) sits inside what it calls."""

from collections.abc import Iterator
from typing import Protocol

from rl.driver.inbox import Batch


class Steps(Protocol):
    """What the loop needs of a run; see `rl.driver.run.Run`."""

    def remaining(self) -> Iterator[int]:
        """Steps still to take."""
        ...

    async def take(self) -> Batch:
        """The next batch of groups that are fresh and teach something."""
        ...

    async def learn(self, batch: Batch) -> dict[str, float] | None:
        """An optimiser step; none where it was refused, and the batch is out."""
        ...

    async def commit(self, step: int, batch: Batch, stats: dict[str, float]) -> None:
        """Record the step."""
        ...

    async def publish(self) -> None:
        """Put the weights into every worker's mailbox, under the next version."""
        ...


async def train(run: Steps) -> None:
    """Asynchronous GRPO, as in Meta's CWM (arXiv 2510.02387).

    ┌─────────────────────────────────────────────────────────────────────────────────────────────┐
    │ publish π₀                                            workers sample from now on, unasked   │
    │ for step = 1 .. N:                                                                          │
    │     G ← scored groups whose last tokens lag at most max_lag versions behind,                │
    │         cut by a budget of tokens with A ≠ 0                                                │
    │     A_i ← R_i − Σ R_j L_j / Σ L_j                     centred in each group, by length      │
    │     θ ← one AdamW step on −(1/N) Σ_i Σ_t M min(ρ A, clip(ρ, 1−ε_low, 1+ε_high) A)           │
    │     commit; publish π_θ                               a mailbox: the newest wins            │
    └─────────────────────────────────────────────────────────────────────────────────────────────┘

    Meanwhile `rl.driver.rollouts` keeps the workers' slots full; new weights enter inside running episodes.
    """
    await run.publish()
    for step in run.remaining():
        batch = await run.take()
        while (stats := await run.learn(batch)) is None:
            batch = await run.take()
        await run.commit(step, batch, stats)
        await run.publish()
