"""Where published weights lie, and directories that go with their process."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import config_of

from rl.config import ConfigError
from rl.driver.publisher import Files, ObjectStore, Transport, WeightsDirectory, opened
from rollout_workers.weights import sees

TOO_LARGE = 1 << 60
"""Bytes of a model that no shared memory holds: the fallback is taken."""


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[WeightsDirectory]:
    with WeightsDirectory.open(tmp_path, TOO_LARGE, keep=2) as opened:
        yield opened


def test_only_the_newest_are_kept(weights: WeightsDirectory) -> None:
    for version in (0, 1, 9, 10, 11):
        weights.file(version).write_bytes(b"weights")
    weights.prune()
    assert weights.versions() == {10: weights.file(10), 11: weights.file(11)}
    weights.prune()
    assert list(weights.versions()) == [10, 11]


def test_what_is_half_written_is_no_version(weights: WeightsDirectory) -> None:
    weights.file(3).write_bytes(b"weights")
    (weights.path / ".00000004.safetensors.7.tmp").write_bytes(b"half")
    assert list(weights.versions()) == [3]


def test_it_goes_with_the_run(tmp_path: Path) -> None:
    with pytest.raises(KeyError), WeightsDirectory.open(tmp_path, TOO_LARGE, keep=2) as weights:
        weights.file(0).write_bytes(b"weights")
        assert weights.path.parent == tmp_path
        assert os.listdir(tmp_path) == [weights.path.name]
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_what_fits_lies_in_shared_memory(tmp_path: Path) -> None:
    with WeightsDirectory.open(tmp_path, 1, keep=2) as weights:
        in_memory = Path("/dev/shm").is_dir()
        assert weights.path.parent == (Path("/dev/shm") if in_memory else tmp_path)
    assert not weights.path.exists()


class Placed:
    """An actor on this host, or on another one."""

    def __init__(self, name: str, *, here: bool = True) -> None:
        self.name, self._here = name, here

    async def call(self, method: str, directory: str) -> bool:
        """Whether the directory is there."""
        assert method == "sees"
        return self._here and sees(directory)

    async def ready(self) -> "Placed":
        """As a worker of the fleet."""
        return self


async def _opened(directory: Path, transport: str, learner: Placed, *workers: Placed) -> Transport:
    fleet: Any = SimpleNamespace(workers=workers, files=None)
    config = config_of(f"rollout.engine.transport={transport}")
    async with opened(config, directory, learner, fleet, 1) as found:  # type: ignore[arg-type]
        assert (fleet.files is not None) == isinstance(found, Files), "workers that come up later have to see them"
        return found


async def test_files_are_taken_where_every_actor_sees_them(tmp_path: Path) -> None:
    here, there = Placed("worker-0"), Placed("worker-1", here=False)
    assert isinstance(await _opened(tmp_path, "auto", Placed("learner"), here), Files)
    assert isinstance(await _opened(tmp_path, "auto", Placed("learner"), here, there), ObjectStore)
    assert isinstance(await _opened(tmp_path, "auto", Placed("learner", here=False), here), ObjectStore)


async def test_files_that_do_not_get_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"transport is 'file', and worker-1 cannot see .*: 'auto' and 'ray' get"):
        await _opened(tmp_path, "file", Placed("learner"), Placed("worker-0"), Placed("worker-1", here=False))


async def test_ray_keeps_as_many_versions_as_are_wanted_and_no_more() -> None:
    class Packs:
        async def call(self, method: str) -> tuple[str]:
            """A reference, as a tuple of one."""
            assert method == "pack_weights"
            return ("reference",)

    offered: list[int] = []
    fleet: Any = SimpleNamespace(offer=lambda ref, data: offered.append(ref.version))
    store = ObjectStore(Packs(), fleet, keep=2)  # type: ignore[arg-type]
    for version in range(5):
        await store.prepare(version)
        await store.offer(version)
    assert offered == [0, 1, 2, 3, 4]
    assert store.versions().keys() == {3, 4}
