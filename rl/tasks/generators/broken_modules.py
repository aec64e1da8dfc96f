"""A tiny repository in which one operator, name or constant is wrong; the names and the tests say what is right.

A demonstration looks at the module and its failing test, edits the line, again where it was misquoted, makes a patch
and submits it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import unified_diff
from functools import lru_cache
from random import Random
from typing import Any, Final

from rl.tasks.generators.base import Problem, slip
from rollout_workers.environments.protocol import Remaining
from rollout_workers.environments.repository import answer
from rollout_workers.tools.calls import ToolError
from rollout_workers.tools.edits import apply_edit, parse_edit
from verifiers.task import Message

SYSTEM: Final = "Tools: bash, edit, create, submit. One call a turn."
_MODULES: Final = ("shop", "bank", "farm", "game")
_PAIRS: Final = (("a", "b"), ("x", "y"), ("m", "n"))
_CONSTANTS: Final = tuple(map(str, range(1, 10)))
"""Of one digit: to copy a number of two is what a small model learns last, and rewards do not teach it."""
_NAMED: Final = {
    "plus": "+",
    "minus": "-",
    "times": "*",
    "mod": "%",
    "over": ">",
    "under": "<",
    "least": ">=",
    "most": "<=",
}
_SPELT: Final = tuple(
    (f"{word}_{number}", f"{{0}} {sign} {number}") for word, sign in _NAMED.items() for number in _CONSTANTS[1:]
)
_RIGHT: Final = (
    ("double", "{0} * 2"),
    ("triple", "{0} * 3"),
    ("add", "{0} + {1}"),
    ("subtract", "{0} - {1}"),
    ("multiply", "{0} * {1}"),
    ("more", "{0} > {1}"),
    ("less", "{0} < {1}"),
    *_SPELT,
)
"""Name and expression, drawn alike; the name tells the expression. What stands in it makes the mutations."""
_OPERATORS: Final = tuple(_NAMED.values())
_HIDDEN: Final = 5
_MISQUOTED: Final = 0.25
"""Of mistakes, those that the tool refuses and the next turn mends: who never saw that has no way on from a refusal."""
_TURNS: Final = 8
_TEST: Final = """from {module} import *

for call, want in {cases}:
    got = eval(call)
    if got != want:
        exit(f"{{call}} is {{got}}, not {{want}}")
"""


@dataclass(frozen=True, slots=True)
class Function:
    """def name(parameters): return expression."""

    name: str
    parameters: tuple[str, ...]
    words: tuple[str, ...]
    """The expression, word by word."""

    @property
    def key(self) -> str:
        """What it computes, whatever its parameters are called."""
        places = {name: str(at) for at, name in enumerate(self.parameters)}
        return f"{self.name}: {' '.join(places.get(word, repr(word)) for word in self.words)}"

    @property
    def line(self) -> str:
        """Its `return` line, indented."""
        return f"    return {' '.join(self.words)}"

    @property
    def source(self) -> str:
        """Its source, as it stands in the module."""
        return f"def {self.name}({', '.join(self.parameters)}):\n{self.line}\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """A module, which of its functions is broken, and how."""

    module: str
    functions: tuple[Function, ...]
    place: int
    broken: Function

    @property
    def right(self) -> Function:
        """The broken one as it should be."""
        return self.functions[self.place]

    @property
    def text(self) -> str:
        """The module as the policy finds it."""
        return "".join(self._with(self.broken))

    @property
    def key(self) -> str:
        """The module, whatever it and its parameters are called."""
        return "; ".join((self.broken if at == self.place else one).key for at, one in enumerate(self.functions))

    @property
    def patch(self) -> str:
        """The repair, as a unified diff."""
        before, after = ("".join(one).splitlines(True) for one in (self._with(self.broken), self._with(self.right)))
        return "".join(unified_diff(before, after, f"a/{self.module}.py", f"b/{self.module}.py"))

    def _with(self, function: Function) -> list[str]:
        return [(function if at == self.place else one).source for at, one in enumerate(self.functions)]


class BrokenModules:
    """Difficulty d has d functions, one of them broken; with one alone, its name spells operator and constant."""

    domain = "repair"
    verifier = "repair"
    environment = "repository"
    turns = _TURNS

    def draw(self, chance: Random, difficulty: int) -> Problem:
        """See `Generator.draw`."""
        while True:
            plan = _plan(chance, difficulty)
            calls = [_call(one, chance) for one in plan.functions for _ in range(2)]
            cases = [(call, _value(plan.functions, call)) for call in calls]
            hidden = [_hidden(plan, chance) for _ in range(_HIDDEN)]
            lines = [one.line for one in (*plan.functions, plan.broken)]
            if len(set(lines)) == len(lines) and _told(plan, cases) and any(_fails(plan, test) for test in hidden):
                break
        file = f"{plan.module}.py"
        files = {file: plan.text, f"test_{file}": _TEST.format(module=plan.module, cases=cases)}
        messages = Message("system", SYSTEM), Message("user", f"python3 test_{file} fails. Repair {file}.")
        payload = {"files": files, "module": file, "tests": hidden, "patch": plan.patch}
        return Problem(plan.key, messages, payload, {"files": files}, (plan, cases))

    def demonstrate(self, problem: Problem, chance: Random, mistakes: float) -> Iterator[Message]:
        """See `Generator.demonstrate`."""
        plan, cases = problem.plan
        yield from problem.messages
        file = f"{plan.module}.py"
        tokens = chance.randint(600, 700)
        failing = [f"{call} is {got}, not {want}" for call, want in cases if (got := _broken_value(plan, call)) != want]
        seen = "\n".join([plan.text.rstrip("\n"), failing[0], "exit code 1"])
        place = slip(chance, plan.place, range(len(plan.functions)), mistakes)
        old = plan.broken if place == plan.place else plan.functions[place]
        aim = plan.right if place == plan.place else _mutated(old, chance)
        new = _mutated(old, chance) if chance.random() < mistakes else aim
        quotes = [old]
        if chance.random() < _MISQUOTED * mistakes and (wrong := _mutated(old, chance)).line not in plan.text:
            quotes.insert(0, wrong)
        steps = (
            ("bash", f"cat {file}; python3 test_{file}", seen),
            *(("edit", *_edited(plan, file, quoted, new)) for quoted in quotes),
            ("bash", "git diff > fix.patch", ""),
            ("submit", "fix.patch", "Submitted."),
        )
        for turn, (tool, content, said) in enumerate(steps, start=1):
            yield Message("assistant", f"<tool: {tool}>\n{content}\n</tool>")
            tokens -= chance.randint(30, 120)  # any number a run may show: one never seen threw the policy off
            yield Message(f"tool: {tool}", answer(said, Remaining(_TURNS - turn, tokens)))
        yield Message("assistant", "Done.")


def _edited(plan: Plan, file: str, old: Function, new: Function) -> tuple[str, str]:
    """The edit of a line, and what the tool says."""
    edit = f"{file}\n<<<<<<< SEARCH\n{old.line}\n=======\n{new.line}\n>>>>>>> REPLACE"
    try:
        return edit, apply_edit(plan.text, parse_edit(edit))[1]
    except ToolError as error:
        return edit, str(error)


def _plan(chance: Random, difficulty: int) -> Plan:
    functions: list[Function] = []
    while len(functions) < difficulty:
        one = _function(chance, _SPELT if difficulty == 1 else _RIGHT)
        if one.name not in {other.name for other in functions}:
            functions.append(one)
    place = chance.randrange(len(functions))
    return Plan(chance.choice(_MODULES), tuple(functions), place, _mutated(functions[place], chance))


def _function(chance: Random, kinds: Sequence[tuple[str, str]]) -> Function:
    name, expression = chance.choice(kinds)
    names = chance.choice(_PAIRS)
    return Function(name, names if "{1}" in expression else names[:1], tuple(expression.format(*names).split()))


def _mutated(function: Function, chance: Random) -> Function:
    """One word another: an operator, a constant, or a name; every such change alike."""
    changes = [(at, other) for at, word in enumerate(function.words) for other in _others(word, function.parameters)]
    at, other = chance.choice(changes)
    return replace(function, words=(*function.words[:at], other, *function.words[at + 1 :]))


def _others(word: str, parameters: tuple[str, ...]) -> list[str]:
    kinds = _CONSTANTS if word.isdigit() else _OPERATORS if word in _OPERATORS else (*parameters, "2")
    return [other for other in kinds if other != word]


def _call(function: Function, chance: Random) -> str:
    return f"{function.name}({', '.join(str(chance.randint(1, 9)) for _ in function.parameters)})"


def _hidden(plan: Plan, chance: Random) -> dict[str, Any]:
    """A test of the broken function; the others are tested in public."""
    args = [chance.randint(1, 12) for _ in plan.right.parameters]
    call = f"{plan.right.name}({', '.join(map(str, args))})"
    return {"call": plan.right.name, "args": args, "kwargs": {}, "expected": _value(plan.functions, call)}


def _fails(plan: Plan, test: Mapping[str, Any]) -> bool:
    """The broken module fails a hidden test."""
    return bool(_broken_value(plan, f"{test['call']}({', '.join(map(str, test['args']))})") != test["expected"])


def _told(plan: Plan, cases: list[tuple[str, Any]]) -> bool:
    """Whether the public test fails on the broken module."""
    return any(_broken_value(plan, call) != want for call, want in cases)


def _broken_value(plan: Plan, call: str) -> Any:
    return _value((*plan.functions[: plan.place], plan.broken, *plan.functions[plan.place + 1 :]), call)


def _value(functions: tuple[Function, ...], call: str) -> Any:
    """What a call gives; the message of what it raises."""
    try:
        return eval(call, _module(functions))  # noqa: S307 - of our own making
    except ArithmeticError as error:
        return str(error)


@lru_cache(maxsize=256)
def _module(functions: tuple[Function, ...]) -> dict[str, Any]:
    """Their namespace. A problem is drawn by asking its module many times."""
    namespace: dict[str, Any] = {}
    exec("\n".join(one.source for one in functions), namespace)  # noqa: S102 - source of our own making
    return namespace
