"""Removes what no living owner holds: containers, by their labels, and control groups with what runs in them.

A sandbox ends with its owner, who closes it, or whose death its agent notices. What is left for this are the engine's
records of containers, and whatever was frozen or starting when everything was killed at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from rollout_workers.sandbox import cgroup, docker

EVERY: Final = 30.0
"""Seconds between two rounds beside a worker."""


def reap() -> int:
    """One round; how many were removed. Blocks, for seconds where an engine is slow. Does not raise."""
    return cgroup.sweep() + docker.sweep()


def keep_reaping(every: float, say: Callable[[str], None]) -> None:
    """Rounds without end, as a process of its own."""
    while True:
        if gone := reap():
            say(f"removed {gone} whose owners are gone")
        time.sleep(every)


@asynccontextmanager
async def reaping(every: float = EVERY) -> AsyncIterator[None]:
    """Rounds beside what happens in the block."""

    async def rounds() -> None:
        while True:
            await asyncio.sleep(every)
            await asyncio.to_thread(reap)

    task = asyncio.create_task(rounds())
    try:
        yield
    finally:
        task.cancel()
