"""One reply, no tools: mathematics, and code without public tests."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

from rollout_workers.environments.protocol import Remaining
from verifiers.sandbox import Sandboxes
from verifiers.task import Message, Task


class SingleTurn:
    """Ends with the first reply."""

    files: Mapping[str, bytes] = MappingProxyType({})

    async def respond(self, reply: str, left: Remaining) -> Message | None:
        """Always None."""
        return None


@asynccontextmanager
async def single_turn(task: Task, sandboxes: Sandboxes) -> AsyncIterator[SingleTurn]:
    """The environment; it holds nothing."""
    yield SingleTurn()
