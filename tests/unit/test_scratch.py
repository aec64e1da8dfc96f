"""Directories of one process, where several containers may make theirs."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from rollout_workers.scratch import pid_namespace, scratch


@pytest.fixture
def dead() -> int:
    """A process id that nobody has any more."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_directories_of_the_dead_are_swept_and_no_others(tmp_path: Path, dead: int) -> None:
    here = pid_namespace()
    left, living = f"cwm-rl-x-{dead}-{here}-0", f"cwm-rl-x-{os.getpid()}-{here}-0"
    others = ["cwm-rl-x-mine", f"cwm-rl-y-{dead}-{here}-0", f"{dead}"]
    for name in (left, living, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with scratch("cwm-rl-x", tmp_path) as path:
        assert {one.name for one in tmp_path.iterdir()} == {living, *others, path.name}
    assert {one.name for one in tmp_path.iterdir()} == {living, *others}


def test_who_is_dead_in_another_pid_namespace_is_not_ours_to_say(tmp_path: Path, dead: int) -> None:
    elsewhere = tmp_path / f"cwm-rl-x-{dead}-{pid_namespace() + 1}-0"
    elsewhere.mkdir()
    with scratch("cwm-rl-x", tmp_path):
        assert elsewhere.is_dir()


def test_two_of_one_process_stand_side_by_side_and_nobody_else_looks_into_them(tmp_path: Path) -> None:
    with scratch("x", tmp_path) as first, scratch("x", tmp_path) as second:
        assert first != second
        assert [stat.S_IMODE(one.stat().st_mode) for one in (first, second)] == [0o700, 0o700]
