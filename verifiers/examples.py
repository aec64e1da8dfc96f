"""A few tasks of every built-in verifier with an answer that passes: what conformance and attacks are tried on.

A plug-in shows its own by a method `examples()`, which returns a list of `Example`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from verifiers.registry import Verifier
from verifiers.repair import PATCH
from verifiers.task import Message, Submission, Task
from verifiers.trace import FRAME_SEP


@dataclass(frozen=True, slots=True)
class Example:
    """A task, and a submission that must pass."""

    task: Task
    gold: Submission


def of(name: str, verifier: Verifier) -> Sequence[Example]:
    """Those of a verifier. Raises ValueError where it shows none."""
    own = getattr(verifier, "examples", None)
    try:
        found = own() if own is not None else _BUILT_IN.get(name, ())
    except Exception as error:
        # Foreign code may raise anything here; it is named and passed on, never swallowed.
        raise ValueError(f"examples() of verifier '{name}' fails: {type(error).__name__}: {error}") from error
    if not found or not all(isinstance(one, Example) for one in found):
        raise ValueError(f"verifier '{name}' has no method examples() that returns verifiers.examples.Example objects")
    return tuple(found)


def _task(domain: str, number: int, payload: dict[str, Any], question: str) -> Task:
    messages = (Message("system", "Think up to </think>."), Message("user", question))
    return Task(f"{domain}-example-{number}", domain, messages, domain, payload=payload)


def boxed(answer: str) -> str:
    """A reply that gives `answer` as mathematics wants it: reasoning, then a box."""
    return f"thoughts</think>\nSo it is \\boxed{{{answer}}}."


def fenced(source: str, mark: str = "python") -> str:
    """A reply that gives `source` as code wants it: reasoning, then a fenced block."""
    return f"thoughts</think>\n```{mark}\n{source}\n```"


_GOLDS: Final = ("3", "\\frac{3}{4}", "x^2 + 1", "(1, 2)", "10")
_ADD: Final = "def add(a, b):\n    return a + b"
_TESTS: Final = [
    {"call": "add", "args": [1, 2], "expected": 3},
    {"call": "add", "args": [5], "kwargs": {"b": -5}, "expected": 0},
    {"call": "add", "args": ["a", "b"], "expected": "ab"},
]
_CHECK: Final = "def check(candidate):\n    for k in range(20):\n        assert candidate(k, k + 1) == 2 * k + 1"
_CODE: Final[tuple[tuple[dict[str, Any], str], ...]] = (
    ({"tests": _TESTS}, _ADD),
    ({"check": _CHECK, "entry_point": "add", "prompt": ""}, _ADD),
    (
        {"stdin_tests": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 6\n", "stdout": "11\n"}]},
        "print(sum(map(int, input().split())))",
    ),
    (
        {
            "stdin_tests": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 6\n", "stdout": "11\n"}],
            "checker": "def check(stdin, expected, printed):\n    return printed.split() == expected.split()",
        },
        "print(sum(map(int, input().split())))",
    ),
)
_MODULE: Final = "def add(a, b):\n    return a - b\n"
FIX: Final = "--- a/shop.py\n+++ b/shop.py\n@@ -1,2 +1,2 @@\n def add(a, b):\n-    return a - b\n+    return a + b\n"
_SWE_TESTS: Final = """from shop import add


def test_add():
    assert add(1, 2) == 3


def test_zero():
    assert add(0, 0) == 0
"""
_FRAMES: Final = (
    '<|call_sep|>{"a": "7"}<|action_sep|>def f(a):',
    '<|line_sep|>{"a": ".."}<|action_sep|>    b = a + 1',
    '<|line_sep|>{"a": "..", "b": "8"}<|action_sep|>    return b',
    '<|return_sep|><|action_sep|>    return b<|arg_sep|>"8"',
)

_BUILT_IN: Final[dict[str, tuple[Example, ...]]] = {
    "math": tuple(
        Example(_task("math", at, {"answer": gold}, "How much is it?"), Submission(boxed(gold)))
        for at, gold in enumerate(_GOLDS)
    ),
    "code": tuple(
        Example(_task("code", at, payload, "Write add."), Submission(fenced(source)))
        for at, (payload, source) in enumerate(_CODE)
    ),
    "repair": (
        Example(
            _task(
                "repair",
                0,
                {
                    "files": {"shop.py": _MODULE, "test_shop.py": "from shop import *\nassert add(1, 2) == 3\n"},
                    "module": "shop.py",
                    "tests": _TESTS,
                    "patch": FIX,
                },
                "Repair shop.py.",
            ),
            Submission("thoughts</think>Done.", files={PATCH: FIX.encode()}),
        ),
    ),
    "swe": (
        Example(
            _task(
                "swe",
                0,
                {
                    "files": {"shop.py": _MODULE, "tests/test_old.py": "import shop\n"},
                    "tests": {"tests/test_shop.py": _SWE_TESTS},
                    "fail_to_pass": ["tests/test_shop.py::test_add"],
                    "pass_to_pass": ["tests/test_shop.py::test_zero"],
                    "patch": FIX,
                },
                "Repair shop.py.",
            ),
            Submission("thoughts</think>Done.", files={PATCH: FIX.encode()}),
        ),
    ),
    "trace": (
        Example(
            _task("trace", 0, {"frames": list(_FRAMES)}, "def f(a):\n    b = a + 1\n    return b\nf(7)"),
            Submission("thoughts</think>" + "".join(frame + FRAME_SEP for frame in _FRAMES)),
        ),
    ),
}
