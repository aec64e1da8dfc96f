"""The boundary round a verifier."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from plain_sandbox import PlainSandboxes

from verifiers.deadline import turn
from verifiers.runner import Grader
from verifiers.sandbox import SandboxKilled, SandboxUnavailable
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

TASK = Task("t", "math", (), "mine")
ANSWER = Submission("x")


class Scripted:
    """A verifier that does what it is told."""

    lowest = -2.0

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def check_task(self, task: Task) -> None: ...

    async def verify(self, task: Task, submission: Submission, sandboxes: object) -> Verdict:
        result = self.act()
        return await result if asyncio.iscoroutine(result) else result


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> None:
        raise error

    return act


async def grade(act: Callable[[], Any], seconds: float = 5.0) -> Verdict:
    async with Grader(Scripted(act), PlainSandboxes(), seconds=seconds) as grader:
        return await grader.grade(TASK, ANSWER)


async def test_a_verdict_passes_through() -> None:
    verdict = Verdict.scored(0.5, correct=True)
    assert await grade(lambda: verdict) is verdict


@pytest.mark.parametrize("nonsense", [None, 1.0, {"reward": 1}, "scored"])
async def test_nonsense_is_a_verifier_error(nonsense: object) -> None:
    verdict = await grade(lambda: nonsense)
    assert verdict.outcome is Outcome.VERIFIER_ERROR
    assert type(nonsense).__name__ in verdict.detail


async def test_what_it_raises_is_a_verifier_error_with_a_sentence() -> None:
    verdict = await grade(raising(KeyError("gold")))
    assert (verdict.outcome, verdict.reward) == (Outcome.VERIFIER_ERROR, None)
    assert "KeyError" in verdict.detail and "mine" in verdict.detail and "task t" in verdict.detail


async def test_a_reward_that_is_not_finite_is_a_verifier_error() -> None:
    verdict = await grade(lambda: Verdict.scored(float("nan"), correct=True))
    assert verdict.outcome is Outcome.VERIFIER_ERROR


async def test_a_hang_is_a_verifier_error() -> None:
    verdict = await grade(lambda: asyncio.sleep(3600), seconds=0.05)
    assert verdict.outcome is Outcome.VERIFIER_ERROR
    assert "longer than 0.05 s" in verdict.detail


async def test_the_wait_for_answers_before_it_is_not_counted() -> None:
    lock = asyncio.Lock()

    async def act() -> Verdict:
        async with turn(lock):
            await asyncio.sleep(0.2)
        return Verdict.scored(1.0, correct=True)

    async with Grader(Scripted(act), PlainSandboxes(), seconds=0.4) as grader:
        verdicts = await asyncio.gather(*(grader.grade(TASK, ANSWER) for _ in range(4)))
    assert [verdict.outcome for verdict in verdicts] == [Outcome.SCORED] * 4


async def test_a_hang_in_its_turn_is_a_verifier_error_and_lets_the_next_one_in() -> None:
    lock = asyncio.Lock()

    async def hang() -> None:
        async with turn(lock):
            await asyncio.sleep(3600)

    verdicts = await asyncio.gather(grade(hang, seconds=0.05), grade(hang, seconds=0.05))
    assert [verdict.outcome for verdict in verdicts] == [Outcome.VERIFIER_ERROR] * 2


async def test_a_queue_that_does_not_move_is_a_hang_too() -> None:
    lock = asyncio.Lock()

    async def locked_out_by_itself() -> None:
        async with turn(lock), turn(lock):
            pass

    async with asyncio.timeout(5):
        assert (await grade(locked_out_by_itself, seconds=0.02)).outcome is Outcome.VERIFIER_ERROR


async def test_its_own_timeout_and_cancellation_are_its_errors() -> None:
    for error in (TimeoutError("theirs"), asyncio.CancelledError()):
        assert (await grade(raising(error))).outcome is Outcome.VERIFIER_ERROR


async def test_a_missing_sandbox_is_ours_and_a_killed_one_the_answers() -> None:
    assert (await grade(raising(SandboxUnavailable("gone")))).outcome is Outcome.INFRA_ERROR
    verdict = await grade(raising(ExceptionGroup("both", [SandboxKilled("out of memory")])))
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, -2.0, False)


async def test_cancellation_from_outside_reaches_the_verifier_and_is_not_swallowed() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    grading = asyncio.create_task(grade(hang))
    await started.wait()
    grading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await grading
    assert ended.is_set()
