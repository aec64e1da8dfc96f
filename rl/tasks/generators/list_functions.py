"""One-line functions on lists of numbers, from a sentence. Some sentences leave a choice open that only tests tell.

The policy does not see the public tests beforehand: it sees how they fail. After a failure it can mend a slip, or take
the other choice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from rl.tasks.generators.base import Problem, slip
from rollout_workers.environments.code_tests import feedback
from verifiers.code import TestResult
from verifiers.task import Message

_NAMES: Final = ("pick", "total", "scan", "fold", "tally", "calc")
_SHAPES: Final = {
    "the sum of": "sum({items})",
    "the largest of": "max(({items}), default=0)",
    "the smallest of": "min(({items}), default=0)",
    "the list of": "[{items}]",
    "one end of": "max(({items}), default=0)|min(({items}), default=0)",
    "in some order": "sorted({items})|sorted(({items}), reverse=True)",
}
"""Words -> expression, or two of them where the words leave it open."""
_OPEN: Final = tuple(words for words, code in _SHAPES.items() if "|" in code)
_CHANGES: Final = {
    "": "x",
    "squared": "x * x",
    "doubled": "x * 2",
    "negated": "-x",
    "raised by {}": "x + {}",
    "lowered by {}": "x - {}",
    "times {}": "x * {}",
}
_FILTERS: Final = {
    "": "",
    "at least {}": " if x >= {}",
    "at most {}": " if x <= {}",
    "above {}": " if x > {}",
    "below {}": " if x < {}",
    "even": " if x % 2 == 0",
    "odd": " if x % 2 == 1",
    "other than {}": " if x != {}",
}
_MOST: Final = 12
_CONSTANTS: Final = range(2, 10)
"""Of one digit: to copy a number of two is what a small model learns last, and rewards do not teach it."""
_PUBLIC: Final = 2
_HIDDEN: Final = 5
_OPEN_SHARE: Final = 0.4

Test = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a function does, in words, and which of two choices where `shape` leaves one open."""

    name: str
    shape: str
    change: str
    change_by: int
    kept: str
    kept_by: int
    choice: int = 0

    @property
    def sentence(self) -> str:
        """The task in words, as the policy reads it."""
        words = " ".join(
            part
            for part in (
                self.shape,
                "the items",
                self.kept.format(self.kept_by),
                f"each {self.change.format(self.change_by)}" if self.change else "",
            )
            if part
        )
        return f"Write {self.name}(xs): {words}."

    @property
    def source(self) -> str:
        """The function's Python source."""
        items = f"{_CHANGES[self.change].format(self.change_by)} for x in xs{_FILTERS[self.kept].format(self.kept_by)}"
        shapes = _SHAPES[self.shape].split("|")
        return f"def {self.name}(xs):\n    return {shapes[self.choice % len(shapes)].format(items=items)}"


class ListFunctions:
    """Difficulty 1 changes or filters the items, 2 does both."""

    domain = "code"
    verifier = "code"
    environment = "code"
    turns = 3

    def draw(self, chance: Random, difficulty: int) -> Problem:
        """See `Generator.draw`."""
        while True:
            shape = chance.choice(_OPEN if chance.random() < _OPEN_SHARE else [s for s in _SHAPES if s not in _OPEN])
            change, kept = chance.choice(list(_CHANGES)), chance.choice(list(_FILTERS))
            if difficulty == 1 and change and kept:
                change, kept = chance.choice(((change, ""), ("", kept)))
            choice = chance.randrange(2) if shape in _OPEN else 0
            by = chance.choice(_CONSTANTS), chance.choice(_CONSTANTS)
            plan = Plan(chance.choice(_NAMES), shape, change, by[0], kept, by[1], choice)
            tests = [_test(plan, chance) for _ in range(_PUBLIC + _HIDDEN)]
            if (change or kept) and _tell(plan, tests[:_PUBLIC]) and _tell(plan, tests[_PUBLIC:]):
                break
        key = replace(plan, name="", choice=0).sentence
        messages = (Message("user", plan.sentence),)
        return Problem(key, messages, {"tests": tests[_PUBLIC:]}, {"tests": tests[:_PUBLIC]}, plan)

    def demonstrate(self, problem: Problem, chance: Random, mistakes: float) -> Iterator[Message]:
        """See `Generator.demonstrate`. After a failure the open choice is the other one, and slips are rarer."""
        plan: Plan = problem.plan
        yield from problem.messages
        choice = chance.randrange(2)
        for turn in range(self.turns):
            said = replace(_slipped(plan, chance, mistakes / (1 + turn)), choice=choice)
            yield Message("assistant", f"```python\n{said.source}\n```")
            results = [_result(said, test) for test in problem.visible["tests"]]
            if all(result.passed for result in results) or turn == self.turns - 1:
                return
            yield Message("tool: tests", feedback(problem.visible["tests"], results))
            if said.source == replace(plan, choice=choice).source and chance.random() >= mistakes:
                choice = 1 - choice


def _slipped(plan: Plan, chance: Random, mistakes: float) -> Plan:
    open_shapes = plan.shape in _OPEN
    return replace(
        plan,
        shape=slip(chance, plan.shape, [shape for shape in _SHAPES if (shape in _OPEN) == open_shapes], mistakes),
        change=slip(chance, plan.change, list(_CHANGES), mistakes),
        change_by=slip(chance, plan.change_by, _CONSTANTS, mistakes if "{}" in plan.change else 0.0),
        kept=slip(chance, plan.kept, list(_FILTERS), mistakes),
        kept_by=slip(chance, plan.kept_by, _CONSTANTS, mistakes if "{}" in plan.kept else 0.0),
    )


def _test(plan: Plan, chance: Random) -> Test:
    given = [chance.randint(0, _MOST) for _ in range(chance.randint(2, 4))]
    if "{}" in plan.kept and chance.random() < 0.4:
        given[chance.randrange(len(given))] = plan.kept_by  # the boundary, where >= and > differ
    return {"call": plan.name, "args": [given], "kwargs": {}, "expected": _value(plan, given)}


def _tell(plan: Plan, tests: Sequence[Test]) -> bool:
    """Whether the tests tell the choice that the sentence leaves open."""
    other = replace(plan, choice=1 - plan.choice)
    return plan.shape not in _OPEN or any(_value(other, test["args"][0]) != test["expected"] for test in tests)


def _value(plan: Plan, given: list[int]) -> Any:
    namespace: dict[str, Any] = {}
    exec(plan.source, namespace)  # noqa: S102 - source of our own making
    return namespace[plan.name](given)


def _result(said: Plan, test: Test) -> TestResult:
    got = _value(said, test["args"][0])
    return TestResult(got == test["expected"], repr(got))
