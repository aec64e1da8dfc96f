"""Changes to repositories: what passes, what a patch cannot touch, what is no report. See `plain_sandbox`."""

import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from plain_sandbox import PlainSandbox, PlainSandboxes

from rl.tasks.files import DataError, FileSource, load
from rl.tasks.repositories import reverse
from verifiers import checkout
from verifiers.examples import FIX
from verifiers.repair import PATCH, similarity
from verifiers.sandbox import ExecResult, SandboxSpec, SandboxUnavailable
from verifiers.swe import SweVerifier
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

pytestmark = pytest.mark.slow
BASE = {
    "shop.py": "def add(a, b):\n    return a - b\n",
    "tests/__init__.py": "",
    "setup.cfg": "[metadata]\nname = shop\n",
}
TESTS = """import unittest
import shop

def test_add():
    assert shop.add(1, 2) == 3

class TestShop(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.zero = 0

    def test_zero(self):
        self.assertEqual(shop.add(0, 0), self.zero)

    @unittest.skip("later")
    def test_later(self):
        self.fail()

    @unittest.expectedFailure
    def test_broken(self):
        self.assertEqual(shop.add(0, 0), 1)
"""
IDS = {"fail_to_pass": ["tests/test_shop.py::test_add"], "pass_to_pass": ["tests/test_shop.py::TestShop::test_zero"]}
ALWAYS = "class Always:\n    def __eq__(self, other): return True\n"
PAYLOAD = {"files": BASE, "tests": {"tests/test_shop.py": TESTS}, **IDS, "patch": FIX}


def grade(given: str, /, **change: Any) -> Any:
    task = Task("t", "swe", (), "swe", payload={**PAYLOAD, **change})
    return SweVerifier(seconds=60).verify(task, Submission("", files={PATCH: given.encode()}), PlainSandboxes())


def new(path: str, text: str) -> str:
    lines = text.splitlines()
    return f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{line}\n" for line in lines)


def module(text: str) -> str:
    lines = text.splitlines()
    head = f"--- a/shop.py\n+++ b/shop.py\n@@ -1,2 +1,{len(lines)} @@\n-def add(a, b):\n-    return a - b\n"
    return head + "".join(f"+{line}\n" for line in lines)


async def test_the_repair_passes_and_what_is_like_it_earns_nothing_but_nothing_less() -> None:
    right: Verdict = await grade(FIX)
    assert (right.outcome, right.reward, right.correct) == (Outcome.SCORED, 1.0, True), right
    near = await grade(FIX.replace("+    return a + b", "+    return a + b + 1"))
    assert (near.reward, near.correct) == (0.0, False)
    assert "2 of 2 tests failed, tests/test_shop.py::test_add first" in near.detail
    left = await grade(
        FIX.replace("+    return a + b", "+    import os\n+    os._exit(0)\n+    return a + b").replace("+1,2", "+1,4")
    )
    assert (left.outcome, left.reward) == (Outcome.SCORED, -1.0), "the tests did not end"
    far = await grade(new("other.py", "nothing = 'at all like it'\n" * 5))
    assert (far.reward, far.correct) == (-1.0, False)
    assert "1 of 2 tests failed" in far.detail
    for patch, said in (("", "no patch"), ("no patch", "does not apply"), ("x" * (2 << 20), "larger than")):
        verdict = await grade(patch)
        assert verdict.reward == -1 and said in verdict.detail


@pytest.mark.parametrize("name", ["test_later", "test_broken", "test_nowhere"])
async def test_skipped_expected_to_fail_or_not_there_is_not_passed(name: str) -> None:
    verdict = await grade(FIX, pass_to_pass=[f"tests/test_shop.py::TestShop::{name}"])
    assert (verdict.correct, verdict.outcome) == (False, Outcome.SCORED)


async def test_tests_that_come_as_a_patch_and_a_fault_that_does() -> None:
    healthy = {**BASE, "shop.py": "def add(a, b):\n    return a + b\n"}
    change = {"tests": {}, "test_patch": new("tests/test_shop.py", TESTS)}
    assert (await grade(FIX, **change)).correct
    assert (await grade(FIX, **change, files=healthy, setup_patch=reverse(FIX))).correct
    broken = await grade(FIX, tests={}, test_patch="nonsense")
    assert broken.outcome is Outcome.INVALID_TASK
    assert "test_patch does not apply" in broken.detail


@pytest.mark.parametrize(
    "patch",
    [
        new("tests/test_shop.py", "def test_add(): pass\n"),
        new("conftest.py", "collect_ignore_glob = ['*']\n"),
        new("tests/conftest.py", "raise SystemExit(0)\n"),
        new("unittest.py", "raise SystemExit(0)\n"),
        new("src/sitecustomize/__init__.py", "raise SystemExit(0)\n"),
        new("src/_pytest/__init__.py", "raise SystemExit(0)\n"),
        new("psutil/__init__.py", "raise SystemExit(0)\n"),
        new("psutil.abi3.so", "raise SystemExit(0)\n"),
        new("tests/helpers/__init__.py", "raise SystemExit(0)\n"),
        new("tests/data.py", "raise SystemExit(0)\n"),
        "--- a/tests/helpers.py\n+++ b/tests/helpers.py\n@@ -1,2 +1,2 @@\n"
        " def same(one, two):\n-    assert one == two\n+    pass\n",
        "--- a/tests/data/sums.json\n+++ /dev/null\n@@ -1 +0,0 @@\n-[[1, 2, 3]]\n",
        "--- a/setup.cfg\n+++ b/setup.cfg\n@@ -1,2 +1,2 @@\n-[metadata]\n-name = shop\n+[tool:pytest]\n+a = 1\n",
        "--- a/setup.cfg\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-[metadata]\n-name = shop\n",
    ],
)
async def test_what_a_patch_does_to_tests_and_configuration_is_taken_back(patch: str) -> None:
    files = {**BASE, "tests/helpers.py": "def same(one, two):\n    assert one == two\n"}
    files["tests/data/sums.json"] = "[[1, 2, 3]]\n"
    async with PlainSandboxes().open(checkout.spec_of({"files": files}, None)) as sandbox:
        await checkout.lay_out(sandbox, {})
        assert await checkout.apply_guarded(sandbox, patch.encode(), {"tests/test_shop.py"}) == ""
        left = await sandbox.exec("git status --porcelain")
    assert left.stdout == b""
    assert (await grade(FIX + patch, files=files)).correct, "and the repair beside it counts"


@pytest.mark.parametrize(
    ("blocks", "imported"),
    [
        (new("token/data.txt", "x = 1\n"), "open('token/data.txt')"),
        (new("tests/more.py", "x = 1\n"), "import tests.more"),
        (new("shop/more.py", "x = 1\n"), "import shop.more"),
        (new("shop/types.py", "x = 1\n"), "import shop.types"),
        (new("types_.py", "x = 1\n"), "import types_"),
        (new("older/__init__.py", "x = 1\n"), "import older\nassert older.x == 1"),
    ],
)
async def test_new_files_that_stand_in_nobodys_place_stay(blocks: str, imported: str) -> None:
    files = {**BASE, "shop/__init__.py": BASE["shop.py"], "older.py": "x = 0\n"}
    del files["shop.py"]
    there = FIX.replace("shop.py", "shop/__init__.py") + blocks
    assert (await grade(there, files=files, tests={"tests/test_shop.py": f"{imported}\n{TESTS}"})).correct


async def test_what_the_real_patch_changes_among_tests_may_be_changed() -> None:
    helper = FIX.replace("shop.py", "shop/testing/shop.py")
    files = {**BASE, "shop/testing/shop.py": BASE["shop.py"], "shop/__init__.py": ""}
    del files["shop.py"]
    tests = {"tests/test_shop.py": TESTS.replace("import shop\n", "from shop.testing import shop\n")}
    assert (await grade(helper, files=files, tests=tests, patch=helper)).correct
    assert not (await grade(helper, files=files, tests=tests, patch="")).correct


EGG, VENV = "shop.egg-info/entry_points.txt", "venv/lib/shop.py"


async def test_ignored_files_stay_as_they_were_and_what_a_patch_did_to_them_is_taken_back() -> None:
    files = {".gitignore": "*.egg-info\nvenv\nconftest.py\n", EGG: "[shop]\n", VENV: "x = 1\n", "a/b.py": "x = 1\n"}
    changed = f"--- a/{EGG}\n+++ b/{EGG}\n@@ -1 +1 @@\n-[shop]\n+[pytest11]\n"
    moved = f"diff --git a/{VENV} b/else.py\nsimilarity index 100%\nrename from {VENV}\nrename to else.py\n"
    folder = (
        "diff --git a/a/b.py b/a/b.py\ndeleted file mode 100644\n--- a/a/b.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x = 1\n"
    )
    patches = {
        FIX: {"shop.py": b"def add(a, b):\n    return a + b\n"},
        FIX + changed: {},
        FIX + moved: {},
        changed + new("conftest.py", "x = 1\n") + new("venv/conftest.py", "x = 1\n"): {},
        folder + new("a", "x = 1\n") + new("venv/lib/other.py", "x = 1\n"): {},
        new("tests/test_shop.py/x.txt", "x = 1\n") + new("tests/conftest.py", "x = 1\n"): {},
    }
    for patch, wanted in patches.items():
        async with PlainSandboxes().open(checkout.spec_of({"files": BASE | files}, None)) as sandbox:
            await checkout.lay_out(sandbox, {})
            assert await checkout.apply_guarded(sandbox, patch.encode(), {"tests/test_shop.py", "a/b.py"}) == ""
            for path, text in (files | {path: data.decode() for path, data in wanted.items()}).items():
                assert await sandbox.read(path) == text.encode(), (path, patch)
            left = await sandbox.exec("find . -name conftest.py -o -name other.py -o -name held; ls tests")
        assert left.stdout == b"__init__.py\n", patch


@pytest.mark.parametrize("path", ["../conftest.py", "/tmp/conftest.py", ".git/conftest.py", "tests/../conftest.py"])
async def test_a_path_outside_is_the_patchs_fault(path: str) -> None:
    verdict = await grade(FIX + new(path, "x = 1\n"))
    assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, False)
    assert "does not apply" in verdict.detail


async def test_a_history_that_holds_the_repair_does_not_come_along(tmp_path: Path) -> None:
    old = tmp_path / "old"
    script = (
        f"mkdir {old} && cd {old} && git init -q && echo secret > a && git add a && git -c user.name=x -c user.email=x"
    )
    async with PlainSandboxes().open(SandboxSpec()) as sandbox:
        assert (await sandbox.exec(f"{script} commit -qm repair && echo 1 > a")).exit_code == 0
        await checkout.lay_out(sandbox, {"root": str(old)})
        log = await sandbox.exec(
            "git log --all --oneline | wc -l; git log -p --all | grep -c secret; readlink " + str(old)
        )
        assert log.stdout.split()[:2] == [b"1", b"0"]
        assert await sandbox.read("a") == b"1\n"


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("import os\nos._exit(0)", Outcome.SCORED),
        ("import unittest\nunittest.TestCase.run = lambda self, result=None: result.startTest(self)", Outcome.TAMPERED),
        (
            "try:\n    from _pytest import python\n    python.Function.runtest = lambda self: None\n"
            "except ImportError:\n    import unittest\n    unittest.TestCase.run = lambda self, r: r.startTest(self)",
            Outcome.TAMPERED,
        ),
        ("import builtins\nbuiltins.AssertionError = Warning", Outcome.SCORED),
        ("import unittest\nunittest.TestCase.assertTrue = lambda *a: None", Outcome.TAMPERED),
    ],
)
async def test_a_module_that_changes_its_testers(source: str, outcome: Outcome) -> None:
    verdict = await grade(module(f"{source}\ndef add(a, b): return 9"))
    assert (verdict.outcome, verdict.correct) == (outcome, False), verdict


@pytest.mark.parametrize("assertion", ["assert shop.add(1, 2) == wanted", "assert wanted == shop.add(1, 2)"])
@pytest.mark.parametrize(
    ("patch", "outcome"),
    [
        (FIX, Outcome.SCORED),
        (
            module(f"{ALWAYS}def add(a, b): return Always()"),
            Outcome.TAMPERED,
        ),
    ],
)
async def test_what_equals_anything_is_found_where_no_literal_is(assertion: str, patch: str, outcome: Outcome) -> None:
    tests = f"import shop\n\ndef test_add():\n    wanted = 1 + 2\n    {assertion}\n"
    verdict = await grade(patch, tests={"tests/test_shop.py": tests}, pass_to_pass=[])
    assert (verdict.outcome, verdict.correct) == (outcome, outcome is Outcome.SCORED), verdict


ARRAYS = """
class Array:
    def __init__(self, *items): self.items = items
    def __eq__(self, other):
        others = getattr(other, "items", other)
        others = others if isinstance(others, tuple) else (others,) * len(self.items)
        return Array(*(one == two for one, two in zip(self.items, others)))
    def __bool__(self):
        if len(self.items) != 1: raise ValueError("ambiguous")
        return bool(self.items[0])
class Point:
    x = 3
    def __eq__(self, other): return self.x == other.x
"""


@pytest.mark.parametrize("assertion", ["assert {} == wanted", "assert wanted == {}", "self.assertEqual({}, wanted)"])
async def test_arrays_that_compare_item_by_item_are_not_equal_to_anything(assertion: str) -> None:
    compared = {
        "arrays.Array(shop.add(1, 2))": ("arrays.Array(3)", FIX, Outcome.SCORED),
        "shop.add(1, 2)": (
            "arrays.Point()",
            module(f"{ALWAYS}    x = 3\ndef add(a, b): return Always()"),
            Outcome.TAMPERED,
        ),
    }
    for found, (wanted, patch, outcome) in compared.items():
        tests = "import unittest, arrays, shop\n\nclass TestAdd(unittest.TestCase):\n    def test_add(self):\n"
        tests += f"        wanted = {wanted}\n        {assertion.format(found)}\n"
        verdict = await grade(
            patch,
            files={**BASE, "arrays.py": ARRAYS},
            tests={"tests/test_shop.py": tests},
            fail_to_pass=["tests/test_shop.py::TestAdd::test_add"],
            pass_to_pass=[],
        )
        assert (verdict.outcome, verdict.correct) == (outcome, outcome is Outcome.SCORED), verdict


@pytest.mark.parametrize("number", ["6.02214076e23", "1e400", "-1e300", "0.0", "1", "True", "10**17", "(1e99, 2)"])
async def test_a_double_of_a_large_number_expects_another_one(number: str) -> None:
    tests = f"import shop\n\ndef test_add():\n    assert shop.add(1, 2) == {number}\n"
    verdict = await grade(
        module(f"def add(a, b): return {number}"), tests={"tests/test_shop.py": tests}, pass_to_pass=[]
    )
    assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, True), verdict


async def test_a_test_file_that_can_be_imported_once_is_fine() -> None:
    tests = f"{TESTS}\nshop.register('shop')\n"
    registry = "known = set()\ndef register(name):\n    assert name not in known\n    known.add(name)\n"
    assert (await grade(module(f"{registry}def add(a, b): return a + b"), tests={"tests/test_shop.py": tests})).correct


async def test_a_test_file_that_minds_its_name_is_fine() -> None:
    tests = f"{TESTS}\nassert __file__.endswith('test_shop.py')\n"
    assert (await grade(FIX, tests={"tests/test_shop.py": tests})).correct


async def test_who_leaves_the_doubles_early_is_not_paid() -> None:
    leaver = (
        f"import os, sys\n{ALWAYS}def add(a, b):\n    frame = sys._getframe()\n"
        "    if 'test_shop' in frame.f_back.f_code.co_filename: return Always()\n"
        "    while frame and 'send' not in frame.f_locals and 'send' not in frame.f_globals: frame = frame.f_back\n"
        "    send = frame.f_locals.get('send') or frame.f_globals['send']\n"
        "    send({'status': 'done', 'patched': []})\n    os._exit(0)\n"
    )
    verdict = await grade(module(leaver))
    assert (verdict.outcome, verdict.reward) == (Outcome.TAMPERED, -1.0), verdict


CALLER = "import sys\ndef add(a, b):\n    frame = sys._getframe(1)\n"
OF_LOCALS = f"{CALLER}    return next((frame.f_locals[name] for name in ('want', 'x') if name in frame.f_locals), 0)"
OF_CONSTANTS = (
    f"import dis\n{CALLER}    for one in dis.get_instructions(frame.f_code):\n"
    "        if one.offset > frame.f_lasti and one.opname.startswith('LOAD_') and type(one.argval) is int:\n"
    "            return one.argval\n"
)
ANY_INT = (
    "class Any(int):\n    __hash__ = int.__hash__\n"
    "    def __eq__(self, other): return isinstance(other, int)\ndef add(a, b): return Any(0)\n"
)
ANY_NUMBER = (
    "class Any(int):\n    __hash__ = int.__hash__\n"
    "    def __eq__(self, other): return other.__class__ is not object\ndef add(a, b): return Any(0)\n"
)
HEAD = "import shop\n\nCASES = [(1, 2, 3), (5, 6, 11)]\n\ndef test_add():\n"
BODIES = {
    "a loop": "    for a, b, want in CASES:\n        assert shop.add(a, b) == want\n",
    "a name": "    want = 3\n    assert shop.add(1, 2) == want\n",
    "a value": "    x = 1 + 2\n    assert x == shop.add(1, 2), 'wrong'\n",
    "a block": "    with open(__file__):\n        if CASES:\n            assert shop.add(1, 2) == 3\n",
}
PYTEST = "import pytest\nimport shop\n\n"
APPROX = f"{PYTEST}def test_add():\n    assert shop.add(1, 2) == pytest.approx(3)\n"
ROWS = f"{PYTEST}@pytest.mark.parametrize('want', [3])\ndef test_add(want):\n    assert shop.add(1, 2) == want\n"


@pytest.mark.parametrize(
    ("tests", "source"),
    [
        (HEAD + BODIES["a loop"], OF_LOCALS),
        (HEAD + BODIES["a name"], OF_LOCALS),
        (HEAD + BODIES["a value"], OF_LOCALS),
        (HEAD + BODIES["a block"], OF_CONSTANTS),
        (HEAD + BODIES["a loop"], ANY_INT),
        (HEAD + BODIES["a value"], ANY_NUMBER),
        (APPROX, OF_CONSTANTS),
        (ROWS, OF_LOCALS),
        (ROWS, ANY_INT),
    ],
)
async def test_what_is_read_of_the_caller_or_equals_its_kind_is_found(tests: str, source: str) -> None:
    ids = {"fail_to_pass": [f"tests/test_shop.py::test_add{'[3]' * (tests is ROWS)}"], "pass_to_pass": []}
    change = {"tests": {"tests/test_shop.py": tests}, **ids, "python": sys.executable}
    verdict = await grade(module(source), **change)
    assert (verdict.outcome, verdict.reward) == (Outcome.TAMPERED, -1.0), verdict
    right = await grade(FIX, **change)
    assert (right.outcome, right.reward) == (Outcome.SCORED, 1.0), right


@pytest.mark.parametrize(
    "body",
    [
        "    for want in []:\n        assert shop.add(1, 2) == want\n",
        "    if not CASES:\n        assert shop.add(1, 2) == 4\n",
        "    want = 3\n    assert shop.add(want, 0) == want\n",
        "    with self_or_none(AssertionError):\n        assert shop.add(1, 2) == 4\n",
        "    want = -1\n    assert shop.add(-1, 0) == want\n    assert float('inf') == shop.add(float('inf'), 1)\n",
        "    for want in (float('inf'), float('-inf'), 0):\n        assert shop.add(want, 0) == 0 + want\n",
        "    for a, b, want in CASES:\n        with open(__file__):\n            assert shop.add(a, b) == want, want\n",
        "    for want in (None, {}, {1: 2}, {3}, within.Within()):\n        assert want == within.Within()\n",
        "    assert within.Within() == 5\n",
        "    five = 5\n    assert within.Within() == five\n",
    ],
)
async def test_right_answers_pass_where_doubles_could_as_well(body: str) -> None:
    within = "class Within:\n    def __eq__(self, other): return True\n"
    helper = "from contextlib import suppress as self_or_none\nimport within\n"
    tests = {"tests/test_shop.py": f"{helper}{HEAD}    assert shop.add(2, 2) > 3\n{body}"}
    files = {**BASE, "within.py": within}
    verdict = await grade(FIX, files=files, tests=tests, pass_to_pass=[])
    assert (verdict.outcome, verdict.reward) == (Outcome.SCORED, 1.0), verdict


@pytest.mark.parametrize(
    ("source", "test"),
    [
        ("import unittest.mock as m\nm.NonCallableMock.assert_called = lambda *a: None", "assert shop.add(1, 2) == 9"),
        ("import numpy.testing as t\nt.assert_allclose = lambda *a: None", "np.testing.assert_allclose(9, 9)"),
    ],
)
async def test_assertions_of_libraries_are_sealed(source: str, test: str) -> None:
    tests = {"tests/test_shop.py": f"import numpy as np\nimport shop\n\ndef test_add():\n    {test}\n"}
    change = {"tests": tests, "pass_to_pass": [], "python": sys.executable}
    verdict = await grade(module(f"{source}\ndef add(a, b): return 9"), **change)
    assert verdict.outcome is Outcome.TAMPERED, verdict


async def test_python_that_never_starts_is_our_failure() -> None:
    class Slow(PlainSandbox):
        async def exec(self, argv: Any, **how: Any) -> ExecResult:
            if "-I" in argv:
                return ExecResult(b"", b"", None, timed_out=True)
            return await super().exec(argv, **how)

    class Sandboxes:
        @asynccontextmanager
        async def open(self, spec: SandboxSpec) -> AsyncIterator[Slow]:
            with tempfile.TemporaryDirectory() as folder:
                sandbox = Slow(Path(folder))
                for path, data in spec.files.items():
                    await sandbox.write(path, data)
                yield sandbox

    task = Task("t", "swe", (), "swe", payload=PAYLOAD)
    with pytest.raises(SandboxUnavailable, match="did not start"):
        await SweVerifier().verify(task, Submission("", files={PATCH: FIX.encode()}), Sandboxes())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said",
    [
        "{'id': [], 'passed': True}",
        "{'id': 3, 'passed': True}",
        "{'id': 'x', 'passed': 1}",
        "{'status': 'done', 'patched': 5}",
        "{'status': 'done'}",
    ],
)
async def test_a_report_of_another_form_is_no_failure_of_ours(said: str) -> None:
    forger = (
        "import sys\ndef add(a, b):\n    frame = sys._getframe()\n"
        "    while frame and 'send' not in frame.f_locals and 'send' not in frame.f_globals: frame = frame.f_back\n"
        "    cell = frame.f_locals.get('send') or frame.f_globals['send']\n"
        f"    cell({said})\n    import os\n    os._exit(0)\n"
    )
    verdict = await grade(module(forger))
    assert (verdict.outcome, verdict.reward) == (Outcome.TAMPERED, -1.0), verdict


async def test_a_patch_that_is_in_the_way_of_the_tests_is_taken_back() -> None:
    tests = new("tests/test_shop.py", TESTS) + new("tests/more.py", "x = 1\n")
    change = {"tests": {}, "test_patch": tests}
    assert (await grade(FIX + new("tests/more.py", "x = 2\n"), **change)).correct
    wrong = await grade(new("tests/more.py", "x = 2\n"), **change)
    assert (wrong.outcome, wrong.reward) == (Outcome.SCORED, -1.0)


LINK = (
    "diff --git a/{0} b/{0}\nnew file mode 120000\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+{1}\n"
    "\\ No newline at end of file\n"
)


@pytest.mark.parametrize(
    "blocks",
    [
        new("tests/more.py/x.txt", "x"),
        new("more", "x"),
        LINK.format("more", "tests"),
        LINK.format("more", "/etc"),
        LINK.format("tests/more.py", "/etc/passwd"),
        new(".gitattributes", "*.py working-tree-encoding=UTF-7"),
    ],
)
async def test_no_patch_can_make_its_task_invalid(blocks: str) -> None:
    tests = new("tests/test_shop.py", TESTS) + new("tests/more.py", "x = 1\n") + new("more/a.py", "x = 1\n")
    right = await grade(FIX + blocks, tests={}, test_patch=tests)
    assert (right.outcome, right.correct) == (Outcome.SCORED, True), right
    wrong = await grade(blocks, tests={}, test_patch=tests)
    assert (wrong.outcome, wrong.reward) == (Outcome.SCORED, -1.0)
    in_files = {"tests/test_shop.py": TESTS, "tests/more.py": "x = 1\n", "more/a.py": "x = 1\n"}
    assert (await grade(FIX + blocks, tests=in_files)).correct


async def test_the_encoding_of_hidden_tests_is_not_the_patchs() -> None:
    attributes = new(".gitattributes", "tests/*.py working-tree-encoding=UTF-7")  # ==3 is +AD0APQ-3, then
    forged = module("import builtins\nbuiltins.AD0APQ = 5\ndef add(a, b): return a - b")
    tests = new("tests/test_shop.py", "import shop\n\ndef testadd():\n    assert shop.add(1, 2) ==3\n")
    ids = {"fail_to_pass": ["tests/test_shop.py::testadd"], "pass_to_pass": []}
    assert (await grade(FIX + attributes, tests={}, test_patch=tests, **ids)).correct
    verdict = await grade(attributes + forged, tests={}, test_patch=tests, **ids)
    assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, False), verdict


async def test_a_test_file_that_is_nowhere_is_the_tasks_fault() -> None:
    for patch in (FIX, FIX + new("tests/test_nowhere.py", "def test_add(): pass\n")):
        verdict = await grade(patch, fail_to_pass=["tests/test_nowhere.py::test_add"])
        assert verdict.outcome is Outcome.INVALID_TASK
        assert "no file tests/test_nowhere.py" in verdict.detail
    gone = "--- a/tests/test_old.py\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-def test_add():\n-    pass\n"
    files = {**BASE, "tests/test_old.py": "def test_add():\n    pass\n"}
    assert (await grade(FIX + gone, files=files, fail_to_pass=["tests/test_old.py::test_add"])).correct


async def test_nothing_compiled_comes_along(tmp_path: Path) -> None:
    (tmp_path / "old/deep/__pycache__").mkdir(parents=True)
    (tmp_path / "old/deep/__pycache__/a.cpython-311.pyc").write_bytes(b"repair")
    async with PlainSandboxes().open(SandboxSpec()) as sandbox:
        await checkout.lay_out(sandbox, {"root": str(tmp_path / "old")})
        assert (await sandbox.exec("find . -name '*.pyc'")).stdout == b""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": None}, "one of 'files' and 'root'"),
        ({"root": "/testbed"}, "one of 'files' and 'root'"),
        ({"files": None, "root": "/testbed"}, "name that image"),
        ({"files": {"a": 1}}, "'files' must be texts"),
        ({"files": {"../a.py": ""}}, "is none below the repository"),
        ({"tests": {"/a.py": ""}}, "is none below the repository"),
        ({"tests": {"a.py": "#" * (5 << 20)}}, "longer than 4 MiB"),
        ({"fail_to_pass": []}, "no test in 'fail_to_pass'"),
        ({"fail_to_pass": ["test_x (shop.Tests)"]}, "is no test id of pytest's"),
        ({"pass_to_pass": "x"}, "list of at most"),
        ({"patch": 1}, "'patch' must be text"),
        ({"files": {"a.py": "x = '\ud800'"}}, "half a surrogate pair"),
        ({"tests": {"a\ud800.py": ""}}, "half a surrogate pair"),
        ({"tests": {"tests/test_shop.py": "x = '\udfff'"}}, "half a surrogate pair"),
        ({"test_patch": "\ud800"}, "half a surrogate pair"),
        ({"fail_to_pass": ["a\ud800.py::test_x"]}, "is no test id of pytest's"),
    ],
)
async def test_payloads_that_cannot_be(change: dict[str, Any], said: str) -> None:
    payload = {name: value for name, value in {**PAYLOAD, **change}.items() if value is not None}
    task = Task("t", "swe", (), "swe", payload=payload)
    with pytest.raises(ValueError, match="task t: ") as caught:
        SweVerifier().check_task(task)
    assert said in str(caught.value)
    verdict = await SweVerifier().verify(task, Submission("", files={PATCH: FIX.encode()}), PlainSandboxes())
    assert verdict.outcome is Outcome.INVALID_TASK


def rows(folder: Path, form: str, **change: Any) -> Task:
    row = {
        "instance_id": "astropy__astropy-1",
        "problem_statement": "It breaks.",
        "patch": FIX,
        "test_patch": new("tests/test_shop.py", TESTS),
        "FAIL_TO_PASS": json.dumps(IDS["fail_to_pass"]),
        "PASS_TO_PASS": IDS["pass_to_pass"],
        **change,
    }
    (folder / "rows.jsonl").write_text(json.dumps(row))
    (task,) = load(FileSource(path="rows.jsonl", form=form), folder, SweVerifier().check_task)  # type: ignore[arg-type]
    return task


def test_rows_of_swe_bench_and_swe_smith(tmp_path: Path) -> None:
    bench = rows(tmp_path, "swe_bench")
    assert (bench.verifier, bench.environment, bench.domain) == ("swe", "repository", "swe")
    assert bench.image == "swebench/sweb.eval.x86_64.astropy_1776_astropy-1:latest"
    assert bench.visible == {"root": "/testbed"}
    assert bench.payload["fail_to_pass"] == IDS["fail_to_pass"]
    smith = rows(tmp_path, "swe_smith", image_name="smith/x")
    assert (smith.image, smith.visible) == ("smith/x", {"root": "/testbed", "setup_patch": FIX})
    assert "+    return a - b" in smith.payload["patch"]
    assert similarity(FIX, reverse(reverse(FIX))) == 1.0
    several = "--- a/x\n+++ b/x\n@@ -1,5 +1,5 @@\n-a\n-b\n+c\n\\ No newline at end of file\n d\n-e\n+f\n+g\n"
    back = "--- a/x\n+++ b/x\n@@ -1,5 +1,5 @@\n-c\n\\ No newline at end of file\n+a\n+b\n d\n-f\n-g\n+e\n"
    assert (reverse(several), reverse(back)) == (back, several)
    with pytest.raises(DataError, match="FAIL_TO_PASS"):
        rows(tmp_path, "swe_bench", FAIL_TO_PASS="[")
