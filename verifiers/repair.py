"""Repairs of a small repository: +1 if the patched module passes its hidden tests, 0 if it does not but the patch is
like the real one, else -1.

Payload: {"files": {path: text}, "module": path, "tests": [rows as in `verifiers.code`], "patch": the real one}. The
patch is applied to the files in a clean sandbox, and the module that comes out is tested there as code answers are:
expected values stay outside.
"""

import asyncio
from difflib import SequenceMatcher
from typing import Any

from verifiers._relay import Budget, Solution, TamperedError
from verifiers.code_tests import parse_call_tests, run_call_tests
from verifiers.sandbox import Sandboxes, SandboxSpec, SandboxUnavailable
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

PATCH = "fix.patch"
"""The submission's file that holds the patch."""
LIKE = 0.5
"""Patch similarity from which on a wrong repair earns 0 (CWM)."""
_PATCH_LIMIT = 1 << 18
COMPARED = 1500
"""Characters of changed lines that are compared, of either side."""


class RepairVerifier:
    """`seconds` for one test, `total_seconds` for twenty, and more for more."""

    lowest = -1.0

    def __init__(self, *, seconds: float = 6.0, total_seconds: float = 60.0) -> None:
        self.seconds = seconds
        self.total_seconds = total_seconds

    def check_task(self, task: Task) -> None:
        """Raises ValueError with one sentence."""
        files, module = task.payload.get("files"), task.payload.get("module")
        if not (isinstance(files, dict) and all(isinstance(text, str) for text in files.values())):
            raise ValueError(f"task {task.id}: the payload of a repair task needs 'files', texts by path")
        if not isinstance(module, str) or module not in files:
            raise ValueError(f"task {task.id}: 'module' must be one of the files, not {module!r:.80}")
        if not isinstance(task.payload.get("patch", ""), str):
            raise ValueError(f"task {task.id}: 'patch' must be text, if it is there")
        try:
            parse_call_tests(task.payload.get("tests"))
        except ValueError as error:
            raise ValueError(f"task {task.id}: {error}") from error

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """Score one patch in a sandbox of its own. Raises SandboxError."""
        try:
            self.check_task(task)
        except ValueError as error:
            return Verdict(Outcome.INVALID_TASK, detail=str(error))
        patch = submission.files.get(PATCH, b"")
        if not patch.strip():
            return Verdict.scored(-1.0, correct=False, detail="no patch was submitted")
        if len(patch) > _PATCH_LIMIT:
            return Verdict.scored(-1.0, correct=False, detail=f"the patch is larger than {_PATCH_LIMIT} bytes")
        try:
            problem = await self._problem(task, patch, sandboxes)
        except TamperedError as error:
            return Verdict(Outcome.TAMPERED, self.lowest, False, str(error))
        if not problem:
            return Verdict.scored(1.0, correct=True)
        gold = str(task.payload.get("patch", ""))
        alike = await asyncio.to_thread(similarity, patch.decode(errors="replace"), gold)
        return Verdict.scored(0.0 if alike >= LIKE else -1.0, correct=False, detail=problem)

    async def _problem(self, task: Task, patch: bytes, sandboxes: Sandboxes) -> str:
        """What is wrong with the patch; empty if nothing. Raises TamperedError, SandboxError."""
        payload: Any = task.payload
        files = {path: text.encode() for path, text in payload["files"].items()}
        async with sandboxes.open(SandboxSpec(image=task.image, files=files)) as sandbox:
            applied = await sandbox.exec(["git", "apply", "-"], stdin=patch, timeout=self.seconds)
            if applied.exit_code in (126, 127):
                raise SandboxUnavailable("there is no git in the sandbox to apply a patch with")
            if applied.exit_code != 0:
                return f"the patch does not apply: {applied.stderr.decode(errors='replace').strip()[:200]}"
            try:
                source = (await sandbox.read(payload["module"])).decode()
            except (FileNotFoundError, ValueError) as error:
                return f"the patch leaves no {payload['module']}: {error}"
            tests = parse_call_tests(payload["tests"])
            budget = Budget.of(self.seconds, self.total_seconds, len(tests))
            results = await run_call_tests(sandbox, Solution(source), tests, budget, fresh=True, stop=True)
        if results[-1].passed:
            return ""
        return f"hidden test {len(results)} failed: {results[-1].error or 'wrong result'}"


def similarity(patch: str, gold: str) -> float:
    """How alike two patches are, 0 to 1: the ratio of their new lines' matching characters, of so many at most.

    The time grows with their product and worse, to 1.5 s: not for an event loop. 0 where one of them changes nothing.
    """
    ours, real = _changes(patch)[:COMPARED], _changes(gold)[:COMPARED]
    return SequenceMatcher(None, ours, real, autojunk=False).ratio() if ours and real else 0.0


def _changes(patch: str) -> str:
    """Lines that are put in, less those that are taken out as well: who takes out alone repairs nothing."""
    lines = [line for line in patch[:20_000].splitlines() if line[:3] not in ("+++", "---")]
    gone = {_bare(line) for line in lines if line[:1] == "-"}
    return "\n".join(line for line in lines if line[:1] == "+" and _bare(line) not in gone)


def _bare(line: str) -> str:
    return line[1:].partition("#")[0].strip()
