"""Memory and process limits over all processes of a sandbox together, by control groups v1 or v2."""

import asyncio
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rollout_workers.scratch import pid_namespace

PREFIX: Final = "cwm-rl-"
REMOVE_SECONDS: Final = 10.0
SWEEP_SECONDS: Final = 2.0
JOIN: Final = 'while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs" || exit 97; shift; done; shift; exec "$@"'
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The group of one sandbox: one directory (v2), or one for each controller (v1)."""

    memory: Path
    pids: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its directories."""
        return tuple(dict.fromkeys((self.memory, self.pids)))

    def joined(self, argv: list[str]) -> list[str]:
        """`argv`, started inside the group: a shell joins it and becomes the program. No window in between."""
        return ["/bin/sh", "-c", JOIN, "sh", *map(str, self.paths), "--", *argv]

    def oom_kills(self) -> int:
        """Processes of the group killed for memory."""
        return _counter(self.memory / "memory.events", "oom_kill") or _counter(
            self.memory / "memory.oom_control", "oom_kill"
        )

    def forks_refused(self) -> int:
        """Forks that failed for the limit on processes."""
        return _counter(self.pids / "pids.events", "max")

    def discard(self) -> None:
        """Remove it now if nothing ever ran in it."""
        for path in self.paths:
            _removed(path)

    async def remove(self) -> None:
        """Wait for its last process to go, then remove it. Raises TimeoutError."""
        deadline = time.monotonic() + REMOVE_SECONDS
        for path in self.paths:
            while not _removed(path):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path} still has processes {REMOVE_SECONDS:g} s after its sandbox was killed")
                await asyncio.sleep(0.002)


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where groups are made: a directory for each controller, the same one under v2."""

    version: Literal[1, 2]
    memory: Path
    pids: Path

    def create(self, *, memory_bytes: int, pids: int) -> Cgroup:
        """A fresh group with its limits set, swap included. Raises OSError."""
        name = f"{PREFIX}{os.getpid()}-{pid_namespace()}-{next(_numbers)}"
        group = Cgroup(self.memory / name, self.pids / name)
        for path in group.paths:
            path.mkdir()
        try:
            if self.version == 1:
                (group.memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
                _write_if_there(group.memory / "memory.memsw.limit_in_bytes", str(memory_bytes))
            else:
                (group.memory / "memory.max").write_text(str(memory_bytes))
                _write_if_there(group.memory / "memory.swap.max", "0")
            (group.pids / "pids.max").write_text(str(pids))
        except OSError:
            group.discard()
            raise
        return group

    def orphans(self) -> list[Path]:
        """Groups of owners that are dead."""
        mark = f"{PREFIX}*-{pid_namespace()}-*"  # what an owner's process id means elsewhere is not ours to say
        groups = [path for parent in {self.memory, self.pids} for path in parent.glob(mark)]
        return [path for path in groups if not Path("/proc", path.name.split("-")[-3]).exists()]

    def sweep(self) -> int:
        """End and remove what a killed owner left behind; how many. Blocks, for a moment if there is anything."""
        orphans = self.orphans()
        for path in orphans:
            with suppress(OSError):
                for pid in map(int, (path / "cgroup.procs").read_text().split()):
                    if pid > 0:  # 0 stands for what this namespace cannot see
                        os.kill(pid, signal.SIGKILL)
        _wait_removed(orphans, SWEEP_SECONDS)
        return len({path.name for path in orphans})


def sweep() -> int:
    """What `Cgroups.sweep` does, wherever groups may have been made."""
    return sum(place.sweep() for place in _places())


def find() -> Cgroups | str:
    """Where this process may make groups that bind, tried for real; or, in words, why nowhere."""
    why = "no memory and pids controllers are mounted"
    for place in _places():
        failure = _try(place)
        if failure is None:
            return place
        why = failure
    return why


def _places() -> list[Cgroups]:
    """Candidates: both v1 controllers; else the v2 root, or beside our own group where systemd delegated it to us."""
    v1: dict[str, Path] = {}
    v2: list[Path] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        mount = Path(left.split()[4])
        if kind == "cgroup":
            v1 |= {name: mount for name in ("memory", "pids") if name in options.split(",")}
        elif kind == "cgroup2":
            own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
            v2 += [mount, (mount / own).parent] if own else [mount]
    if len(v1) == 2:
        return [Cgroups(1, v1["memory"], v1["pids"])]
    return [Cgroups(2, path, path) for path in v2]


def _try(place: Cgroups) -> str | None:
    """Make a group, run a process in it, remove it; what failed."""
    if place.version == 2:
        control = place.memory / "cgroup.subtree_control"
        enabled = control.read_text().split() if control.exists() else []
        if not {"memory", "pids"} <= set(enabled):
            return f"{place.memory} does not hand on the memory and pids controllers"
    try:
        group = place.create(memory_bytes=64 << 20, pids=8)
    except OSError as error:
        return f"{place.memory} is not ours to write ({error.strerror})"
    run = subprocess.run(group.joined(["/bin/true"]), capture_output=True, timeout=10, check=False)
    _wait_removed(group.paths, SWEEP_SECONDS)
    return None if run.returncode == 0 else f"no process of ours can be moved to {place.memory}"


def _wait_removed(groups: Iterable[Path], seconds: float) -> None:
    """Remove groups as soon as their last processes are gone, as long as that takes no more than `seconds`."""
    deadline = time.monotonic() + seconds
    left = list(groups)
    while (left := [path for path in left if not _removed(path)]) and time.monotonic() < deadline:
        time.sleep(0.002)


def _removed(path: Path) -> bool:
    """Try to remove a group; False while processes are in it."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _counter(path: Path, key: str) -> int:
    """A counter of a group's event file; 0 if there is none."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum(int(value) for name, _, value in (line.partition(" ") for line in lines) if name == key)


def _write_if_there(path: Path, text: str) -> None:
    """Set a limit that not every kernel has (swap accounting)."""
    if path.exists():
        path.write_text(text)
