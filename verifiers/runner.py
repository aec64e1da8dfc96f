"""The boundary round a verifier: its deadline, and every way of failing turned into one of the five outcomes."""

import asyncio
import math

from verifiers import deadline
from verifiers.deadline import Deadline
from verifiers.registry import Verifier
from verifiers.sandbox import Sandboxes, SandboxKilled, SandboxUnavailable
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

GRACE_SECONDS = 5.0
"""How long a cancelled verifier may take to let go before it is left behind."""


class Grader:
    """One verifier behind a deadline of `seconds`. `grade` never raises, except for the caller's own cancellation."""

    def __init__(self, verifier: Verifier, sandboxes: Sandboxes, *, seconds: float = 180.0) -> None:
        if not math.isfinite(verifier.lowest):
            raise ValueError(f"{type(verifier).__name__}.lowest must be finite, not {verifier.lowest}")
        self.verifier = verifier
        self.sandboxes = sandboxes
        self.seconds = seconds

    async def grade(self, task: Task, submission: Submission) -> Verdict:
        """The verifier's verdict, or the one that says how it failed."""
        # A task of its own: a verifier that raises CancelledError, or ignores it, must not take us along.
        clock = Deadline(self.seconds)
        work = asyncio.create_task(self._verify(task, submission, clock), name=f"verify {task.id}")
        try:
            # If it waited for its turn, more is left afterwards.
            while not work.done() and (left := clock.left) > 0:
                await asyncio.wait({work}, timeout=left)
        finally:
            ended = await _cancel(work)
        name = f"verifier '{task.verifier}'"
        if not ended or (work.cancelled() and work.cancelling()):
            return Verdict(
                Outcome.VERIFIER_ERROR, detail=f"{name} ran longer than {self.seconds:g} s on task {task.id}"
            )
        if work.cancelled():
            return Verdict(Outcome.VERIFIER_ERROR, detail=f"{name} cancelled itself on task {task.id}")
        if (error := work.exception()) is not None:
            return self._failed(error, f"{name} on task {task.id}")
        verdict = work.result()
        if not isinstance(verdict, Verdict):
            detail = f"{name} returned a {type(verdict).__name__} instead of a Verdict"
            return Verdict(Outcome.VERIFIER_ERROR, detail=detail)
        return verdict

    async def _verify(self, task: Task, submission: Submission, clock: Deadline) -> object:
        """The verdict, as yet untrusted. A plug-in whose `verify` is no coroutine fails in here, not in `grade`."""
        deadline.running.set(clock)
        return await self.verifier.verify(task, submission, self.sandboxes)

    def _failed(self, error: BaseException, where: str) -> Verdict:
        causes = list(_leaves(error))
        if killed := [cause for cause in causes if isinstance(cause, SandboxKilled)]:
            return Verdict.scored(
                self.verifier.lowest, correct=False, detail=f"the answer killed its sandbox: {killed[0]}"
            )
        if lost := [cause for cause in causes if isinstance(cause, SandboxUnavailable)]:
            return Verdict(Outcome.INFRA_ERROR, detail=f"{where}: no sandbox: {lost[0]}")
        return Verdict(Outcome.VERIFIER_ERROR, detail=f"{where}: {type(causes[0]).__name__}: {causes[0]}")

    async def aclose(self) -> None:
        """Give back what the verifier holds."""
        if (close := getattr(self.verifier, "aclose", None)) is not None:
            await close()

    async def __aenter__(self) -> "Grader":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _leaves(error: BaseException) -> list[BaseException]:
    """The exceptions inside an exception group, however deep; the exception itself if it is none."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def _cancel(work: asyncio.Task[object]) -> bool:
    """Cancel what still runs and wait for it, but not for ever. True if it has ended."""
    if not work.done():
        work.cancel()
        await asyncio.wait({work}, timeout=GRACE_SECONDS)
    if not work.done():
        work.add_done_callback(lambda late: late.cancelled() or late.exception())  # fetched, so that asyncio is quiet
    return work.done()
