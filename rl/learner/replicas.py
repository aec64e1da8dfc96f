"""Copies of a model that share its weights and work side by side in threads, each on micro-batches of its own.

A small model's operations are too short to be cut among threads: on two cores, passes over 600 tokens each take half as
long as one over 1,200 by two threads, which meet, and wait for each other, some thousand times. And where another
process takes a core away, two threads lose no more than that.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from rl.learner.packing import MicroBatch, Row, balanced_shares, pack

T = TypeVar("T")


class Replicas:
    """`count` of them, the model itself among them. A context manager: it ends the threads."""

    def __init__(self, model: Any, count: int) -> None:
        self._models = [model, *(_sharing(model) for _ in range(count - 1))]
        self._pool = ThreadPoolExecutor(count) if count > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    @property
    def map(self) -> Callable[..., Any]:
        """The builtin `map`, by the threads where there are any."""
        return map if self._pool is None else self._pool.map

    def pack(self, rows: Sequence[Row], tokens: int) -> list[MicroBatch]:
        """Micro-batches of at most `tokens`, small enough that there is one for every replica."""
        share = -(-sum(len(row.tokens) for row in rows) // len(self._models))
        return pack(rows, min(tokens, share))

    def backward(self, batches: Sequence[MicroBatch], one: Callable[[Any, MicroBatch], T]) -> list[T]:
        """`one`, which adds a micro-batch's gradient to those of the model it is given, for all of them.

        The sums are left with the first model. Results are in no particular order.
        """
        shares = balanced_shares(batches, len(self._models))
        found = list(self.map(lambda model, share: [one(model, batch) for batch in share], self._models, shares))
        for replica in self._models[1:]:
            for mine, other in zip(self._models[0].parameters(), replica.parameters(), strict=True):
                if other.grad is not None:
                    mine.grad = other.grad if mine.grad is None else mine.grad.add_(other.grad)
                other.grad = None
        return [result for share in found for result in share]


def _sharing(model: Any) -> Any:
    """Another model of the same parameters' storage; its gradients are its own."""
    other = copy.deepcopy(model)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        its.data = mine.data
    return other
