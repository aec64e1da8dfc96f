"""One reply, no tools: mathematics, and code without public tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from verifiers.sandbox import Sandboxes
from verifiers.task import Message, Task


class SingleTurn:
    """Ends with the first reply."""

    async def respond(self, reply: str) -> Message | None:
        """Always None."""
        return None


@asynccontextmanager
async def single_turn(task: Task, sandboxes: Sandboxes) -> AsyncIterator[SingleTurn]:
    """The environment; it holds nothing."""
    yield SingleTurn()
