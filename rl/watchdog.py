"""A process beside a driver. When the driver is gone, however it went, it ends what the driver's local Ray left.

Ray's own processes notice a killed driver after a minute. This one sees the end of a pipe at once. It remembers who
stood below the driver: an orphan has no parent to be found by, and Ray's processes overwrite their environment.
"""

import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from rollout_workers.sandbox import cgroup, docker
from rollout_workers.scratch import PUBLISHED, RECEIVED, SHARED_MEMORY, sweep

_LOOK_EVERY = 1.0
_PATIENCE = 10.0
_FAREWELL = b"."
"""What a driver says that ends in good order, whatever its run came to."""


@contextmanager
def watched(scratch: Path, logs: Path, last_words: str) -> Iterator[None]:
    """What is started in the block, and `scratch`, is gone within seconds of the block's or this process's end.

    What Ray's workers printed is kept in `logs`. `last_words` go to standard error if this process ends in the block.
    """
    command = [sys.executable, "-I", __file__, str(os.getpid()), str(scratch), str(logs), last_words]
    # A session of its own: Ctrl-C on the terminal reaches the driver, not this.
    dog = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        if dog.stdout is not None:
            dog.stdout.readline()  # it has seen who was here before; what starts from now on is its business
        yield
    finally:
        with suppress(subprocess.TimeoutExpired):  # it goes on by itself, and its driver need not fail for it
            dog.communicate(_FAREWELL, timeout=2 * _PATIENCE)


def main(driver: int, scratch: Path, logs: Path, last_words: str) -> None:
    """Look who is below the driver until standard input ends; then end them, keep `logs`, and remove `scratch`."""
    others = _below(driver)  # were there before, and are none of our business
    print(flush=True)
    below: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], _LOOK_EVERY)[0]:
        below = {one for one in below if one.is_running()} | _below(driver) - others
    unheard = not os.read(sys.stdin.fileno(), 1)
    # What was started after the last look descends from one of them.
    for one in list(below):
        below |= _below(one.pid) if one.is_running() else set()
    for one in below:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(below, timeout=_PATIENCE)
    if unheard:
        with suppress(OSError):  # who read it may have gone with the driver
            print(last_words, file=sys.stderr, flush=True)
    with suppress(OSError):
        _keep(scratch / "session_latest" / "logs", logs)
    shutil.rmtree(scratch, ignore_errors=True)
    for prefix in (PUBLISHED, RECEIVED):
        sweep(prefix, SHARED_MEMORY)
    cgroup.sweep()
    docker.sweep()  # their containers end with them, but are kept by the engine


def _keep(source: Path, target: Path) -> None:
    """Copy what actors printed, beside what a run before this one left. Raises OSError."""
    for path in source.glob("worker-*"):
        if path.stat().st_size:
            target.mkdir(exist_ok=True)
            shutil.copyfile(path, target / path.name)


def _below(pid: int) -> set[psutil.Process]:
    """Everything that descends from `pid`, except this process."""
    with suppress(psutil.NoSuchProcess):
        return {one for one in psutil.Process(pid).children(recursive=True) if one.pid != os.getpid()}
    return set()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
