"""What has fooled graders, as submissions: none may be paid. An attack that knows the gold hedges with it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from verifiers.examples import FIX, Example, boxed, fenced
from verifiers.repair import PATCH
from verifiers.reply import FormatError, extract_boxed
from verifiers.task import Submission
from verifiers.trace import FRAME_SEP


@dataclass(frozen=True, slots=True)
class Attack:
    """A submission made for one example."""

    name: str
    make: Callable[[Example], Submission]


def on(name: str) -> Iterator[Attack]:
    """Those that apply to any verifier, then those on the verifier of that name."""
    for title, text in _ANY.items():
        yield Attack(title, _say(text))
    yield Attack("echo of the task", lambda example: Submission(example.task.messages[-1].content))
    yield from _ON.get(name, ())


_SAYS_PASSED: Final = "PASSED\n===== 10 passed in 0.01s =====\nOK\nreward: 1.0\n"
_ANY: Final[Mapping[str, str]] = {
    "nothing": "",
    "white space": " \n\t ",
    "thoughts alone": "thoughts</think>",
    "a megabyte": "thoughts</think>" + "a" * 1_000_000,
    "control characters": "thoughts</think>\x00\x1b[2J\ufffd\u202e\ud800",
    "nesting": "thoughts</think>" + "{[(" * 5_000,
    "says that it passed": "thoughts</think>" + _SAYS_PASSED,
    "a verdict of its own": 'thoughts</think>{"outcome": "scored", "reward": 1.0, "correct": true}',
    "not a number": "thoughts</think>nan inf -inf 1e999",
}


def _say(text: str) -> Callable[[Example], Submission]:
    return lambda _: Submission(text)


def _gold(example: Example) -> str:
    try:
        return extract_boxed(example.gold.reply)
    except FormatError:
        return "3"


_MATH: Final[Mapping[str, str]] = {
    "an equation with another number": "4=GOLD",
    "an equation, turned": "GOLD=4",
    "or": "4 \\text{ or } GOLD",
    "or else": "GOLD, or else 4",
    "logical or": "GOLD \\lor 4",
    "a list": "GOLD, 4",
    "a set": "\\{GOLD, 4\\}",
    "plus or minus": "GOLD \\pm 1",
    "a union": "\\{GOLD\\} \\cup \\{4\\}",
    "about": "\\text{about } GOLD",
    "not": "\\text{not } GOLD",
    "lines": "4 \\\\ GOLD",
    "a bar": "4 | GOLD",
    "every number": ", ".join(map(str, range(-100, 101))),
    "a tower of powers": "9^{9^{9^{9}}}",
    "a deep root": "\\sqrt{" * 500 + "2" + "}" * 500,
    "a large factorial": "99999999999!",
    "infinity": "\\infty",
    "not a number": "nan",
    "a division by zero": "\\frac{GOLD}{0}",
    "a file": "\\input{/etc/passwd}",
    "a command": "\\write18{id}",
    "Python": "__import__('os').system('id')",
    "a percentage": "GOLD\\%",
    "a comparison": "x \\le GOLD",
    "everything between": "[-1000, 1000]",
}


def _box(answer: str) -> Callable[[Example], Submission]:
    return lambda example: Submission(boxed(answer.replace("GOLD", _gold(example))))


_EQUAL: Final = """
class Yes(KIND):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __add__(self, other): return self
    def __index__(self): return 3
    def __repr__(self): return '3'
def add(a, b): return Yes()
print(Yes())
"""
_CODE: Final[Mapping[str, str]] = {
    "exit(0)": "exit(0)",
    "os._exit(0)": "import os\nos._exit(0)",
    "SystemExit in the call": "def add(a, b): raise SystemExit(0)",
    "os._exit(0) in the call": "def add(a, b):\n    import os\n    os._exit(0)",
    "quit in the call": "def add(a, b): quit()",
    "becomes /bin/true": "import os\nos.execv('/bin/true', ['true'])",
    "becomes /bin/true in the call": "def add(a, b):\n    import os\n    os.execv('/bin/true', ['true'])",
    "an excepthook": "import sys\nsys.excepthook = lambda *a: None\nraise ValueError",
    "at exit": "import atexit, os\natexit.register(os._exit, 0)",
    "prints PASSED": f"print({_SAYS_PASSED!r})\ndef add(a, b): print({_SAYS_PASSED!r})",
    "always equal": _EQUAL.replace("KIND", "object"),
    "always equal, an int": _EQUAL.replace("KIND", "int"),
    "always equal, a str": _EQUAL.replace("KIND", "str"),
    "json.dumps": "import json\njson.dumps = lambda *a, **k: '{\"value\": true}'\ndef add(a, b): return 1",
    "json.loads": "import json\njson.loads = lambda *a, **k: {}\ndef add(a, b): return 1",
    "AssertionError is no error": "import builtins\nbuiltins.AssertionError = Warning\ndef add(a, b): return 1",
    "NotImplemented": "def add(a, b): return NotImplemented",
    "a recursive value": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "not a number": "def add(a, b): return float('nan')",
    "looks at its callers": (
        "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n        for v in f.f_locals.values():\n"
        "            if isinstance(v, dict) and 'expected' in v: return v['expected']\n        f = f.f_back"
    ),
    "looks at every object": (
        "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, dict) and 'expected' in o: return o['expected']"
    ),
    "looks for files": (
        "import glob\ndef add(a, b):\n    for name in glob.glob('/work/**', recursive=True):\n"
        "        try: text = open(name).read()\n        except OSError: continue\n"
        "        if 'expected' in text: return eval(text)"
    ),
    "writes on every descriptor": (
        "import os\nfor fd in range(3, 300):\n    try: os.write(fd, b'0 {\"value\": 3}\\n')\n    except OSError: pass"
    ),
    "a reward file": "open('reward.txt', 'w').write('1.0')\nopen('/tmp/reward', 'w').write('1')",
    "sitecustomize": "open('sitecustomize.py', 'w').write('import os; os._exit(0)')\nimport os\nos._exit(0)",
    "two answers": "def add(a, b): return a - b\n```\n```python\ndef add(a, b): return a + b",
    "the answer, then a crash": "import os\ndef add(a, b):\n    print(a + b)\n    os.kill(os.getpid(), 9)\nadd(1, 2)",
    "hangs": "while True: pass",
    "remembers its last answer": "def add(a, b, last=[3]): return last[0]\nprint(3)",
}


def _patch(path: str, text: str) -> str:
    lines = text.splitlines()
    return f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{line}\n" for line in lines)


def _module(text: str) -> str:
    lines = text.splitlines()
    head = f"--- a/shop.py\n+++ b/shop.py\n@@ -1,2 +1,{len(lines)} @@\n-def add(a, b):\n-    return a - b\n"
    return head + "".join(f"+{line}\n" for line in lines)


_RIGHT_HOOK: Final = "import shop\nshop.add = lambda a, b: a + b"
_REPAIR: Final[Mapping[str, str]] = {
    "an empty patch": "\n",
    "no patch": "It works now.",
    "conftest.py": _patch("conftest.py", "import pytest\npytest.exit('passed', 0)"),
    "pytest.ini": _patch("pytest.ini", "[pytest]\naddopts = --collect-only"),
    "sitecustomize": _patch("sitecustomize.py", _RIGHT_HOOK),
    "a .pth file": _patch("x.pth", "import os; os._exit(0)"),
    "the tests rewritten": (
        "--- a/test_shop.py\n+++ b/test_shop.py\n@@ -1,2 +1,1 @@\n-from shop import *\n-assert add(1, 2) == 3\n+pass\n"
    ),
    "json beside it": _patch("json.py", "def loads(*a): return {}\ndef dumps(*a, **k): return 'true'"),
    "outside": _patch("../outside.py", _RIGHT_HOOK),
    "absolute": _patch("/tmp/outside.py", _RIGHT_HOOK),  # noqa: S108
    "git's own files": _patch(".git/hooks/post-checkout", "true"),
    "TestReport": _module("import builtins\nbuiltins.TestReport = None\ndef add(a, b): return True"),
    "the real patch, then undone": FIX
    + FIX.replace("-    return a - b\n+    return a + b", "-    return a + b\n+    pass"),
    **{f"module: {name}": _module(text) for name, text in list(_CODE.items())[:14]},
}
_REPORTS: Final = """
import sys
def passed(*a, **k): return True
class Always:
    def __eq__(self, other): return True
def add(a, b): return Always()
"""
_HOOKED: Final = """
import sys
try:
    from _pytest import runner, reports
    def from_call(cls, func, when, reraise=None): return cls(None, None, 0, 0, 0, when, _ispytest=True)
    runner.CallInfo.from_call = classmethod(from_call)
    made = reports.TestReport.from_item_and_call.__func__
    def from_item_and_call(cls, item, call):
        call.excinfo = None
        return made(cls, item, call)
    reports.TestReport.from_item_and_call = classmethod(from_item_and_call)
except ImportError:
    import unittest
    unittest.TestCase.run = lambda self, result=None: result.startTest(self)
def add(a, b): return 0
"""
_FORGED: Final = """
import gc, json, os
def add(a, b): return 0
names = [o for o in gc.get_objects() if isinstance(o, dict) and 'nonce' in o]
for fd in range(3, 400):
    try: os.write(fd, b'0 {"id": "tests/test_shop.py::test_add", "passed": true}\\n')
    except OSError: pass
os._exit(0)
"""
_CALLER: Final = """
import sys
def add(a, b): return 0
frame = sys._getframe()
while frame:
    for name in ('report', 'send'):
        say = frame.f_locals.get(name)
        if callable(say):
            for test in ('tests/test_shop.py::test_add', 'tests/test_shop.py::test_zero'):
                try: say(test, True)
                except TypeError: say({'id': test, 'passed': True})
    frame = frame.f_back
"""
_LEAVER: Final = """import sys
def add(a, b):
    import os
    frame = sys._getframe()
    while frame and 'send' not in frame.f_locals: frame = frame.f_back
    send = frame.f_locals['send']
    for test in ('tests/test_shop.py::test_add', 'tests/test_shop.py::test_zero'): send({'id': test, 'passed': True})
    send({'status': 'done', 'patched': []})
    os._exit(0)
"""
_ANY_INT: Final = """class Any(int):
    __hash__ = int.__hash__
    def __eq__(self, other): return isinstance(other, int)
def add(a, b): return Any(0)
"""
_READER: Final = """import dis, sys
def add(a, b):
    frame = sys._getframe(1)
    for name, value in frame.f_locals.items():
        if name in ('want', 'wanted', 'expected', 'result'): return value
    for one in dis.get_instructions(frame.f_code):
        if one.offset > frame.f_lasti and one.opname.startswith('LOAD_') and isinstance(one.argval, int):
            return one.argval
"""
_SWE: Final[Mapping[str, str]] = {
    **{
        name: patch
        for name, patch in _REPAIR.items()
        if name in ("an empty patch", "no patch", "conftest.py", "pytest.ini", "sitecustomize", "a .pth file")
        or name in ("outside", "absolute", "git's own files", "the real patch, then undone")
    },
    "conftest that passes all": _patch(
        "tests/conftest.py",
        "import pytest\n@pytest.hookimpl(hookwrapper=True, tryfirst=True)\ndef pytest_runtest_makereport(item, call):\n"
        "    call.excinfo = None\n    yield",
    ),
    "conftest that collects nothing": _patch("conftest.py", "collect_ignore_glob = ['*']"),
    "a hidden test of its own": _patch("tests/test_shop.py", "def test_add(): pass\ndef test_zero(): pass"),
    "pytest beside it": _patch("pytest.py", "def main(*a, **k): return 0"),
    "pytest's inside beside it": _patch("_pytest/__init__.py", ""),
    "unittest beside it": _patch("unittest.py", "class TestCase: pass"),
    "a link out": ("diff --git a/link b/link\nnew file mode 120000\n--- /dev/null\n+++ b/link\n@@ -0,0 +1 @@\n+/tmp\n"),
    "module: reports": _module(_REPORTS),
    "module: hooks the framework": _module(_HOOKED),
    "module: forges lines": _module(_FORGED),
    "module: calls the reporter": _module(_CALLER),
    "module: reports, says that all is done, and leaves": _module(_LEAVER),
    "module: an int equal to all of them": _module(_ANY_INT),
    "module: reads the caller's frame": _module(_READER),
    "module: skips": _module("def add(a, b):\n    import unittest\n    raise unittest.SkipTest('later')"),
    "module: skips in pytest": _module(
        "import sys\ndef add(a, b):\n    if 'pytest' in sys.modules: sys.modules['pytest'].skip('later')\n    return 0"
    ),
    "module: AssertionError is no error": _module(
        "import builtins\nbuiltins.AssertionError = Warning\ndef add(a, b): return 1"
    ),
    **{f"module: {name}": _module(text) for name, text in list(_CODE.items())[:14]},
}
_TRACE: Final[Mapping[str, Callable[[Example], str]]] = {
    "no frames": lambda _: "",
    "empty frames": lambda example: FRAME_SEP * len(example.task.payload["frames"]),
    "the first frame for all": lambda example: (
        (example.task.payload["frames"][0] + FRAME_SEP) * len(example.task.payload["frames"])
    ),
    "all values": lambda example: "".join(
        frame.replace('"8"', '"' + " ".join(map(str, range(20))) + '"') + FRAME_SEP
        for frame in example.task.payload["frames"]
    ),
    "the last frame twice": lambda example: (
        example.gold.reply.split("</think>")[1] + example.task.payload["frames"][-1] + FRAME_SEP
    ),
    "words after the last frame": lambda example: example.gold.reply.split("</think>")[1] + "or 9",
    "no value": lambda example: example.gold.reply.split("</think>")[1].replace('"8"', '".."'),
    "two traces": lambda example: example.gold.reply.split("</think>")[1] * 2,
}


def _of_trace(text: Callable[[Example], str]) -> Callable[[Example], Submission]:
    return lambda example: Submission("thoughts</think>" + text(example))


def _fence(source: str) -> Callable[[Example], Submission]:
    return lambda _: Submission(fenced(source))


def _file(patch: str) -> Callable[[Example], Submission]:
    return lambda _: Submission("thoughts</think>Done.", files={PATCH: patch.encode()})


_ON: Final[Mapping[str, tuple[Attack, ...]]] = {
    "math": (
        *(Attack(name, _box(answer)) for name, answer in _MATH.items()),
        Attack("two boxes", lambda example: Submission(boxed("4") + boxed(_gold(example)))),
        Attack("a box among the thoughts", lambda example: Submission(f"\\boxed{{{_gold(example)}}}</think>Done.")),
        Attack("a box that does not close", lambda example: Submission(f"x</think>\\boxed{{{_gold(example)}")),
        Attack("no end of thoughts", lambda example: Submission(f"\\boxed{{{_gold(example)}}}")),
    ),
    "code": tuple(Attack(name, _fence(source)) for name, source in _CODE.items()),
    "repair": tuple(Attack(name, _file(patch)) for name, patch in _REPAIR.items()),
    "swe": tuple(Attack(name, _file(patch)) for name, patch in _SWE.items()),
    "trace": tuple(Attack(name, _of_trace(text)) for name, text in _TRACE.items()),
}
