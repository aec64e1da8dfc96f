"""What a generator of tasks is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol, TypeVar

from verifiers.task import Message

T = TypeVar("T")

REASON = "Think up to </think>."
"""The system message that switches reasoning on."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One drawn task, and what its demonstrations are made of."""

    key: str
    """What it is, whatever it is called: problems of one key never stand on both sides of the held-out split."""
    messages: tuple[Message, ...]
    payload: Mapping[str, Any]
    visible: Mapping[str, Any] = field(default_factory=dict)
    plan: Any = None
    """What `demonstrate` needs to know of how it was drawn; the generator's own type."""


class Generator(Protocol):
    """Draws problems of one domain without end, and shows how they are solved."""

    domain: str
    verifier: str
    environment: str
    turns: int

    def draw(self, chance: Random, difficulty: int) -> Problem:
        """A problem; `difficulty` counts from 1."""
        ...

    def demonstrate(self, problem: Problem, chance: Random, mistakes: float) -> Iterator[Message]:
        """A whole conversation about it; each decision goes wrong with probability `mistakes`."""
        ...


def slip(chance: Random, right: T, others: Sequence[T], mistakes: float) -> T:
    """`right`, or with probability `mistakes` one of the others."""
    wrong = [other for other in others if other != right]
    return chance.choice(wrong) if wrong and chance.random() < mistakes else right


def near(chance: Random, number: int, mistakes: float) -> int:
    """`number`, or with probability `mistakes` one that is a little off."""
    return number + chance.choice((-2, -1, 1, 2)) if chance.random() < mistakes else number
