"""Which CPUs a configuration means by their numbers."""

import os
from collections.abc import Iterable


def allowed(numbers: Iterable[int]) -> list[int]:
    """The CPUs at these places among those that this process may use, from the first again behind the last.

    So 0 and 1 are two CPUs in a container that was given the fourth and the fifth, and one where there is but one.
    """
    usable = sorted(os.sched_getaffinity(0))
    return sorted({usable[number % len(usable)] for number in numbers})
