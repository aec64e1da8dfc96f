"""Other frameworks' ways to score, as verifiers: TRL's reward functions, reasoning-gym's data sets.

Their code is called in processes of its own, which are killed when they do not answer. A further adapter is a kind of
call in `_foreign_worker`, and here a class that says what the call needs of a task and an answer.
"""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verifiers._relay import TamperedError
from verifiers._worker_process import SilentError
from verifiers._workers import Workers
from verifiers.reply import FormatError, after_thinking, asks_to_reason
from verifiers.sandbox import Sandboxes
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

_ARITHMETIC = re.compile(r"[\d\s()+*/.,=^-]*")
_NAMES = "a?(?:sin|cos|tan|cot|sec|csc)h?|exp|log|ln|sqrt|abs|Abs|sign|pi|oo|[A-Za-z]"
_FORMULA = re.compile(rf"(?:[\d\s()+*/,=^-]|(?<=\d)\.|(?<!\d)\.(?=\d)|(?<![A-Za-z])(?:{_NAMES})(?![A-Za-z]))*")
_LITERAL = re.compile(r"[^(_]*")
_BOARD = re.compile(r"[Q_\s\[\]',\"]*")
_EVALUATING = {
    **dict.fromkeys(("countdown", "puzzle24"), _ARITHMETIC),
    **dict.fromkeys(("simple_integration", "intermediate_integration", "polynomial_multiplication"), _FORMULA),
    **dict.fromkeys(("binary_matrix", "spiral_matrix", "string_insertion"), _LITERAL),
    "n_queens": _BOARD,
}
"""Data sets whose scoring evaluates the answer as Python, beside what it should be, and what an answer to them may be:
no call, and nothing that builds one. What others may evaluate meets the walls below and refusals in their process."""
_WALLS = (
    *("--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--ro-bind", "/usr", "/usr"),
    *(word for name in ("/bin", "/lib", "/lib32", "/lib64") for word in ("--ro-bind-try", name, name)),
    *(word for name in ("ld.so.cache", "alternatives") for word in ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")),
    *("--dev", "/dev", "--chdir", "/"),
    *("--setenv", "HOME", "/dev/shm", "--setenv", "TMPDIR", "/dev/shm"),  # noqa: S108 - one of its own, in memory
)
"""Of the host they show the system's libraries, and what `_shown` adds."""
_WORKER = "_foreign_worker.py"


class ForeignError(RuntimeError):
    """Foreign code raised, hung or returned nonsense."""


class ForeignHungError(ForeignError):
    """It gave no score in its time."""


def _walls(package: str) -> Sequence[str]:
    """Bubblewrap's, tried. Raises ValueError where there are none."""
    why = "bubblewrap is not installed"
    if bubblewrap := shutil.which("bwrap"):
        shown = [word for path in _shown(package) for word in ("--ro-bind", str(path), str(path))]
        for processes in (("--proc", "/proc"), ()):  # some containers refuse it, and most Pythons do without
            walls = (bubblewrap, *_WALLS, *shown, *processes, "--remount-ro", "/")
            tried = subprocess.run(
                [*walls, sys.executable, "-I", "-c", ""], capture_output=True, timeout=60, check=False
            )
            if tried.returncode == 0:
                return walls
        why = f"bubblewrap does not work here: {tried.stderr.decode(errors='replace').strip()[-200:]}"
    raise ValueError(f"{package} evaluates some answers, behind bubblewrap's walls alone, and {why}")


def _shown(package: str) -> list[Path]:
    """Where the interpreter lies, what is installed for it, the package, and the worker's script; folders first."""
    folders = [Path(sys.base_prefix), Path(sys.prefix)]
    folders += [Path(entry) for entry in _path() if next(Path(entry).glob("*.dist-info"), None)]
    found = importlib.util.find_spec(package)
    if found is not None:
        folders += [Path(place) for place in found.submodule_search_locations or (found.origin,) if place]
    shown: list[Path] = []
    for path in (*folders, *_links(Path(sys.executable)), Path(__file__).with_name(_WORKER)):
        if path != Path("/") and not any(path.is_relative_to(one) for one in (Path("/usr"), *shown)):
            shown.append(path)
    return shown


def _links(path: Path) -> Iterator[Path]:
    """A file, and what it is a link to, and so on."""
    for _ in range(40):
        yield path
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()


def _path() -> list[str]:
    """What modules are imported from, wherever a process stands."""
    return [os.path.abspath(entry) for entry in sys.path]


class _Foreign:
    """What both adapters have in common."""

    def __init__(self, kind: str, target: str, seconds: float, processes: int, walls: Sequence[str] = ()) -> None:
        self._name, self._seconds = target or kind, seconds
        arguments = (_WORKER, json.dumps(_path()), kind, target)
        self._workers = Workers(processes, seconds, *arguments, walls=walls)
        self.start, self.aclose = self._workers.start, self._workers.aclose

    async def score(self, request: Mapping[str, Any]) -> float | None:
        """Raises TamperedError, ForeignError, and RuntimeError where its process does not start."""
        try:
            said = await self._workers.ask(request)
        except SilentError:
            raise ForeignHungError(f"{self._name} gave no score within {self._seconds:g} s") from None
        if said is None:
            raise ForeignError(f"{self._name}'s process died")
        if "tampered" in said:
            raise TamperedError(said["tampered"])
        if "error" in said:
            raise ForeignError(f"{self._name} failed: {said['error']}")
        if (score := said["score"]) is not None and not math.isfinite(score):
            raise ForeignError(f"{self._name} scored {score}")
        return None if score is None else float(score)


class RewardFunction(_Foreign):
    """TRL's `reward_func(prompts, completions, **columns)`, a function or a coroutine, called with one of each.

    `function` is module:attribute or file.py:attribute, `columns` names what it gets of the payload, `conversational`
    says that prompts are messages and not text. What it scores is the reward: `lowest` at least, and right from
    `correct_at` on. None, by which it says that it does not apply, is an invalid task. Raises ValueError.
    """

    def __init__(
        self,
        *,
        function: str,
        columns: Sequence[str] = (),
        conversational: bool = False,
        lowest: float = 0.0,
        correct_at: float = 1.0,
        seconds: float = 10.0,
        processes: int = 1,
    ) -> None:
        if ":" not in function:
            raise ValueError(f"'function' must be module:attribute or file.py:attribute, not '{function}'")
        super().__init__("reward_function", function, seconds, processes)
        self.columns, self.conversational = tuple(columns), conversational
        self.lowest, self.correct_at = lowest, correct_at

    def check_task(self, task: Task) -> None:
        """Whether the columns are there. Raises ValueError."""
        if missing := [name for name in self.columns if name not in task.payload]:
            raise ValueError(f"task {task.id}: the payload has no '{missing[0]}', which {self._name} asks for")

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """Needs no sandbox. Raises ForeignError."""
        try:
            self.check_task(task)
        except ValueError as error:
            return Verdict(Outcome.INVALID_TASK, detail=str(error))
        prompt: Any = [{"role": message.role, "content": message.content} for message in task.messages]
        completion: Any = [{"role": "assistant", "content": submission.reply}]
        if not self.conversational:
            prompt, completion = "\n".join(message.content for message in task.messages), submission.reply
        columns = {name: task.payload[name] for name in self.columns}
        score = await self.score({"prompt": prompt, "completion": completion, "columns": columns})
        if score is None:
            return Verdict(Outcome.INVALID_TASK, detail=f"task {task.id}: {self._name} does not apply to it")
        if score < self.lowest:
            raise ForeignError(f"{self._name} scored {score:g}, below {self.lowest:g}, which 'lowest' says")
        return Verdict.scored(score, correct=score >= self.correct_at)


class ReasoningGym(_Foreign):
    """Payload: {"entry": one of a reasoning-gym data set}. Its score s from 0 to 1 is the reward 2 s - 1, right at 1.

    What follows the thoughts is the answer; of a reply with `<answer>` in it, what stands in that, once. Some data sets
    evaluate answers as Python: all are scored behind bubblewrap's walls. Raises ValueError where they do not stand.
    """

    lowest = -1.0

    def __init__(self, *, seconds: float = 10.0, processes: int = 1) -> None:
        super().__init__("reasoning_gym", "", seconds, processes, _walls("reasoning_gym"))

    def check_task(self, task: Task) -> None:
        """Refuse a task whose payload has no entry of reasoning-gym. Raises ValueError."""
        entry = task.payload.get("entry")
        metadata = entry.get("metadata") if isinstance(entry, Mapping) else None
        if not isinstance(metadata, Mapping) or not isinstance(metadata.get("source_dataset"), str):
            raise ValueError(f"task {task.id}: the payload needs an 'entry' whose metadata names its 'source_dataset'")

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """Needs no sandbox. Raises ForeignError."""
        try:
            self.check_task(task)
        except ValueError as error:
            return Verdict(Outcome.INVALID_TASK, detail=str(error))
        try:
            answer = _answer(after_thinking(submission.reply, reasoned=asks_to_reason(task.messages)))
        except FormatError as error:
            return Verdict.scored(self.lowest, correct=False, detail=str(error))
        entry = task.payload["entry"]
        allowed = _EVALUATING.get(entry["metadata"]["source_dataset"])
        if allowed is not None and not allowed.fullmatch(answer):
            return Verdict.scored(self.lowest, correct=False, detail="the answer is more than what can be evaluated")
        try:
            score = await self.score({"answer": answer, "entry": entry})
        except TamperedError as error:
            return Verdict(Outcome.TAMPERED, self.lowest, False, str(error))
        except ForeignHungError as error:  # 9**9**9**9, say, which is the answer's doing
            return Verdict.scored(self.lowest, correct=False, detail=str(error))
        if score is None or not 0 <= score <= 1:
            raise ForeignError(f"{self._name} scored {score}, which is not from 0 to 1")
        return Verdict.scored(2 * score - 1, correct=score == 1)


def _answer(text: str) -> str:
    """The text between <answer> tags, or all of it without any. Raises FormatError."""
    parts = text.split("<answer>")
    if len(parts) == 1:
        return text.strip()
    inside = parts[1].split("</answer>")
    if len(parts) > 2 or len(inside) != 2:
        raise FormatError("the reply must have one <answer> that is closed once, or none")
    return inside[0].strip()
