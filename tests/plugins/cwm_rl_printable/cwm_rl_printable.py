"""A dense reward that even a random model can begin to earn."""

from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict


class Printable:
    """The share of printable ASCII characters, newlines included, in the reply: 0 to 1; 0 for an empty one."""

    lowest = 0.0

    def check_task(self, task: Task) -> None:
        """Any task will do."""

    async def verify(self, task: Task, submission: Submission, sandboxes: object) -> Verdict:
        """Nothing is solved by this, so `correct` stays None."""
        reply = submission.reply
        return Verdict(Outcome.SCORED, sum(c == "\n" or " " <= c <= "~" for c in reply) / max(1, len(reply)))
