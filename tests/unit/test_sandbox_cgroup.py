"""Limits and counters of both versions of control groups, on plain files in their place."""

import signal
import subprocess
from pathlib import Path

import pytest

from rollout_workers.sandbox.cgroup import Cgroups


@pytest.mark.parametrize(
    ("version", "limit", "events"),
    [(1, "memory.limit_in_bytes", "memory.oom_control"), (2, "memory.max", "memory.events")],
)
def test_limits_are_written_and_counters_read(tmp_path: Path, version: int, limit: str, events: str) -> None:
    parent = Cgroups(1 if version == 1 else 2, tmp_path / "memory", tmp_path / "pids")
    parent.memory.mkdir()
    parent.pids.mkdir()
    group = parent.create(memory_bytes=123 << 20, pids=45)
    assert (group.memory / limit).read_text() == str(123 << 20)
    assert (group.pids / "pids.max").read_text() == "45"
    assert group.oom_kills() == group.forks_refused() == 0
    (group.memory / events).write_text("low 0\noom 7\noom_kill 3\noom_group_kill 9\n")
    (group.pids / "pids.events").write_text("max 12\n")
    assert (group.oom_kills(), group.forks_refused()) == (3, 12)


def test_groups_never_share_a_name(tmp_path: Path) -> None:
    parent = Cgroups(2, tmp_path, tmp_path)
    assert len({parent.create(memory_bytes=1, pids=1).memory for _ in range(20)}) == 20


@pytest.mark.slow
def test_sweeping_takes_groups_of_the_dead_alone_and_of_no_other_pid_namespace(tmp_path: Path) -> None:
    parent = Cgroups(2, tmp_path, tmp_path)
    ours = parent.create(memory_bytes=1, pids=1).memory
    here = ours.name.split("-")[-2]
    dead, busy, elsewhere = (f"cwm-rl-999999999-{rest}" for rest in (f"{here}-0", f"{here}-1", "1-0"))
    for name in (dead, busy, elsewhere, "another"):
        (tmp_path / name).mkdir()
    with subprocess.Popen(["sleep", "60"]) as left_behind:
        (tmp_path / busy / "cgroup.procs").write_text(f"0\n{left_behind.pid}\n")  # 0: not to be seen from here
        parent.sweep()
        assert left_behind.wait(5) == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {"another", busy, elsewhere, ours.name}
