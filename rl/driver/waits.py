"""Waits with a name and a deadline. Those that run are shown beside the progress bar and on the status page."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from verifiers.errors import UserError


class Overdue(UserError):
    """A wait outlasted its deadline."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Wait:
    """What is waited for, since when and until when at most (Unix seconds)."""

    name: str
    since: float
    until: float


class Waits:
    """All named waits of this process: those that run, and how long those that ended took."""

    def __init__(self) -> None:
        self._running: dict[int, Wait] = {}
        self.seconds: dict[str, float] = {}
        """Wall time by name, of waits that have ended."""

    @property
    def running(self) -> list[Wait]:
        """Waits that have not ended, oldest first."""
        return sorted(self._running.values(), key=lambda wait: wait.since)

    @asynccontextmanager
    async def named(self, name: str, seconds: float) -> AsyncIterator[None]:
        """Wait inside the block for at most `seconds`. Raises Overdue."""
        now, start = time.time(), time.monotonic()
        wait = Wait(name, now, now + seconds)
        self._running[id(wait)] = wait
        try:
            async with asyncio.timeout(seconds) as deadline:
                yield
        except TimeoutError as error:
            if deadline.expired():
                raise Overdue(f"waited {seconds:g} s for {name}") from error
            raise
        finally:
            del self._running[id(wait)]
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
