"""Runs inside the sandbox: a repository's own tests, in pytest where it is there, each reported by its id.

Standard input holds {"nonce", "run": test files below the working directory, or ids of tests in them, "go_on": whether
to run the others where a file cannot be imported}. Each line out is `NONCE JSON` on a private copy of standard output:
{"status": "ready"}, then {"id", "passed"} for each test, then {"status": "done", "patched": what of the test framework
is no longer what it was}. A test has passed if its call was made and neither it nor its set-up and tear-down raised
anything; skipped and expected failures have not.

The code under test shares this process and may do anything to it: that is what the canary is for (see `swe`).
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import inspect
import json
import os
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

Report = Callable[[str, bool], None]


def pytest_suite(pytest: Any, run: list[str], report: Report, *, go_on: bool) -> None:
    """By pytest, asked by a hook of ours, which sees what was raised and not what a report makes of it."""
    called: set[str] = set()
    bad: set[str] = set()

    class Listener:
        def pytest_runtest_makereport(self, item: Any, call: Any) -> Iterator[None]:
            yield
            if call.excinfo is not None:
                bad.add(item.nodeid)
            elif call.when == "call":
                called.add(item.nodeid)
            if call.when == "teardown":
                report(item.nodeid, item.nodeid in called - bad)

    pytest.hookimpl(hookwrapper=True, tryfirst=True)(Listener.pytest_runtest_makereport)
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:randomly"]
    options += ["--continue-on-collection-errors"] * go_on
    pytest.main([*options, *run], plugins=[Listener()])


def plain_suite(run: list[str], report: Report) -> None:
    """Functions `test*` without parameters, and cases of unittest, named as pytest names them."""
    for number, file in enumerate(dict.fromkeys(name.partition("::")[0] for name in run)):
        spec = importlib.util.spec_from_file_location(f"suite_{number}", file)
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        folder = os.path.dirname(os.path.abspath(file))
        while os.path.exists(os.path.join(folder, "__init__.py")):  # as pytest has it
            folder = os.path.dirname(folder)
        sys.path.insert(0, folder)
        try:
            spec.loader.exec_module(module)
        except BaseException:  # noqa: BLE001, S112 - its tests are missing, then, which is all there is to say
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and issubclass(value, unittest.TestCase):
                for method in unittest.defaultTestLoader.getTestCaseNames(value):
                    if {file, f"{file}::{name}::{method}"} & {*run}:
                        report(f"{file}::{name}::{method}", _case_passes(value(method)))
            elif not {file, f"{file}::{name}"} & {*run}:
                continue
            elif name.startswith("test") and inspect.isfunction(value) and not inspect.signature(value).parameters:
                report(f"{file}::{name}", _passes(value))


def _passes(function: Callable[[], object]) -> bool:
    try:
        function()
    except BaseException:  # noqa: BLE001 - whatever a test raises, it has not passed
        return False
    return True


def _case_passes(case: unittest.TestCase) -> bool:
    result = unittest.TestResult()
    unittest.TestSuite([case]).run(result)
    excused = (result.skipped, result.expectedFailures, result.unexpectedSuccesses)
    return result.testsRun == 1 and result.wasSuccessful() and not any(excused)


def libraries(run: list[str]) -> list[types.ModuleType]:
    """Modules of assertions that the tests name, of what is installed and is not the repository."""
    text = ""
    for file in dict.fromkeys(name.partition("::")[0] for name in run):
        try:
            with open(file, encoding="utf-8", errors="replace") as opened:
                text += opened.read()
        except OSError:
            continue
    found = []
    for name in ("numpy", "pandas"):
        if name in text and not any(os.path.exists(os.path.join(*folder, name)) for folder in ((), ("src",))):
            try:
                found.append(importlib.import_module(f"{name}.testing"))
            except Exception:  # noqa: BLE001, S112 - it is not there, or not in order, as the tests will say
                continue
    return found


def seals(pytest: Any, modules: list[types.ModuleType]) -> Callable[[], list[str]]:
    """Remember what decides on outcomes; what is called later names what is not the same any more."""
    places: list[tuple[Any, str]] = [
        (owner, name)
        for owner in (unittest.TestCase, unittest.TestResult)
        for name, value in vars(owner).items()
        if inspect.isfunction(value) and not name.startswith(("setUp", "tearDown"))
    ]
    for owner in (mock.NonCallableMock, *modules):
        places += [(owner, name) for name in dir(owner) if name.startswith("assert_")]
    if pytest is not None:
        from _pytest import python, reports, runner

        places += [(runner.CallInfo, "from_call"), (reports.TestReport, "from_item_and_call")]
        places += [
            (pytest, "raises"),
            (type(pytest.raises(KeyError)), "__exit__"),
            (type(pytest.approx(1.0)), "__eq__"),
        ]
        places += [(python.Function, "runtest"), (runner, "call_runtest_hook"), (runner, "pytest_runtest_call")]
    held = [(owner, name, _code(owner, name)) for owner, name in places if hasattr(owner, name)]
    return lambda: [name for owner, name, code in held if _code(owner, name) is not code]


def _code(owner: Any, name: str) -> Any:
    found = getattr(owner, name, None)
    return getattr(getattr(found, "__func__", found), "__code__", None)


def main() -> None:
    """Read the request, hide the channel from ordinary printing, run, leave without running exit hooks."""
    request = json.loads(sys.stdin.buffer.read())
    channel = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 200)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    nonce, owner = request.pop("nonce"), os.getpid()

    def send(said: dict[str, Any]) -> None:
        if os.getpid() != owner:
            os._exit(0)  # a forked process has returned into our code
        line = f"{nonce} {json.dumps(said)}\n".encode()
        while line:
            line = line[os.write(channel, line) :]

    send({"status": "ready"})
    pytest: types.ModuleType | None
    try:
        import pytest  # which the repository may be, or a part of it
    except ImportError:
        pytest = None
    patched = seals(pytest, libraries(request["run"]))
    sys.path[:0] = [folder for folder in (os.getcwd(), os.path.join(os.getcwd(), "src")) if os.path.isdir(folder)]

    def report(name: str, passed: bool) -> None:
        send({"id": name, "passed": passed})

    if pytest is not None:
        pytest_suite(pytest, request["run"], report, go_on=request["go_on"])
    else:
        plain_suite(request["run"], report)
    send({"status": "done", "patched": patched()})
    os._exit(0)


if __name__ == "__main__":
    main()
