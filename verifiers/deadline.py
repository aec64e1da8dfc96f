"""The time that one grading may take, less what it spends in a queue that other answers made."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

QUEUE = 10
"""Times its own seconds a grading may take with its waits: a queue that does not move hangs like anything else."""


Turns = asyncio.Lock | asyncio.Semaphore


class Deadline:
    """Begins when it is made, and stands still while its grading waits for its `turn`, but not for ever."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._last = time.monotonic() + QUEUE * seconds
        self._waits_since: float | None = None

    @property
    def left(self) -> float:
        """Seconds; at most 0 once it is over."""
        now = time.monotonic()
        return min(self._end - (self._waits_since or now), self._last - now)

    async def wait_for(self, lock: Turns) -> None:
        """Acquire `lock`, off the clock."""
        began = self._waits_since = time.monotonic()
        try:
            await lock.acquire()
        finally:
            self._end += time.monotonic() - began
            self._waits_since = None


running: ContextVar[Deadline | None] = ContextVar("running", default=None)
"""That of the grading in whose task one is."""


@asynccontextmanager
async def turn(lock: Turns) -> AsyncIterator[None]:
    """Hold `lock` in the block. For verifiers that can do so many things at a time: an answer that hangs delays the
    others and does not use their time up."""
    deadline = running.get()
    await (lock.acquire() if deadline is None else deadline.wait_for(lock))
    try:
        yield
    finally:
        lock.release()
