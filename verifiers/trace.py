"""Execution traces: +1 if every frame is right, else the share of right frames on a scale from -1 to 1, short of 1.

A trace is frames, each closed by `<|frame_sep|>`; the payload holds the real ones, `{"frames": [text, …]}`. A frame
counts where it stands: one left out makes all after it wrong.
"""

from verifiers.reply import FormatError, after_thinking, asks_to_reason
from verifiers.sandbox import Sandboxes
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

FRAME_SEP = "<|frame_sep|>"
_PARTIAL = 0.5
"""What all frames but one are worth at most, of the way from -1 to 1: solving must pay more than nearly solving."""


class TraceVerifier:
    """Compares predicted frames with real ones, as text."""

    lowest = -1.0

    def check_task(self, task: Task) -> None:
        """Raises ValueError with one sentence."""
        frames = task.payload.get("frames")
        if not (isinstance(frames, (list, tuple)) and frames and all(isinstance(frame, str) for frame in frames)):
            raise ValueError(f"task {task.id}: the payload of a trace task needs a non-empty list of texts 'frames'")

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """Score one answer; needs no sandbox."""
        try:
            self.check_task(task)
        except ValueError as error:
            return Verdict(Outcome.INVALID_TASK, detail=str(error))
        frames = [frame.strip() for frame in task.payload["frames"]]
        try:
            found = split(after_thinking(submission.reply, reasoned=asks_to_reason(task.messages)))
        except FormatError as error:
            return Verdict.scored(-1.0, correct=False, detail=str(error))
        if found == frames:
            return Verdict.scored(1.0, correct=True)
        right = sum(one == other for one, other in zip(found, frames, strict=False))
        wrong = next((at for at, (one, other) in enumerate(zip(found, frames, strict=False)) if one != other), None)
        detail = f"{len(found)} frames and not {len(frames)}"
        if wrong is not None:
            detail = f"frame {wrong + 1} of {len(frames)} is wrong"
        share = right / max(len(found), len(frames))
        return Verdict.scored(2 * _PARTIAL * share - 1.0, correct=False, detail=detail)


def split(text: str) -> list[str]:
    """The frames of a trace. Raises FormatError where something follows the last one, or there is none."""
    *frames, rest = text.split(FRAME_SEP)
    if not frames or rest.strip():
        raise FormatError(f"a trace is frames, each closed by {FRAME_SEP}")
    return [frame.strip() for frame in frames]
