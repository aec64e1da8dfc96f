"""Directories that belong to one process and go with it; what a killed one left is removed by the next."""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (a directory of one's own is made in it)
PUBLISHED = "cwm-rl-weights"
"""Prefix of a learner's files of weights."""
RECEIVED = "cwm-rl-received"
"""Of those that came to a worker as bytes."""


@contextmanager
def scratch(prefix: str, parent: Path) -> Iterator[Path]:
    """A new directory `parent/prefix-PID-NAMESPACE-N`, removed on leaving; what dead processes left, before that.

    Its name is as short as can be: below it Ray makes sockets, whose paths may have 107 bytes. Raises OSError.
    """
    sweep(prefix, parent)
    path = _new(parent, f"{prefix}-{os.getpid()}-{pid_namespace()}")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(prefix: str, parent: Path) -> None:
    """Remove what processes that are gone have left; in a parent that containers share, none of other containers."""
    for path in parent.glob(f"{prefix}-*-{pid_namespace()}-*"):
        owner = path.name.removeprefix(f"{prefix}-").partition("-")[0]
        if owner.isdigit() and not _lives(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def pid_namespace() -> int:
    """Where process ids mean what they mean here."""
    return os.stat("/proc/self/ns/pid").st_ino


def _new(parent: Path, beginning: str) -> Path:
    numbers = itertools.count()
    while True:
        path = parent / f"{beginning}-{next(numbers)}"
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            return path


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
