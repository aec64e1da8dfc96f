"""Changes to a repository: +1 if its hidden tests pass, 0 if they run and do not but the patch is like the real one,
else -1 (CWM).

Payload: where it stands, {"files": {path: text}}, or {"root": a directory of the task's image} with an optional
"setup_patch"; its hidden tests, {"tests": {path: text}} or {"test_patch": diff} or none, if they are there already; the
ids that must pass, "fail_to_pass" and "pass_to_pass", as pytest names them; "patch", the real one; and "python", the
interpreter of the image.

The patch is applied in a clean sandbox, what it did to tests and configuration is taken back, and the tests run. They
share a process with what they test, where a report can be forged: every id must be reported once, with a nonce; before
and after them a canary, named after tests, must fail and one must pass; where all pass, doubles of the tests, which lie
at their places and expect something else, must fail in a second clean sandbox, unless they pass with the real patch as
well. It makes forging harder, not impossible.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from verifiers import checkout
from verifiers._doubles import double
from verifiers._relay import TamperedError, lines_of, program
from verifiers.errors import InvalidTaskError
from verifiers.repair import LIKE, PATCH, similarity
from verifiers.sandbox import ExecResult, Sandbox, Sandboxes, SandboxUnavailable
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

OUTPUT_LIMIT: Final = 8 << 20
PATCH_LIMIT: Final = 1 << 20
SOURCE_LIMIT: Final = 4 << 20
"""Bytes of a test file."""
MAX_IDS: Final = 20_000
_CHOICE: Final = secrets.SystemRandom()


class SweVerifier:
    """`seconds` for all tests of one grading."""

    lowest = -1.0

    def __init__(self, *, seconds: float = 90.0) -> None:
        self.seconds = seconds

    def check_task(self, task: Task) -> None:
        """Raises ValueError with one sentence."""
        try:
            _check(task.payload, task.image)
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
        if len(patch) > PATCH_LIMIT:
            return Verdict.scored(-1.0, correct=False, detail=f"the patch is larger than {PATCH_LIMIT} bytes")
        try:
            problem, ended = await self._problem(task, patch, sandboxes)
        except TamperedError as error:
            return Verdict(Outcome.TAMPERED, self.lowest, False, str(error))
        except InvalidTaskError as error:
            return Verdict(Outcome.INVALID_TASK, detail=f"task {task.id}: {error}")
        if not problem:
            return Verdict.scored(1.0, correct=True)
        gold = str(task.payload.get("patch", ""))
        alike = await asyncio.to_thread(similarity, patch.decode(errors="replace"), gold) if ended else 0.0
        return Verdict.scored(0.0 if alike >= LIKE else -1.0, correct=False, detail=problem)

    async def _problem(self, task: Task, patch: bytes, sandboxes: Sandboxes) -> tuple[str, bool]:
        """What is wrong with the patch, empty if nothing, and whether the tests ran to their end with it."""
        payload = task.payload
        expected = [*payload["fail_to_pass"], *payload.get("pass_to_pass", ())]
        async with sandboxes.open(checkout.spec_of(payload, task.image)) as sandbox:
            if problem := await _prepare(sandbox, payload, patch):
                return problem, False
            try:
                canary = await _Canary.put(sandbox, payload["fail_to_pass"])
                doubles = await _Doubles.of(sandbox, payload["fail_to_pass"])
            except (ValueError, FileNotFoundError) as error:
                return f"the patch leaves no place for the tests: {error}", False
            run = [canary.before, *_files(expected), canary.after]
            began = time.monotonic()
            said = _reports(await self._run(sandbox, payload, run, self.seconds))
            left = max(self.seconds / 3, self.seconds - (time.monotonic() - began))
        if (problem := canary.judge(said, expected)) or not doubles.texts:
            return problem, said.done
        # A module that registers what it defines may be imported once; and what ran by now may have changed the files.
        problem, of_doubles = await self._doubled(task, patch, doubles, left, sandboxes)
        if loose := doubles.passed(of_doubles, said):
            gold = str(payload.get("patch", "")).encode()
            of_gold = (await self._doubled(task, gold, doubles, left, sandboxes))[1] if gold.strip() else _Said()
            if loose := [name for name in loose if not of_gold.passed.get(name)]:
                raise TamperedError(f"what {loose[0]} compares is equal to something else, too")
        return problem, of_doubles.done

    async def _doubled(
        self, task: Task, patch: bytes, doubles: "_Doubles", seconds: float, sandboxes: Sandboxes
    ) -> tuple[str, "_Said"]:
        """What is wrong where doubles run with a patch, not counting how they end, and what is reported of them."""
        async with sandboxes.open(checkout.spec_of(task.payload, task.image)) as sandbox:
            if problem := await _prepare(sandbox, task.payload, patch):
                return problem, _Said()
            canary = await _Canary.put(sandbox, task.payload["fail_to_pass"])
            for path, text in doubles.texts.items():
                await sandbox.write(path, text.encode())
            run = [canary.before, *sorted(doubles.texts), canary.after]
            said = _reports(await self._run(sandbox, task.payload, run, seconds, go_on=True))
        return canary.judge(said, ()), said

    async def _run(
        self, sandbox: Sandbox, payload: Mapping[str, Any], run: list[str], seconds: float, *, go_on: bool = False
    ) -> Sequence[Mapping[str, Any]]:
        nonce = secrets.token_hex(16)
        argv = [payload.get("python", "python3"), "-I", "-c", program("_suite")]
        request = json.dumps({"nonce": nonce, "run": run, "go_on": go_on}).encode()
        env = {"PYTHONDONTWRITEBYTECODE": "1"}
        result = await sandbox.exec(argv, stdin=request, env=env, timeout=seconds, output_limit=OUTPUT_LIMIT)
        lines = lines_of(result, nonce)
        if not lines and not result.oom:  # nothing of the patch runs before the first
            raise SandboxUnavailable(f"Python did not start in the sandbox: {result.stderr[-200:]!r}")
        return [*lines, {"ended": _why(result, seconds)}]


@dataclass(frozen=True, slots=True)
class _Said:
    """What a session reported: whether each test passed, and that it ended, or why it did not."""

    passed: Mapping[str, bool] = field(default_factory=dict)
    done: bool = False
    ended: str = ""


def _reports(lines: Sequence[Mapping[str, Any]]) -> _Said:
    """Raises TamperedError."""
    passed: dict[str, bool] = {}
    done: Mapping[str, Any] | None = None
    for line in lines:
        if done is not None and "ended" not in line:
            raise TamperedError("tests were reported after their end")
        if line.get("status") == "done":
            done = line
        elif "id" in line:
            name = line["id"]
            if not isinstance(name, str) or name in passed or not isinstance(line.get("passed"), bool):
                raise TamperedError("a test was reported twice, or by somebody else")
            passed[name] = line["passed"]
    if done is not None and (patched := done.get("patched")) != []:
        raise TamperedError(f"the test framework was changed: {patched!s:.200}")
    return _Said(passed, done is not None, lines[-1]["ended"])


class _Canary:
    """Two files with a test that must fail and one that must pass: one to run before the tests, one after them."""

    def __init__(self, files: Sequence[str], right: str, wrong: str) -> None:
        self.before, self.after = files
        self._rights, self._wrongs = ([f"{file}::{name}" for file in files] for name in (right, wrong))

    @classmethod
    async def put(cls, sandbox: Sandbox, ids: Sequence[str]) -> "_Canary":
        """Next to the tests, so that it is found as those are, and named as they are, so that no name tells it."""
        file = PurePosixPath(ids[0].partition("::")[0])
        a, b = (secrets.randbelow(90) + 10 for _ in range(2))
        names = {name for one in ids if (name := one.partition("::")[2].partition("[")[0]).isidentifier()}
        words = _words(*names, file.stem)
        while len(names) < 2:
            names.add(_named(words))
        right, wrong = _CHOICE.sample(sorted(names), 2)
        tests = [
            f"def {right}():\n    assert {a} * {b} == {a * b}\n",
            f"def {wrong}():\n    assert {a} + {b} == {a * b}\n",
        ]
        _CHOICE.shuffle(tests)
        taken = {PurePosixPath(path).name for path in _files(ids)}
        files: list[str] = []
        while len(files) < 2:
            tried = {file.with_name(f"{_named(words)}.py") for _ in range(8)}
            free = await checkout.missing(sandbox, [str(path) for path in tried if path.name not in taken])
            files = _CHOICE.sample(sorted(free), min(2, len(free)))
            words.append(secrets.token_hex(2))
        for path in files:
            await sandbox.write(path, "\n\n".join(tests).encode())
        return cls(files, right, wrong)

    def judge(self, said: _Said, expected: Sequence[str]) -> str:
        """What is wrong, by what was reported; empty if nothing. Raises TamperedError."""
        passed = said.passed
        if any(map(passed.get, self._wrongs)):
            raise TamperedError("a test that must fail was reported as passed")
        if not said.done:
            return f"the tests did not run to their end: {said.ended}"
        if not all(map(passed.get, self._rights)) or not passed.keys() >= {*self._wrongs}:
            return "the tests cannot be run as they are: one that must pass did not"
        missing = [name for name in expected if name not in passed]
        if missing:
            return f"{len(missing)} of {len(expected)} tests were not run, {missing[0]} first"
        failed = [name for name in expected if not passed[name]]
        return f"{len(failed)} of {len(expected)} tests failed, {failed[0]} first" if failed else ""


@dataclass(frozen=True, slots=True)
class _Doubles:
    """Copies of tests that expect something else: their texts by path, and the ids that do, less parameters.

    They have the tests' places in a sandbox of their own, where nothing of the patch ran before, and only what passes
    its tests gets there.
    """

    texts: Mapping[str, str]
    names: Set[str]

    @classmethod
    async def of(cls, sandbox: Sandbox, ids: Sequence[str]) -> "_Doubles":
        """Of the tests as they lie there. Raises ValueError, FileNotFoundError, SandboxError."""
        texts: dict[str, str] = {}
        changed_names: set[str] = set()
        for path in _files(ids):
            names = {name.partition("::")[2].partition("[")[0] for name in ids if name.startswith(f"{path}::")}
            source = (await sandbox.read(path, limit=SOURCE_LIMIT)).decode(errors="replace")
            text, changed = double(source, names)
            if changed:
                texts[path] = text
                changed_names |= {f"{path}::{name}" for name in changed}
        return cls(texts, changed_names)

    def passed(self, said: _Said, of_tests: _Said) -> list[str]:
        """Which of them passed, as the tests did, by what was reported of both."""
        return [
            name
            for name, passed in said.passed.items()
            if passed and name.partition("[")[0] in self.names and of_tests.passed.get(name)
        ]


async def _prepare(sandbox: Sandbox, payload: Mapping[str, Any], patch: bytes) -> str:
    """Lay the repository out, with the patch and the tests in it; what is wrong with the patch, empty if nothing.

    The task's own faults are found before the patch has a part in anything. Raises InvalidTaskError, SandboxError.
    """
    await checkout.lay_out(sandbox, payload)
    tests, test_patch = payload.get("tests", {}), payload.get("test_patch", "").encode()
    patched: set[str] = set()
    if test_patch:
        try:
            patched = await checkout.paths_of(sandbox, test_patch)
            refused = await checkout.apply(sandbox, test_patch, "--check")
        except ValueError as error:
            refused = str(error)
        if refused:
            raise InvalidTaskError(f"its test_patch does not apply: {refused}")
    there = [path for path in _files(payload["fail_to_pass"]) if path not in tests and path not in patched]
    if missing := await checkout.missing(sandbox, there):
        raise InvalidTaskError(f"there is no file {missing[0]:.80}, which 'fail_to_pass' names")
    ids = [*payload["fail_to_pass"], *payload.get("pass_to_pass", ())]
    try:  # the real patch may change what lies among tests, and others then may as well
        allowed = await checkout.paths_of(sandbox, payload.get("patch", "").encode())
    except ValueError:
        allowed = set()
    hidden, python = {*_files(ids), *tests, *patched}, payload.get("python", "python3")
    if refused := await checkout.apply_guarded(sandbox, patch, hidden, python=python, allowed=allowed):
        return f"the patch does not apply: {refused}"
    try:
        for path, text in tests.items():
            await sandbox.write(path, text.encode())
    except ValueError as error:
        return f"the patch leaves no place for the tests: {error}"
    if test_patch and (refused := await checkout.apply(sandbox, test_patch)):
        return f"the patch leaves no place for the tests: {refused}"
    return ""


def _words(*names: str) -> list[str]:
    """What tests are called by; some words more where that is not enough."""
    found = {word for name in names for word in name.lower().split("_") if word.isalnum()} - {"test", "tests"}
    return [*sorted(found), "more", "basic", "cases", "regressions"]


def _named(words: Sequence[str]) -> str:
    return "_".join(["test", *_CHOICE.sample(words, 2 + _CHOICE.randrange(2))])


def _files(ids: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.partition("::")[0] for name in ids))


def _why(result: ExecResult, seconds: float) -> str:
    if result.timed_out:
        return f"they took longer than {seconds:g} s"
    if result.oom:
        return "out of memory"
    return f"the process ended with exit code {result.exit_code}"


def _check(payload: Mapping[str, Any], image: str | None) -> None:
    files, root = payload.get("files"), payload.get("root")
    if (files is None) == (root is None):
        raise ValueError("the payload of a swe task needs one of 'files' and 'root'")
    if root is not None and (image is None or not isinstance(root, str) or not root.startswith("/")):
        raise ValueError("'root' must be an absolute path in an image, and the task name that image")
    for name in ("files", "tests"):
        found = payload.get(name, {})
        if not (isinstance(found, dict) and all(isinstance(text, str) for text in found.values())):
            raise ValueError(f"'{name}' must be texts by path")
        for path, text in found.items():
            if path.startswith("/") or path in ("", ".") or ".." in PurePosixPath(path).parts or "\0" in path:
                raise ValueError(f"'{name}' has the path {path!r:.80}, which is none below the repository")
            if not _is_unicode(path) or not _is_unicode(text):
                raise ValueError(f"'{name}' has {path!r:.80}, which holds half a surrogate pair: no file can")
            if len(text.encode()) > SOURCE_LIMIT:
                raise ValueError(f"'{name}' has {path:.80}, which is longer than {SOURCE_LIMIT >> 20} MiB")
    for name in ("setup_patch", "test_patch", "patch", "python"):
        if not isinstance(text := payload.get(name, ""), str) or not _is_unicode(text):
            raise ValueError(f"'{name}' must be text, without half a surrogate pair")
    for name in ("fail_to_pass", "pass_to_pass"):
        ids = payload.get(name, [])
        if not isinstance(ids, list) or len(ids) > MAX_IDS or not all(isinstance(one, str) for one in ids):
            raise ValueError(f"'{name}' must be a list of at most {MAX_IDS} test ids")
        if odd := [one for one in ids if ".py::" not in one or one.startswith(("/", "../")) or not _is_unicode(one)]:
            raise ValueError(f"{odd[0]!r:.80} is no test id of pytest's, such as tests/test_a.py::test_b")
    if not payload.get("fail_to_pass"):
        raise ValueError("there is no test in 'fail_to_pass'")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
