"""What the variables of a short program hold, line by line, in CWM's trace form, made by a real tracer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from rl.tasks.generators.base import Problem, near
from rl.tasks.tracer import START_MARK, render, trace
from verifiers.task import Message
from verifiers.trace import FRAME_SEP

_VARIABLES: Final = "abcd"
_OPERATORS: Final = ("+", "-")
_MOST: Final = 12
_COPIES: Final = 0.5
"""Share of assignments up to difficulty 2 that only copy."""
_TWO_VARIABLES: Final = 0.6
"""Share of assignments above it that take two variables; the others take one and a small number."""
_MARKED: Final = f"def f(a, b):{START_MARK}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """target = left operator right, or target = left where right is 0; `guard` is a comparison on a line above it."""

    target: str
    left: str
    operator: str
    right: str
    guard: tuple[str, str, str] | None = None

    @property
    def lines(self) -> list[str]:
        """As source, inside a function."""
        assignment = f"{self.target} = {self.left}"
        if self.right != "0":
            assignment += f" {self.operator} {self.right}"
        if self.guard is None:
            return [f"    {assignment}"]
        return [f"    if {' '.join(self.guard)}:", f"        {assignment}"]


@dataclass(frozen=True, slots=True)
class Program:
    """A function of two parameters, and the call of it that is traced."""

    body: tuple[Assignment, ...]
    result: str
    arguments: tuple[int, int]

    @property
    def source(self) -> str:
        """With the mark on the line where the trace starts."""
        lines = [line for one in self.body for line in one.lines]
        return "\n".join([_MARKED, *lines, f"    return {self.result}"])


class ShortPrograms:
    """Difficulty d has d assignments; from 3 on they take two variables, from 4 on one may stand under an `if`."""

    domain = "trace"
    verifier = "trace"
    environment = "single_turn"
    turns = 1

    def draw(self, chance: Random, difficulty: int) -> Problem:
        """See `Generator.draw`."""
        while True:
            program = _program(chance, difficulty)
            frames = trace(program.source, "f", program.arguments)
            values = [int(value) for frame in frames for value in frame.local.values()]
            if all(0 <= value <= _MOST * max(1, difficulty - 1) for value in values):
                break
        text = f"{program.source}\nf{program.arguments}"
        return Problem(text, (Message("user", text),), {"frames": render(frames)}, plan=program)

    def demonstrate(self, problem: Problem, chance: Random, mistakes: float) -> Iterator[Message]:
        """See `Generator.demonstrate`: a mistaken trace is the true one of another call."""
        program: Program = problem.plan
        first, second = (near(chance, argument, mistakes) for argument in program.arguments)
        misread = replace(program, arguments=(first, second))
        lines = [line.removesuffix(START_MARK) for line in program.source.splitlines()]
        frames = trace(misread.source, "f", misread.arguments)
        frames = [replace(frame, line=lines[frame.number - 1]) for frame in frames]
        yield from problem.messages
        yield Message("assistant", "".join(f"{text}{FRAME_SEP}" for text in render(frames)))


def _program(chance: Random, difficulty: int) -> Program:
    known = ["a", "b"]
    body: list[Assignment] = []
    guarded = chance.randrange(1, difficulty) if difficulty > 3 and chance.random() < 0.5 else None
    for place in range(difficulty):
        left, operator, right = chance.choice(known), chance.choice(_OPERATORS), str(chance.randint(1, 2))
        if difficulty <= 2 and chance.random() < _COPIES:
            operator, right = "+", "0"
        elif difficulty > 2 and chance.random() < _TWO_VARIABLES:
            right = chance.choice(known)
        guard = None
        target = chance.choice(_VARIABLES[: len(known) + 1])
        if place == guarded:
            guard = (chance.choice(known), chance.choice("<>"), str(chance.randint(2, 9)))
            target = chance.choice(known)  # defined whichever way it goes
        body.append(Assignment(target, left, operator, right, guard))
        if target not in known:
            known.append(target)
    return Program(tuple(body), body[-1].target, (chance.randint(1, 9), chance.randint(1, 9)))
