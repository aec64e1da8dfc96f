"""Two packages from the package index with their own tests, one fault each: the repair passes, all else does not."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rollout_workers.sandbox.select import choose
from verifiers.repair import PATCH
from verifiers.sandbox import Sandboxes, SandboxUnavailable
from verifiers.swe import SweVerifier
from verifiers.task import Submission, Task

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(300)]


class Fault(NamedTuple):
    """A line of a package and what it is changed to, and what its tests say of it."""

    package: str
    file: str
    right: str
    wrong: str
    failing: str
    passing: tuple[str, ...]

    @property
    def files(self) -> dict[str, str]:
        """The package with the fault."""
        found = importlib.util.find_spec(self.package)
        if found is None or found.origin is None:
            pytest.skip(f"the package {self.package} is not installed")
        root = Path(found.origin).parent
        files = {str(path.relative_to(root.parent)): path.read_text() for path in sources(root)}
        assert files[self.file].count(self.right) == 1
        files[self.file] = files[self.file].replace(self.right, self.wrong)
        return files

    def patch(self, text: str, line: str) -> str:
        """Put `line` in the place of the fault."""
        lines = text.splitlines()
        at = lines.index(self.wrong)
        context = [f" {one}" for one in lines[at - 2 : at]], [f" {one}" for one in lines[at + 1 : at + 3]]
        body = "\n".join([*context[0], f"-{self.wrong}", f"+{line}", *context[1]])
        return f"--- a/{self.file}\n+++ b/{self.file}\n@@ -{at - 1},5 +{at - 1},5 @@\n{body}\n"


def sources(root: Path) -> Iterator[Path]:
    """What of it is text and imported or read."""
    yield from (path for path in sorted(root.rglob("*")) if path.suffix in (".py", ".txt"))


FAULTS = (
    Fault(
        "mpmath",
        "mpmath/libmp/libintmath.py",
        "        t += 8",
        "        t += 7",
        "mpmath/tests/test_bitwise.py::test_trailing",
        ("mpmath/tests/test_bitwise.py::test_bitcount", "mpmath/tests/test_bitwise.py::test_round_down"),
    ),
    Fault(
        "supervisor",
        "supervisor/datatypes.py",
        "    ss = str(s).lower()",
        "    ss = str(s)",
        "supervisor/tests/test_datatypes.py::BooleanTests::test_returns_true_for_upper_truthy_values",
        ("supervisor/tests/test_datatypes.py::BooleanTests::test_returns_true_for_truthy_values",),
    ),
)


@pytest.fixture
async def sandboxes() -> Sandboxes:
    try:
        return (await choose("bubblewrap"))[0]
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.package)
async def test_the_repair_of_a_real_package_passes_and_others_do_not(fault: Fault, sandboxes: Sandboxes) -> None:
    files = fault.files
    gold = fault.patch(files[fault.file], fault.right)
    payload: dict[str, Any] = {
        "files": files,
        "fail_to_pass": [fault.failing],
        "pass_to_pass": list(fault.passing),
        "patch": gold,
    }
    task = Task("t", "swe", (), "swe", payload=payload)
    verifier = SweVerifier()
    verifier.check_task(task)

    async def grade(patch: str) -> Any:
        return await verifier.verify(task, Submission("", files={PATCH: patch.encode()}), sandboxes)

    repaired = await grade(gold)
    assert (repaired.reward, repaired.correct) == (1.0, True), repaired
    untouched = await grade("--- /dev/null\n+++ b/notes.txt\n@@ -0,0 +1,1 @@\n+nothing\n")
    assert untouched.correct is False
    assert f"1 of {1 + len(fault.passing)} tests failed, {fault.failing} first" in untouched.detail
    broken = await grade(fault.patch(files[fault.file], f"{fault.wrong} if nowhere else 0"))
    assert broken.correct is False
