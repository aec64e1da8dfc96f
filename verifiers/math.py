r"""Mathematical answers: +1 if the one `\boxed{}` after the reasoning equals the gold answer, else -1."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import LifoQueue

from verifiers._math_answer import misshapen, normalise, number, without_unit
from verifiers._math_process import MathProcess
from verifiers.deadline import turn
from verifiers.reply import FormatError, asks_to_reason, extract_boxed
from verifiers.sandbox import Sandboxes
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

_WRONG = {
    "wrong": "the answer is not the gold answer",
    "timeout": "the answer takes too long to evaluate",
    "crashed": "the answer cannot be evaluated",
}


class MathVerifier:
    """Payload: {"answer": gold}. Plain numbers are compared exactly, all else by math-verify in processes.

    An answer on which math-verify hangs or dies is wrong: the answer did it. `seconds` and `memory_bytes` bound one
    comparison. The `processes` start with `start`, or on first need, and end with `aclose` or with ours.
    """

    lowest = -1.0

    def __init__(self, *, seconds: float = 4.0, memory_bytes: int = 1 << 30, processes: int = 2) -> None:
        if processes < 1:
            raise ValueError(f"mathematics needs at least one process, not {processes}")
        self._processes = processes
        self._idle: LifoQueue[MathProcess] = LifoQueue()
        """The one used last comes first: few answers start few processes."""
        for _ in range(processes):
            self._idle.put(MathProcess(seconds, memory_bytes))
        # A thread a process: a request that nobody waits for any more is seen to its end.
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="math-verify")
        self._turns = asyncio.Semaphore(processes)
        self._gathering = threading.Lock()

    async def start(self) -> None:
        """Bring the processes up ahead of the first answer. Raises RuntimeError."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._all, MathProcess.spawn, MathProcess.start)

    async def aclose(self) -> None:
        """End the processes; a later call brings them up again."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._all, MathProcess.close)

    def _all(self, *steps: Callable[[MathProcess], object]) -> None:
        """Take each step with every process, once none is busy. Blocks."""
        with self._gathering:
            taken = [self._idle.get() for _ in range(self._processes)]
            try:
                for step in steps:
                    for process in taken:
                        step(process)
            finally:
                for process in taken:
                    self._idle.put(process)

    def _ask(self, gold: str, answer: str | None) -> str:
        process = self._idle.get()
        try:
            return process.ask(gold, answer)
        finally:
            self._idle.put(process)

    def check_task(self, task: Task) -> None:
        """Blocks up to a second where the gold is no plain number. Raises ValueError."""
        gold = _gold(task)
        if number(without_unit(gold)) is not None or _is_text(gold):
            return
        if self._threads.submit(self._ask, gold, None).result() != "right":
            raise ValueError(f"task {task.id}: the gold answer {gold!r:.80} cannot be read as mathematics")

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """Score one answer; needs no sandbox."""
        try:
            gold = _gold(task)
        except ValueError as error:
            return Verdict(Outcome.INVALID_TASK, detail=str(error))
        try:
            answer = extract_boxed(submission.reply, reasoned=asks_to_reason(task.messages))
        except FormatError as error:
            return _verdict(False, str(error))
        if problem := misshapen(answer, gold):
            return _verdict(False, problem)
        known = _without_algebra(answer, gold)
        if known is not None:
            return _verdict(known, "" if known else _WRONG["wrong"])
        loop = asyncio.get_running_loop()
        async with turn(self._turns):
            outcome = await loop.run_in_executor(self._threads, self._ask, gold, answer)
        if outcome == "no_gold":
            return Verdict(Outcome.INVALID_TASK, detail=f"task {task.id}: the gold answer {gold!r:.80} cannot be read")
        return _verdict(outcome == "right", _WRONG.get(outcome, ""))


def _verdict(correct: bool, detail: str) -> Verdict:
    return Verdict.scored(1.0 if correct else -1.0, correct=correct, detail=detail)


def _gold(task: Task) -> str:
    gold = task.payload.get("answer")
    if not isinstance(gold, str) or not gold.strip():
        raise ValueError(f"task {task.id}: the payload of a math task needs a non-empty text 'answer'")
    return gold


def _is_text(gold: str) -> bool:
    """Whether the gold is a word or a choice (`Evelyn`, `(B)`), which is compared as text."""
    return normalise(gold).strip("()").replace(" ", "").isalpha()


def _without_algebra(answer: str, gold: str) -> bool | None:
    """Right or wrong where that needs no algebra, else None."""
    left, right = without_unit(answer, bare=True), without_unit(gold)
    if left == right:
        return True
    if _is_text(gold):
        return _folded(answer) == _folded(gold)
    found, wanted = number(left), number(right)
    if found is None or wanted is None:
        return None
    if found == wanted:
        return True
    # 0.333333 for 1/3 is a question of rounding, which math-verify answers.
    return None if ("/" in left or "frac" in left) != ("/" in right or "frac" in right) else False


def _folded(text: str) -> str:
    return normalise(text).strip("()").replace(" ", "").casefold()
