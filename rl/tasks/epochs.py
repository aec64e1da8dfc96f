"""The order in which what is finite is drawn without end."""

import random


class Epochs:
    """Places 0 … size − 1 in random order, then again in another, without end. The same seed, the same order."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._epoch, self._order = -1, list[int]()

    def __call__(self, number: int) -> int:
        """The place that is drawn as the `number`-th, from 0."""
        epoch, at = divmod(number, self._size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = random.Random(f"{self._seed}/{epoch}").sample(range(self._size), self._size)  # noqa: S311
        return self._order[at]
