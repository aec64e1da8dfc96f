"""The order in which tasks are drawn."""

import random
from collections.abc import Iterator, Sequence

from verifiers.task import Task


def stream(tasks: Sequence[Task], seed: int, skip: int = 0) -> Iterator[Task]:
    """All tasks in random order, then again in another, without end. The same seed gives the same order.

    `skip` leaves out the first ones: those that a resumed run has drawn before.
    """
    epoch, offset = divmod(skip, len(tasks))
    while True:
        order = random.Random(f"{seed}/{epoch}").sample(range(len(tasks)), len(tasks))  # noqa: S311
        yield from (tasks[index] for index in order[offset:])
        epoch, offset = epoch + 1, 0
