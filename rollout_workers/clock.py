"""Where the seconds of an actor went."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Sums wall time by cause. Things that run at once each count in full: `sampling` is a sum over episodes."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, cause: str) -> Iterator[None]:
        """Add the block's wall time to `cause`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[cause] += time.monotonic() - start
