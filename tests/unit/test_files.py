"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from rollout_workers.files import replacing


def test_replacing_takes_the_place_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["w"]


def test_replacing_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"old")

    def fails_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails_half_way()
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["w"]
