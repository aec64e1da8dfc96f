r"""Arithmetic in several steps, told as a story; the working in `<think>`, the answer in `\boxed{}`."""

from collections.abc import Iterator
from random import Random
from typing import Final

from rl.tasks.generators.base import REASON, Problem, near, slip
from verifiers.task import Message

_NAMES: Final = ("Tom", "Ann", "Bo", "Eve", "Max", "Ida", "Sam", "Mia")
_THINGS: Final = ("coins", "pens", "eggs", "cups", "books", "nuts", "stones", "stamps")
_TELLING: Final = {
    "+": ("gets {} more", "finds {}", "buys {}"),
    "-": ("loses {}", "gives {} away", "sells {}"),
    "*": ("has {} times as many",),
}
_MOST: Final = 20
_PLAIN: Final = 0.1
"""Share of demonstrations without the system message, and so without reasoning."""

Step = tuple[str, int]


class WordProblems:
    """Sums told as a story. Difficulty d takes d + 1 steps; no number on the way is negative or above 20."""

    domain = "math"
    verifier = "math"
    environment = "single_turn"
    turns = 1

    def draw(self, chance: Random, difficulty: int) -> Problem:
        """See `Generator.draw`."""
        start = chance.randint(2, 9)
        steps: list[Step] = []
        value = start
        while len(steps) <= difficulty:
            operator = chance.choice("++--*")
            step = operator, chance.randint(2, 3 if operator == "*" else 6)
            if 0 <= (after := apply(value, step)) <= _MOST:
                steps.append(step)
                value = after
        name, thing = chance.choice(_NAMES), chance.choice(_THINGS)
        told = ", ".join(chance.choice(_TELLING[operator]).format(number) for operator, number in steps)
        text = f"{name} has {start} {thing}, {told}. How many {thing}?"
        key = f"{start} " + " ".join(f"{operator}{number}" for operator, number in steps)
        messages = Message("system", REASON), Message("user", text)
        return Problem(key, messages, {"answer": str(value)}, plan=(start, steps))

    def demonstrate(self, problem: Problem, chance: Random, mistakes: float) -> Iterator[Message]:
        """See `Generator.demonstrate`."""
        value, steps = problem.plan
        system, question = problem.messages
        reasoned = chance.random() >= _PLAIN
        working = []
        for operator, number in steps:
            step = slip(chance, operator, "+-*", mistakes), near(chance, number, mistakes)
            after = near(chance, apply(value, step), mistakes)
            working.append(f"{value}{step[0]}{step[1]}={after}")
            value = after
        answer = f"\\boxed{{{near(chance, value, mistakes / 2)}}}"
        yield from (system, question) if reasoned else (question,)
        yield Message("assistant", f"{';'.join(working)}</think>{answer}" if reasoned else answer)


def apply(value: int, step: Step) -> int:
    """The value after one step, (operator, number)."""
    operator, number = step
    return {"+": value + number, "-": value - number, "*": value * number}[operator]
