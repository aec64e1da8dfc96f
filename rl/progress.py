"""What one sees of a long stage: a live bar on a terminal, and elsewhere a plain line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Say = Callable[[str], None]

LINE_SECONDS = 8.0


class Show(Protocol):
    """A callback that shows how far a stage is."""

    def __call__(self, done: int, text: str) -> None:
        """`done` units of the total, and what else there is to know."""
        ...


@contextmanager
def progress(what: str, total: int, done: int, say: Say) -> Iterator[Show]:
    """Show a stage of `total` units of which `done` were done before."""
    if sys.stdout.isatty():
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        with Progress(*columns, TextColumn("{task.fields[text]}"), TimeRemainingColumn()) as bar:
            task = bar.add_task(what, total=total, completed=done, text="")
            yield lambda done, text: bar.update(task, completed=done, text=text)
    else:
        yield _Lines(what, total, done, say)


class _Lines:
    """A line every LINE_SECONDS, and one at the end."""

    def __init__(self, what: str, total: int, done: int, say: Say) -> None:
        self._what, self._total, self._before, self._say = what, total, done, say
        self._started = self._said = time.monotonic()

    def __call__(self, done: int, text: str) -> None:
        now = time.monotonic()
        if done < self._total and now - self._said < LINE_SECONDS:
            return
        self._said = now
        new = done - self._before
        left = f", {(now - self._started) * max(0, self._total - done) / new:.0f} s left" if new else ""
        self._say(f"{self._what}: {min(1.0, done / self._total):.0%}, {text}{left}")
