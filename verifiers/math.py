r"""Mathematical answers: +1 if the one `\boxed{}` after the reasoning equals the gold answer, else -1."""

from verifiers._math_answer import alters, misshapen, normalise, number, without_unit
from verifiers._math_forms import alike
from verifiers._worker_process import SilentError
from verifiers._workers import Workers
from verifiers.reply import FormatError, asks_to_reason, extract_boxed
from verifiers.sandbox import Sandboxes
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

SLACK_SECONDS = 5.0
"""Beyond the process's own limit, for a machine that is busy."""
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
        self._limits = {"seconds": seconds, "memory": memory_bytes}
        self._workers = Workers(processes, seconds + SLACK_SECONDS, "_math_worker.py")
        self.start, self.aclose = self._workers.start, self._workers.aclose

    def check_task(self, task: Task) -> None:
        """Blocks up to a second where the gold is no plain number. Raises ValueError."""
        gold = _gold(task)
        if number(without_unit(gold)) is not None or _is_text(gold):
            return
        try:
            said = self._workers.ask_blocking(self._limits | {"gold": gold, "answer": None})
        except SilentError:
            said = None
        if said is None or said["outcome"] != "right":
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
        answer, gold = alike(answer, gold)
        if problem := misshapen(answer, gold):
            return _verdict(False, problem)
        known = _without_algebra(answer, gold)
        if known is not None:
            return _verdict(known, "" if known else _WRONG["wrong"])
        said = await self._workers.ask(self._limits | {"gold": gold, "answer": answer})
        if said is None:  # an answer hurts a child of the process alone
            raise RuntimeError("the process that compares answers died")
        outcome = str(said["outcome"])
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
    if _is_text(gold) or alters(answer) or alters(gold):
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
