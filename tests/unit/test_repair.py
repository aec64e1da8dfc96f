"""Grading of repairs: patches that mend, that nearly mend, and that attack."""

from pathlib import Path
from typing import Any

import pytest
from fakes import NoSandboxes
from plain_sandbox import PlainSandbox, PlainSandboxes

from verifiers.repair import COMPARED, LIKE, PATCH, RepairVerifier, similarity
from verifiers.sandbox import ExecResult, SandboxUnavailable
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

BROKEN = "def double(x):\n    return x * 3\n\n\ndef half(x):\n    return x // 2\n"
HEAD = "diff --git a/shop.py b/shop.py\n--- a/shop.py\n+++ b/shop.py\n"
GOLD = f"{HEAD}@@ -1,5 +1,5 @@\n def double(x):\n-    return x * 3\n+    return x * 2\n \n \n def half(x):\n"
TESTS = [{"call": "double", "args": [k], "expected": 2 * k} for k in (0, 4, 7)]
PAYLOAD: dict[str, Any] = {
    "files": {"shop.py": BROKEN, "test_shop.py": "from shop import *\nassert double(2) == 4\n"},
    "module": "shop.py",
    "tests": TESTS,
    "patch": GOLD,
}
EXPECTED = "EXPECTED-VALUE"
LINK = "120000"
"""Mode of a symbolic link."""


def task(**changes: Any) -> Task:
    return Task("t", "repair", (), "repair", payload=PAYLOAD | changes)


async def grade(patch: str | bytes, *, sandboxes: Any = None) -> Verdict:
    data = patch if isinstance(patch, bytes) else patch.encode()
    submission = Submission("Done.", files={PATCH: data})
    return await RepairVerifier(seconds=1.5).verify(task(), submission, sandboxes or PlainSandboxes())


def body(source: str) -> str:
    """A patch that puts another module in the place of the broken one."""
    old, new = BROKEN.splitlines(), source.splitlines()
    lines = [f"-{line}" for line in old] + [f"+{line}" for line in new]
    return "\n".join([f"{HEAD}@@ -1,{len(old)} +1,{len(new)} @@", *lines, ""])


def new_file(path: str, text: str, mode: str = "100644") -> str:
    head = f"diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n"
    end = "\\ No newline at end of file\n" if mode == LINK else ""
    return f"{head}@@ -0,0 +1 @@\n+{text}\n{end}"


async def test_the_real_patch_is_right() -> None:
    verdict = await grade(GOLD)
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, 1.0, True)
    assert (await grade(GOLD.replace("x * 2", "x + x"))).correct, "another repair is one too"
    assert (await grade(GOLD.replace("diff --git a/shop.py b/shop.py\n", ""))).correct


async def test_a_wrong_patch_like_the_real_one_earns_0() -> None:
    verdict = await grade(GOLD.replace("x * 2", "x * 4"))
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, 0.0, False)
    assert verdict.detail == "hidden test 2 failed: wrong result"


async def test_a_wrong_patch_unlike_the_real_one_earns_the_lowest() -> None:
    verdict = await grade(GOLD.replace("    return x * 2", "\n".join(f"+    y{k} = 'zzz{k}'" for k in range(9))[1:]))
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, -1.0, False)


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ("", "no patch was submitted"),
        (" \n\t\n", "no patch was submitted"),
        ("no patch at all\n", "the patch does not apply"),
        (GOLD.replace("x * 3", "x * 5"), "the patch does not apply"),
        (GOLD.replace("shop.py", "other.py"), "the patch does not apply"),
        (GOLD[:-9], "the patch does not apply"),
        (b"\xff\xfe\x00binary", "the patch does not apply"),
        (GOLD + "x" * (1 << 18), "larger than"),
        (
            "diff --git a/shop.py b/shop.py\ndeleted file mode 100644\n--- a/shop.py\n+++ /dev/null\n@@ -1,6 +0,0 @@\n"
            + "".join(f"-{line}\n" for line in BROKEN.splitlines()),
            "leaves no shop.py",
        ),
        ("diff --git a/shop.py b/math2.py\nrename from shop.py\nrename to math2.py\n", "leaves no shop.py"),
    ],
    ids=["empty", "blank", "prose", "context", "file", "cut", "binary", "huge", "deleted", "renamed"],
)
async def test_a_patch_that_leaves_nothing_to_test_fails(patch: str | bytes, words: str) -> None:
    verdict = await grade(patch)
    assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, False)
    assert verdict.reward in (-1.0, 0.0)
    assert words in verdict.detail


@pytest.mark.parametrize(
    "escape",
    [
        *(new_file(path, "x = 1") for path in ("../escaped.py", "/tmp/escaped.py", "a/../../escaped.py")),
        *(new_file(path, "x = 1") for path in (".git/hooks/pre-commit", ".git/config")),
        new_file("out", "../tmp", LINK) + new_file("out/escaped.py", "x = 1"),
    ],
)
async def test_a_patch_writes_nothing_outside(escape: str, tmp_path: Path) -> None:
    sandbox = PlainSandbox(tmp_path)

    class One(PlainSandboxes):
        """Always the same, so that what was left can be seen."""

        def open(self, spec: Any = None) -> Any:
            return _Kept(sandbox, spec)

    verdict = await grade(escape + GOLD, sandboxes=One())
    assert verdict.correct is False
    assert "does not apply" in verdict.detail
    assert await sandbox.read("shop.py") == BROKEN.encode()
    there = await sandbox.exec(f"ls {tmp_path}/* /tmp/escaped.py 2>/dev/null")
    assert set(there.stdout.decode().split()) - {f"{tmp_path}/tmp:", f"{tmp_path}/work:"} == {
        *("shop.py", "test_shop.py")
    }


class _Kept:
    def __init__(self, sandbox: PlainSandbox, spec: Any) -> None:
        self.sandbox, self.spec = sandbox, spec

    async def __aenter__(self) -> PlainSandbox:
        for path, data in self.spec.files.items():
            await self.sandbox.write(path, data)
        return self.sandbox

    async def __aexit__(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("target", ["/etc/passwd", "test_shop.py", "../tmp"])
async def test_a_link_in_the_modules_place_is_not_followed(target: str) -> None:
    link = (
        "diff --git a/shop.py b/shop.py\ndeleted file mode 100644\n--- a/shop.py\n+++ /dev/null\n@@ -1,6 +0,0 @@\n"
        + "".join(f"-{line}\n" for line in BROKEN.splitlines())
        + new_file("shop.py", target, LINK)
    )
    verdict = await grade(link)
    assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, False)
    assert "leaves no shop.py" in verdict.detail or "does not apply" in verdict.detail
    assert "root:" not in verdict.detail


@pytest.mark.parametrize(
    "extra",
    [
        new_file("test_shop.py2", "x"),
        new_file("conftest.py", "raise SystemExit(0)"),
        new_file("sitecustomize.py", "import os; os._exit(0)"),
        new_file("json.py", "raise ValueError"),
        new_file(PATCH, "what git diff > fix.patch; git add -A leaves"),
        new_file("verifiers.py", "x = 1"),
        new_file("solution.py", "def double(x): return 2 * x"),
        new_file("usercustomize.py", "import os; os._exit(0)"),
    ],
)
async def test_other_files_of_a_patch_change_no_grade(extra: str) -> None:
    assert (await grade(GOLD + extra)).correct is True
    wrong = GOLD.replace("x * 2", "x * 4")
    assert (await grade(wrong + extra)).correct is False


async def test_tests_that_a_patch_rewrites_are_not_the_hidden_ones() -> None:
    head = "diff --git a/test_shop.py b/test_shop.py\n--- a/test_shop.py\n+++ b/test_shop.py\n"
    easy = f"{head}@@ -2 +2 @@\n-assert double(2) == 4\n+assert True\n"
    verdict = await grade(easy)
    assert verdict.correct is False


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "def double(x):\n    import os\n    os._exit(0)",
        "def double(x):\n    raise SystemExit(0)",
        "class Same(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n"
        "def double(x):\n    return Same(-1)",
        "class Same:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return Same()",
        "import json\njson.loads = json.dumps = lambda *a, **k: {'value': 0}\ndef double(x):\n    return 0",
        "import os\nos.write(1, b'PASSED\\n' * 9)\ndef double(x):\n    return 1",
        "import sys\nsys.excepthook = lambda *a: print('passed')\ndef double(x):\n    raise ValueError",
        "def double(x):\n    import sys\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in frame.f_locals.values():\n            if 'expected' in repr(value):\n"
        "                return value\n        frame = frame.f_back\n    return None",
        "def double(x):\n    while True:\n        pass",
        "def double(x):\n    return 'x' * (1 << 26)",
        "import os\ndef double(x):\n    return os.environ",
        "def double(x):\n    return float('nan')",
        "def double(x):\n    return x * 2.0001",
        "x = 1",
        "def double(x:\n",
    ],
)
async def test_code_that_forges_results_is_wrong(source: str) -> None:
    verdict = await grade(body(source))
    assert verdict.outcome in (Outcome.SCORED, Outcome.TAMPERED)
    assert verdict.correct is False
    assert verdict.reward in (-1.0, 0.0)


async def test_lines_forged_into_the_channel_are_tampering() -> None:
    forge = (
        "import os\nfor fd in range(3, 256):\n    try:\n        os.write(fd, b'f00 {\"value\": 0}\\n')\n"
        "    except OSError:\n        pass\ndef double(x):\n    return 2 * x"
    )
    verdict = await grade(body(forge))
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.TAMPERED, -1.0, False)


async def test_expected_values_and_the_real_patch_never_enter_the_sandbox(tmp_path: Path) -> None:
    seen: list[bytes] = []

    class Watched(PlainSandbox):
        """Keeps what is handed in."""

        async def exec(self, argv: Any, **options: Any) -> ExecResult:
            seen.append(repr(argv).encode() + options.get("stdin", b""))
            return await super().exec(argv, **options)

        async def write(self, path: str, data: bytes, *, new: bool = False) -> None:
            seen.append(data)
            await super().write(path, data, new=new)

    class Sandboxes(PlainSandboxes):
        """One that is watched."""

        def open(self, spec: Any = None) -> Any:
            return _Kept(Watched(tmp_path), spec)

    tests = [{"call": "half", "args": [5], "expected": EXPECTED}]
    gold = GOLD.replace("x * 2", "x * 2  # the real one")
    submission = Submission("Done.", files={PATCH: GOLD.encode()})
    verdict = await RepairVerifier().verify(task(tests=tests, patch=gold), submission, Sandboxes())
    assert verdict.correct is False
    assert seen
    assert not any(EXPECTED.encode() in data or b"the real one" in data for data in seen)


async def test_no_sandbox_for_nothing_and_one_of_its_own_for_a_patch() -> None:
    sandboxes = PlainSandboxes()
    await grade("", sandboxes=sandboxes)
    assert sandboxes.opened == 0
    await grade(GOLD, sandboxes=sandboxes)
    assert (sandboxes.opened, sandboxes.open_now) == (1, 0)
    with pytest.raises(SandboxUnavailable):
        await grade(GOLD, sandboxes=NoSandboxes())


async def test_a_sandbox_without_git_is_ours(tmp_path: Path) -> None:
    class Bare(PlainSandbox):
        """Without git."""

        async def exec(self, argv: Any, **_: Any) -> ExecResult:
            return ExecResult(b"", b"git: No such file or directory\n", 127)

    class Sandboxes(PlainSandboxes):
        """Such ones."""

        def open(self, spec: Any = None) -> Any:
            return _Kept(Bare(tmp_path), spec)

    with pytest.raises(SandboxUnavailable, match="there is no git"):
        await grade(GOLD, sandboxes=Sandboxes())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": None}, "needs 'files'"),
        ({"files": {"shop.py": 1}}, "needs 'files'"),
        ({"files": []}, "needs 'files'"),
        ({"module": "other.py"}, "'module' must be one of the files, not 'other.py'"),
        ({"module": None}, "'module' must be one of the files"),
        ({"module": ["shop.py"]}, "'module' must be one of the files"),
        ({"tests": []}, "there are no tests"),
        ({"tests": None}, "there are no tests"),
        ({"tests": [{"call": "double", "args": [1]}]}, "test 0 has no 'expected'"),
        ({"patch": None}, "'patch'"),
    ],
)
async def test_a_broken_task_is_invalid_in_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="task t: ") as caught:
        RepairVerifier().check_task(task(**changes))
    assert words in str(caught.value)
    submission = Submission("Done.", files={PATCH: GOLD.encode()})
    verdict = await RepairVerifier().verify(task(**changes), submission, NoSandboxes())
    assert (verdict.outcome, verdict.reward) == (Outcome.INVALID_TASK, None)


def test_a_whole_task_is_valid() -> None:
    RepairVerifier().check_task(task())


def test_similarity_is_of_changed_lines_alone() -> None:
    assert similarity(GOLD, GOLD) == 1.0
    assert similarity(GOLD.replace(" def double(x):\n", " def other(x):\n"), GOLD) == 1.0
    assert LIKE <= similarity(GOLD.replace("x * 2", "x * 4"), GOLD) < 1.0
    assert similarity("", GOLD) == similarity("", "") == similarity("It works now.", "") == 0.0
    assert similarity("words without changes", GOLD) == 0.0
    idle = "-    return x * 3\n+    return x * 3  # x * 2\n"
    assert similarity(idle, GOLD) == similarity("-    return x * 3\n", GOLD) == 0.0, "nothing is put in"


@pytest.mark.parametrize("line", ["    return x * 2" * 2000, "a", "    return x * 2"])
def test_no_patch_makes_the_comparison_slow(line: str) -> None:
    """Its time grows with the product of what is compared, which is bounded on both sides."""
    patch = f"+{line}\n" * (COMPARED + 9)
    for long, short in (
        (similarity(patch, GOLD), similarity(patch[: COMPARED + 1], GOLD)),
        (similarity(GOLD, patch), similarity(GOLD, patch[: COMPARED + 1])),
    ):
        assert long == short < LIKE
