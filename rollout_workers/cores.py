"""Which CPUs a configuration means by their numbers."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress


def allowed(numbers: Iterable[int]) -> list[int]:
    """The CPUs at these places among those that this process may use, from the first again behind the last.

    So 0 and 1 are two CPUs in a container that was given the fourth and the fifth, and one where there is but one.
    """
    usable = sorted(os.sched_getaffinity(0))
    return sorted({usable[number % len(usable)] for number in numbers})


@contextmanager
def left(numbers: Iterable[int]) -> Iterator[None]:
    """Keep all threads of this process off the CPUs at these places, if it has others: they are somebody else's.

    Threads and processes that it starts inherit that; what ran before goes on where it was.
    """
    usable = os.sched_getaffinity(0)
    others = usable - set(allowed(numbers))
    if others in (usable, set()):
        yield
        return
    _move(others)
    try:
        yield
    finally:
        _move(usable)


def _move(cpus: Iterable[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cpus)
