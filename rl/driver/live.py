"""What one sees of a run while it runs: a progress bar, a line a step, and what is being waited for."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from rl.driver.waits import Waits
from rl.ledger.writer import Ledger
from rl.progress import Say, progress
from rl.reports import report

_LOOK_SECONDS = 1.0
_WINDOW = 5
"""Steps over which a speed is taken."""


class Live:
    """Tells each step as it comes, and in between, at least every ten seconds, where the run stands."""

    def __init__(self, steps: int, ledger: Ledger, waits: Waits, say: Say) -> None:
        self._steps, self._ledger, self._waits, self._say = steps, ledger, waits, say
        self._ends: deque[tuple[float, int]] = deque(maxlen=_WINDOW + 1)
        self._tokens = 0

    def step(self, step: int, stats: Mapping[str, Any]) -> None:
        """Count a committed step, and say its line."""
        self._tokens += stats["sampled_tokens"]
        self._ends.append((time.monotonic(), self._tokens))
        self._say(report.step_line(step, self._steps, stats, self._speed(), self._ledger.dropped()))

    def shown(self, what: str, total: int, done: Callable[[], int]) -> AbstractAsyncContextManager[None]:
        """A bar over `total`, kept up to date while the block runs."""
        return shown(what, total, done, self._waiting, self._say)

    def training(self) -> AbstractAsyncContextManager[None]:
        """The bar of the steps. Speeds count from here, not from a start or an evaluation before."""
        self._ends.append((time.monotonic(), self._tokens))
        return shown("training", self._steps, lambda: self._ledger.step, self._text, self._say)

    def _text(self) -> str:
        return f"{self._speed():,.0f} tokens/s, {self._waiting()}"

    def _waiting(self) -> str:
        waits = self._waits.running
        now = time.time()
        waiting = ", ".join(f"{wait.name} ({now - wait.since:.0f} s)" for wait in waits) or "episodes"
        return f"waiting for {waiting}"

    def _speed(self) -> float:
        """Trained tokens a second over the last steps."""
        (began, before), (_, after) = self._ends[0], self._ends[-1]
        return (after - before) / max(time.monotonic() - began, 1e-9)


@asynccontextmanager
async def shown(
    what: str, total: int, done: Callable[[], int], text: Callable[[], str], say: Say
) -> AsyncIterator[None]:
    """A bar over `total` with a text beside it, both looked up every second while the block runs, and at its end."""
    with progress(what, total, done(), say) as show:

        async def look() -> None:
            while True:
                show(done(), text())
                await asyncio.sleep(_LOOK_SECONDS)

        task = asyncio.create_task(look(), name=f"progress of {what}")
        try:
            yield
            show(done(), text())
        finally:
            task.cancel()
