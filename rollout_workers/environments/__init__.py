"""Where the policy acts: what answers its replies, and when an episode is over."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from rollout_workers.environments.code_tests import code_tests
from rollout_workers.environments.single_turn import single_turn
from verifiers.sandbox import Sandboxes
from verifiers.task import Message, Task


class Environment(Protocol):
    """Serves one episode."""

    async def respond(self, reply: str) -> Message | None:
        """What the policy sees next, or None where its last reply ended the episode.

        Raises SandboxKilled where the policy's commands killed its sandbox, SandboxUnavailable where we failed.
        """
        ...


ENVIRONMENTS: dict[str, Callable[[Task, Sandboxes], AbstractAsyncContextManager[Environment]]] = {
    "single_turn": single_turn,
    "code": code_tests,
}
"""By the name that a task gives in `environment`."""
