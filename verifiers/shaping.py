"""Components that score how an answer is given, for `combine`: its format, its length."""

from typing import Final

from verifiers.reply import PYTHON, FormatError, after_thinking, asks_to_reason, extract_boxed, extract_code
from verifiers.sandbox import Sandboxes
from verifiers.task import Submission, Task
from verifiers.verdict import Verdict

NEEDS: Final = ("think", "boxed", "code")


class Format:
    """0 where the reply has what it `needs`, else -1: one `</think>`, and after it one box or one fenced block."""

    lowest = -1.0

    def __init__(self, *, needs: str = "think", mark: str = "python") -> None:
        if needs not in NEEDS:
            raise ValueError(f"'needs' is one of {', '.join(NEEDS)}, not '{needs}'")
        self.needs = needs
        self.marks = PYTHON if mark in PYTHON else frozenset({mark})

    def check_task(self, task: Task) -> None:
        """Any will do."""

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """Look at the reply alone."""
        reasoned = asks_to_reason(task.messages)
        try:
            if self.needs == "boxed":
                extract_boxed(submission.reply, reasoned=reasoned)
            elif self.needs == "code":
                extract_code(submission.reply, reasoned=reasoned, marks=self.marks)
            else:
                after_thinking(submission.reply, reasoned=reasoned)
        except FormatError as error:
            return Verdict.scored(-1.0, correct=False, detail=str(error))
        return Verdict.scored(0.0, correct=True)


class Length:
    """0 up to `limit - margin` sampled tokens, then linear to -1 at `limit`, after DAPO's soft overlong punishment.

    A task's `soft_tokens`, which a schedule may let grow, stand in for `limit - margin`, and without `limit` its own
    limit is the hard one: with weight 2 and `if_correct` that is CWM's, from 1 towards -1 for right answers.
    """

    lowest = -1.0

    def __init__(self, *, limit: int | None = None, margin: int = 0) -> None:
        if margin < 0 or (limit is not None and not max(margin, 1) <= limit):
            raise ValueError(f"'margin' must be from 0 to 'limit', and that positive, not {margin} and {limit}")
        self.limit, self.margin = limit, margin

    def check_task(self, task: Task) -> None:
        """Raises ValueError where every answer would be too long."""
        if self.limit is None and self.margin >= task.limits.tokens:
            most = task.limits.tokens
            raise ValueError(f"'margin' is {self.margin}, and an episode of task {task.id} has at most {most} tokens")

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """Count the tokens of the whole episode that the policy sampled."""
        limit = self.limit or task.limits.tokens
        soft = limit - self.margin if task.limits.soft_tokens is None else min(task.limits.soft_tokens, limit)
        over, margin = submission.completion_tokens - soft, limit - soft
        share = min(1.0, max(0.0, over / margin if margin > 0 else float(over > 0)))
        detail = f"{submission.completion_tokens} tokens, with limits of {soft} and {limit}" if share else ""
        return Verdict.scored(-share, correct=not share, detail=detail)
