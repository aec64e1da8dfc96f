"""`cwm-rl verifier`: begin one, check that it keeps the contract, attack it, and measure it on labelled answers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rl import labelled
from rollout_workers.sandbox.select import Backend, choose
from verifiers import conformance, registry
from verifiers.errors import UserError
from verifiers.registry import Verifier

_PROJECT: Final = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "cwm-rl-{name}"
version = "0.1.0"
description = "A verifier for cwm-rl"
requires-python = ">=3.11"

[project.entry-points."cwm_rl.verifiers"]
{name} = "{module}:{kind}"

[tool.setuptools]
py-modules = ["{module}"]
"""
_MODULE: Final = '''"""Scores whether the reply is the text that the task asks for."""

from verifiers.examples import Example
from verifiers.sandbox import Sandboxes
from verifiers.task import Message, Submission, Task
from verifiers.verdict import Outcome, Verdict


class {kind}:
    """+1 if the reply is the payload's `text`, else -1."""

    lowest = -1.0

    def check_task(self, task: Task) -> None:
        """Called when tasks are loaded."""
        if not isinstance(task.payload.get("text"), str):
            raise ValueError(f"task {{task.id}}: the payload needs a text 'text'")

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """Code of the policy runs in `sandboxes.open()`, never here."""
        try:
            self.check_task(task)
        except ValueError as error:
            return Verdict(Outcome.INVALID_TASK, detail=str(error))
        correct = submission.reply.strip() == task.payload["text"]
        return Verdict.scored(1.0 if correct else -1.0, correct=correct)

    def examples(self) -> list[Example]:
        """A task and an answer that passes: `cwm-rl verifier check {name}` tries everything on them."""
        task = Task("one", "{name}", (Message("user", "Say abc backwards."),), "{name}", payload={{"text": "cba"}})
        return [Example(task, Submission("cba"))]
'''
_TEST: Final = '''"""The contract, and the attacks, on the verifier's own examples."""

import asyncio
from contextlib import asynccontextmanager

from {module} import {kind}
from verifiers import conformance


class NoSandboxes:
    """A verifier that opens none needs none."""

    @asynccontextmanager
    async def open(self, spec=None):
        raise AssertionError("a sandbox was opened")
        yield


def test_it_keeps_the_contract():
    for finding in asyncio.run(conformance.check("{name}", {kind}(), NoSandboxes())):
        assert finding.kept, finding
'''


class VerifierError(UserError):
    """A verifier that cannot be made, found or tried, in a sentence."""


def load(name: str) -> Verifier:
    """The verifier of that name. Raises VerifierError."""
    try:
        return registry.load(name)
    except ValueError as error:
        raise VerifierError(str(error)) from error


def new(name: str, folder: Path) -> Path:
    """Write a package that works, in a directory below `folder`. Raises VerifierError."""
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name):
        raise VerifierError(f"a verifier's name is a to z, 0 to 9 and _, such as my_verifier, not '{name}'")
    if name in registry.targets():
        raise VerifierError(f"there is a verifier '{name}' already")
    module = f"cwm_rl_{name}"
    place = folder / module
    if place.exists():
        raise VerifierError(f"{place} is there already")
    kind = "".join(part.capitalize() for part in (*name.split("_"), "verifier"))
    words = {"name": name, "module": module, "kind": kind}
    place.mkdir(parents=True)
    for file, text in (("pyproject.toml", _PROJECT), (f"{module}.py", _MODULE), (f"test_{module}.py", _TEST)):
        (place / file).write_text(text.format(**words))
    return place


async def check(name: str, backend: Backend) -> list[conformance.Finding]:
    """Every rule of the contract, on the verifier's examples. Raises VerifierError, SandboxUnavailable."""
    verifier = load(name)
    sandboxes, _ = await choose(backend)
    try:
        return await conformance.check(_short(name, verifier), verifier, sandboxes)
    except ValueError as error:
        raise VerifierError(str(error)) from error
    finally:
        await _close(verifier)


async def attack(names: Sequence[str], backend: Backend) -> list[conformance.Tried]:
    """Every attack on every verifier named. Raises VerifierError, SandboxUnavailable."""
    sandboxes, _ = await choose(backend)
    tried: list[conformance.Tried] = []
    for name in names or registry.BUILT_IN:
        verifier = load(name)
        try:
            tried += [one async for one in conformance.attack(_short(name, verifier), verifier, sandboxes)]
        except ValueError as error:
            raise VerifierError(str(error)) from error
        finally:
            await _close(verifier)
    return tried


async def audit(name: str, file: Path, backend: Backend) -> dict[str, Any]:
    """Error rates on labelled answers. Raises VerifierError, DataError, SandboxUnavailable."""
    verifier = load(name)
    sandboxes, _ = await choose(backend)
    try:
        answers = list(labelled.read(file, name))
        if not answers:
            raise VerifierError(f"{file} holds no labelled answer that {name} can grade")
        return await labelled.audit(verifier, sandboxes, answers)
    finally:
        await _close(verifier)


def _short(name: str, verifier: Verifier) -> str:
    """The name that attacks and built-in examples go by."""
    kind = type(verifier)
    built = {target: short for short, target in registry.BUILT_IN.items()}
    return built.get(f"{kind.__module__}:{kind.__qualname__}", name)


async def _close(verifier: Verifier) -> None:
    if (close := getattr(verifier, "aclose", None)) is not None:
        await close()


def attack_table(tried: Sequence[conformance.Tried]) -> str:
    """A line a verifier and attack; what was paid stands out."""
    best: dict[tuple[str, str], conformance.Tried] = {}
    for one in tried:
        known = best.get((one.verifier, one.attack))
        if known is None or one.paid > known.paid:
            best[one.verifier, one.attack] = one
    lines = []
    for one in best.values():
        said = one.detail.splitlines()[0] if one.detail else f"reward {one.reward}"
        lines.append(f"{'PAID' if one.paid else 'refused':8} {one.verifier:8} {one.attack}: {one.outcome}, {said}")
    return "\n".join([*lines, f"{len(tried)} tried, {sum(one.paid for one in tried)} paid"])
