"""`cwm-rl bench verifiers`: gradings and tests a second and core, bare math-verify beside them, and endurance."""

import asyncio
import gc
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

import psutil

from rl.progress import Say
from rollout_workers.sandbox.select import choose
from verifiers.code import CodeVerifier
from verifiers.examples import boxed, fenced
from verifiers.math import MathVerifier
from verifiers.runner import Grader
from verifiers.sandbox import Sandboxes, SandboxUnavailable
from verifiers.task import Message, Submission, Task

GROUP: Final = 8
"""Answers to each gold, as a group of episodes has them."""
HANG: Final = "9^{9^{9^{9}}}"
HANG_SECONDS: Final = 1.0
CALLS: Final = 10
"""Tests of one answer."""
CORES: Final = len(os.sched_getaffinity(0))
MEBI: Final = 1 << 20

Pair = tuple[str, str, bool]
"""A gold, an answer, and whether it is right."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    pairs: int = 1600
    mixed: int = 400
    answers: int = 200
    gradings: int = 100_000


QUICK: Final = Scale(160, 100, 10, 2000)
"""To see whether all of it runs."""


async def bench(scale: Scale, say: Say) -> dict[str, Any]:
    """All of it. Raises SandboxUnavailable where no bubblewrap is; the engine is left out where none answers."""
    say("mathematics …")
    found: dict[str, Any] = {"cores": CORES, "math": await mathematics(scale)}
    for backend in ("bubblewrap", "docker"):
        say(f"code in {backend} …")
        try:
            sandboxes, _ = await choose(backend)
        except SandboxUnavailable:
            if backend == "bubblewrap":
                raise
            continue
        found["code" if backend == "bubblewrap" else f"code_{backend}"] = await code(sandboxes, scale)
    say(f"{scale.gradings:,} gradings in a row …")
    return found | {"endurance": await endurance(scale)}


def pairs(count: int) -> Iterator[Pair]:
    """Golds that take algebra, each with its answers, half of them right."""
    chance = random.Random(0)  # noqa: S311 - no secret
    while True:
        a, b, c = (chance.randint(2, 60) for _ in range(3))
        forms = (
            (f"\\frac{{{a}\\sqrt{{{b}}}}}{{{c}}}", f"{a}\\cdot {b}^{{1/2}}/{c}"),
            (f"{a}x^2+{b}x+{c}", f"{c}+x({a}x+{b})"),
            (f"({a}, \\frac{{{b}}}{{{c}}})", f"\\left({a},\\frac{{{2 * b}}}{{{2 * c}}}\\right)"),
            (f"[{a},{a + b})", f"\\left[{a}, {a + b}\\right)"),
            (f"\\{{{a}, {a + b}, {a + b + c}\\}}", f"\\{{{a + b}, {a + b + c}, {a}\\}}"),
            (f"{a}\\pi", f"\\pi \\cdot {a}"),
        )
        gold, right = chance.choice(forms)
        for k in range(GROUP):
            yield (gold, right, True) if k % 2 else (gold, right.replace(str(a), str(a + 1)), False)
            count -= 1
            if not count:
                return


async def mathematics(scale: Scale) -> dict[str, Any]:
    """Ours, all its processes on one core, and math-verify in this process on the same; then hangs among others."""
    work = list(pairs(scale.pairs))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})  # two that share a core's units would each be slower
    verifier = MathVerifier(processes=1)
    try:
        await verifier.start()
        await _graded(verifier, work[: 4 * GROUP], 2)
        begun = time.monotonic()
        agreed = await _graded(verifier, work, 2)
        ours = len(work) / (time.monotonic() - begun)
        bare = _bare(work)
    finally:
        await verifier.aclose()
        os.sched_setaffinity(0, cores)
    return {
        "gradings_per_s_per_core": ours,
        "bare_per_s_per_core": bare,
        "ratio": ours / bare,
        "agreement": agreed / len(work),
        **await hangs(scale),
    }


async def hangs(scale: Scale) -> dict[str, Any]:
    """One answer in a hundred hangs: by how much the slowest of those outlives its limit, in seconds."""
    verifier = MathVerifier(seconds=HANG_SECONDS, processes=CORES)
    work = iter(
        [(gold, HANG if at % 100 == 50 else answer, at) for at, (gold, answer, _) in enumerate(pairs(scale.mixed))]
    )
    late: list[float] = []

    async def grade() -> None:
        for gold, answer, _ in work:
            begun = time.monotonic()
            await verifier.verify(_math_task(gold), Submission(boxed(answer)), _NoSandboxes)
            if answer == HANG:
                late.append(time.monotonic() - begun - HANG_SECONDS)

    try:
        await verifier.start()
        await asyncio.gather(*(grade() for _ in range(CORES)))
    finally:
        await verifier.aclose()
    return {"hangs": len(late), "hang_late_s": max(late)}


async def _graded(verifier: MathVerifier, work: Sequence[Pair], at_once: int) -> int:
    """How many verdicts are as they should be."""
    turns, agreed = iter(work), 0

    async def grade() -> None:
        nonlocal agreed
        for gold, answer, right in turns:
            verdict = await verifier.verify(_math_task(gold), Submission(boxed(answer)), _NoSandboxes)
            agreed += verdict.correct is right

    await asyncio.gather(*(grade() for _ in range(at_once)))
    return agreed


def _bare(work: Sequence[Pair]) -> float:
    """math-verify as its users call it, gradings a second; its own timeouts, which need the main thread, are off."""
    from math_verify import parse, verify

    def one(gold: str, answer: str) -> bool:
        both = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer))
        return bool(verify(*both, timeout_seconds=None))

    for gold, answer, _ in work[: 4 * GROUP]:
        one(gold, answer)
    begun = time.monotonic()
    for gold, answer, _ in work:
        one(gold, answer)
    return len(work) / (time.monotonic() - begun)


async def code(sandboxes: Sandboxes, scale: Scale) -> dict[str, Any]:
    """Tests of functions and of whole programs; each answer has ten, and a sandbox of its own."""
    calls = {"tests": [{"call": "f", "args": [k], "expected": k * k} for k in range(CALLS)]}
    programs = {"stdin_tests": [{"stdin": f"{k}\n", "stdout": f"{k * k}\n"} for k in range(CALLS)]}
    return {
        "tests_per_s_per_core": await _tests(sandboxes, calls, "def f(x):\n    return x * x", scale.answers),
        "programs_per_s_per_core": await _tests(sandboxes, programs, "print(int(input()) ** 2)", scale.answers // 4),
    }


async def _tests(sandboxes: Sandboxes, payload: dict[str, Any], source: str, answers: int) -> float:
    verifier, submission = CodeVerifier(), Submission(fenced(source))
    task = Task("bench", "code", (Message("system", "Think up to </think>."),), "code", payload=payload)
    turns = iter(range(answers))

    async def grade() -> None:
        for _ in turns:
            verdict = await verifier.verify(task, submission, sandboxes)
            if not verdict.correct:
                raise SandboxUnavailable(f"a right answer was not accepted: {verdict.detail}")

    begun = time.monotonic()
    await asyncio.gather(*(grade() for _ in range(2 * CORES)))
    return answers * CALLS / (time.monotonic() - begun) / CORES


async def endurance(scale: Scale) -> dict[str, Any]:
    """Memory after a tenth of the gradings and at their end, in MiB, and processes that are left."""
    verifier = MathVerifier(processes=CORES)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    numbers = ((str(k), str(k + k % 2), k % 2 == 0) for k in range(997))
    work = islice(cycle([pair for some in zip(pairs(997), numbers, strict=True) for pair in some]), scale.gradings)
    seen: list[float] = []
    try:
        async with Grader(verifier, _NoSandboxes) as grader:
            for place, (gold, answer, _) in enumerate(work):
                await grader.grade(_math_task(gold), Submission(boxed(answer)))
                if place + 1 in (scale.gradings // 10, scale.gradings):
                    seen.append(_memory())
    finally:
        await verifier.aclose()
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    begun, ended = seen
    return {
        "gradings": scale.gradings,
        "memory_mb": begun,
        "growth": ended / begun - 1,
        "processes_left": len(left),
    }


def _memory() -> float:
    """MiB that this process and its children have for themselves."""
    gc.collect()
    here = psutil.Process()
    return sum(one.memory_full_info().uss for one in (here, *here.children(recursive=True))) / MEBI


def _math_task(gold: str) -> Task:
    return Task("bench", "math", (Message("system", "Think up to </think>."),), "math", payload={"answer": gold})


class _Nowhere:
    """Mathematics opens none."""

    def open(self, *_: object) -> Any:
        raise SandboxUnavailable("there is none here")


_NoSandboxes: Final[Any] = _Nowhere()


def in_words(found: dict[str, Any]) -> str:
    """The same for people."""
    math, endured = found["math"], found["endurance"]
    lines = [
        f"mathematics: {math['gradings_per_s_per_core']:.0f} gradings a second and core, {math['ratio']:.2f} of bare "
        f"math-verify; verdicts as they should be: {math['agreement']:.1%}",
        f"of {math['hangs']} that hang the slowest outlived its limit by {math['hang_late_s']:.2f} s",
    ]
    for key in ("code", "code_docker"):
        if key in found:
            tests, programs = found[key]["tests_per_s_per_core"], found[key]["programs_per_s_per_core"]
            where = "docker" if key == "code_docker" else "bubblewrap"
            lines.append(f"code in {where}: {tests:.0f} tests a second and core, {programs:.0f} of whole programs")
    lines.append(
        f"{endured['gradings']:,} gradings: {endured['memory_mb']:.0f} MiB after a tenth of them, "
        f"{endured['growth']:+.1%} at the end, {endured['processes_left']} processes left"
    )
    return "\n".join(lines)
