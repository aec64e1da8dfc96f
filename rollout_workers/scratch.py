"""Directories that belong to one process and go with it; what a killed one left is removed by the next."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (a directory of one's own is made in it)
PUBLISHED = "cwm-rl-weights"
"""Prefix of a learner's files of weights."""
RECEIVED = "cwm-rl-received"
"""Of those that came to a worker as bytes."""


@contextmanager
def scratch(prefix: str, parent: Path) -> Iterator[Path]:
    """A new directory `parent/prefix-PID-…`, removed on leaving; those of processes that are gone are removed first."""
    sweep(prefix, parent)
    path = Path(tempfile.mkdtemp(prefix=f"{prefix}-{os.getpid()}-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(prefix: str, parent: Path) -> None:
    """Remove what processes that are gone have left."""
    for path in parent.glob(f"{prefix}-*"):
        owner = path.name.removeprefix(f"{prefix}-").partition("-")[0]
        if owner.isdigit() and not _lives(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
