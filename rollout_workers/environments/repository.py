"""Repair a repository with tools, one call a turn, and submit a patch. Hidden tests grade it afterwards, elsewhere.

The sandbox starts at the first call. After a submit, the first reply without a call ends the episode; so does the end
of the time that commands have, before the episode's own deadline: who only waits is scored, not dropped.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from rollout_workers.environments.protocol import COMMANDS, Remaining
from rollout_workers.tools.calls import ToolError, find_call
from rollout_workers.tools.repository import TOOLS, Repository
from verifiers import checkout
from verifiers.errors import InvalidTaskError
from verifiers.repair import PATCH
from verifiers.reply import FormatError, after_thinking, asks_to_reason
from verifiers.sandbox import Sandboxes, SandboxUnavailable
from verifiers.task import Message, Task


class RepositoryTools:
    """Answers calls of bash, edit, create and submit."""

    def __init__(self, task: Task, sandboxes: Sandboxes, stack: AsyncExitStack) -> None:
        self._task = task
        self._sandboxes = sandboxes
        self._stack = stack
        self._repository: Repository | None = None

    @property
    def files(self) -> Mapping[str, bytes]:
        """The submitted patch, if there is one."""
        patch = self._repository.patch if self._repository else b""
        return {PATCH: patch} if patch else {}

    async def respond(self, reply: str, left: Remaining) -> Message | None:
        """What the call's tool says; None after a submit and a reply without a call, and where time is up."""
        name = "call"
        try:
            call = find_call(after_thinking(reply, reasoned=asks_to_reason(self._task.messages)))
            if call is None:
                if self.files:
                    return None
                raise ToolError("Nothing was submitted yet: call a tool.")
            if call.tool in TOOLS:  # the policy names no roles
                name = call.tool
            if self._repository is None:
                self._repository = await self._start()
            said = await self._repository.run(call)
            if self._repository.is_spent:
                return None
        except (ToolError, FormatError) as error:
            said = str(error)
        return Message(f"tool: {name}", answer(said, left))

    async def _start(self) -> Repository:
        sandbox = await self._stack.enter_async_context(
            self._sandboxes.open(checkout.spec_of(self._task.visible, self._task.image))
        )
        try:
            await checkout.lay_out(sandbox, self._task.visible)
        except InvalidTaskError as error:
            raise SandboxUnavailable(f"task {self._task.id}: {error}") from error
        return Repository(sandbox, COMMANDS * self._task.limits.seconds)


def answer(said: str, left: Remaining) -> str:
    """How a tool's words reach the policy."""
    return f"<output>\n{said}\n</output>\n{left.turns} turns, {left.tokens} tokens left"


@asynccontextmanager
async def repository(task: Task, sandboxes: Sandboxes) -> AsyncIterator[RepositoryTools]:
    """The environment, and on leaving the end of its sandbox."""
    async with AsyncExitStack() as stack:
        yield RepositoryTools(task, sandboxes, stack)
