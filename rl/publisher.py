"""Where published weights lie until no worker can want them any more."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl.scratch import scratch

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (a directory of our own is made in it)
_PREFIX = "cwm-rl-weights"


class WeightsDirectory:
    """The newest weight files, one a version."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self._keep = keep

    @classmethod
    @contextmanager
    def open(cls, fallback: Path, model_bytes: int, keep: int) -> Iterator["WeightsDirectory"]:
        """For `keep` versions: in shared memory if they fit there twice over, else below `fallback`."""
        room = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else 0
        with scratch(_PREFIX, _SHARED_MEMORY if room > 2 * (keep + 1) * model_bytes else fallback) as path:
            yield cls(path, keep)

    def file(self, version: int) -> Path:
        """Where a version's weights go."""
        return self.path / f"{version:08d}.safetensors"

    def prune(self) -> None:
        """Remove all but the newest. A worker that still wanted one of them notices, and takes the newest instead."""
        for path in sorted(self.path.glob("*.safetensors"))[: -self._keep]:
            path.unlink()

    def versions(self) -> dict[int, Path]:
        """What is still here."""
        return {int(path.stem): path for path in sorted(self.path.glob("*.safetensors"))}
