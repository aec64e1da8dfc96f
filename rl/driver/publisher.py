"""How weights get from the learner to the workers, and where they lie until no worker can want them any more.

Files        a file in shared memory, one host
ObjectStore  Ray's object store, several hosts
Broadcast    NCCL, which waits for every worker; not yet run on a GPU
"""

import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from rl.cluster import Actor, PushClient
from rl.config import Config, ConfigError
from rl.driver.fleet import Fleet
from rollout_workers.scratch import PUBLISHED, SHARED_MEMORY, scratch
from rollout_workers.weights import WeightsRef

_SPARE = 3
"""Versions kept for workers that are behind, beside those that are compared at the end."""


class Transport(Protocol):
    """Takes weights out of the learner, and then, once the ledger knows their version, to the workers."""

    async def prepare(self, version: int) -> None:
        """Have them ready. No worker knows of them yet."""
        ...

    async def offer(self, version: int) -> None:
        """Put them into every worker's mailbox."""
        ...

    def versions(self) -> Mapping[int, Any]:
        """What can still be had, as `Learner.gaps` takes it."""
        ...


class WeightsDirectory:
    """The newest weight files, one a version."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self._keep = keep

    @classmethod
    @contextmanager
    def open(cls, fallback: Path, model_bytes: int, keep: int, engines: int = 1) -> Iterator["WeightsDirectory"]:
        """For `keep` versions, those that engines still use, and what the learner works on.

        In shared memory if they fit there twice over, else below `fallback`.
        """
        room = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
        wanted = 2 * (keep + engines + 1) * model_bytes
        with scratch(PUBLISHED, SHARED_MEMORY if room > wanted else fallback) as path:
            yield cls(path, keep)

    def file(self, version: int) -> Path:
        """Where a version's weights go."""
        return self.path / f"{version:08d}.safetensors"

    def prune(self) -> None:
        """Remove all but the newest. A worker that still wanted one of them notices, and takes the newest instead."""
        for path in sorted(self.path.glob("*.safetensors"))[: -self._keep]:
            path.unlink()

    def versions(self) -> dict[int, Path]:
        """Version -> file, of those that are not pruned."""
        return {int(path.stem): path for path in sorted(self.path.glob("*.safetensors"))}


class Files:
    """The learner writes, the engines read."""

    def __init__(self, learner: Actor, fleet: Fleet, directory: WeightsDirectory) -> None:
        self._learner, self._fleet, self._directory = learner, fleet, directory

    async def prepare(self, version: int) -> None:
        """See `Transport`."""
        await self._learner.call("write_weights", str(self._directory.file(version)))

    async def offer(self, version: int) -> None:
        """See `Transport`."""
        self._fleet.offer(WeightsRef(version, str(self._directory.file(version))))
        self._directory.prune()

    def versions(self) -> Mapping[int, Any]:
        """See `Transport`."""
        return {version: str(path) for version, path in self._directory.versions().items()}


class ObjectStore:
    """The learner leaves them with Ray, which takes them to every worker's host; each makes a file of its own there.

    What a Ray of our own cannot keep in its 256 MiB, it puts on disk.
    """

    def __init__(self, learner: Actor, fleet: Fleet, keep: int) -> None:
        self._learner, self._fleet, self._keep = learner, fleet, keep
        self._packed: dict[int, Any] = {}

    async def prepare(self, version: int) -> None:
        """See `Transport`."""
        (self._packed[version],) = await self._learner.call("pack_weights")

    async def offer(self, version: int) -> None:
        """See `Transport`."""
        self._fleet.offer(WeightsRef(version, ""), self._packed[version])
        for old in sorted(self._packed)[: -self._keep]:
            del self._packed[old]

    def versions(self) -> Mapping[int, Any]:
        """See `Transport`."""
        return dict(self._packed)


class Broadcast:
    """A rendezvous of the learner and all engines."""

    def __init__(self, learner: Actor) -> None:
        self._learner = learner

    async def prepare(self, version: int) -> None:
        """See `Transport`."""

    async def offer(self, version: int) -> None:
        """See `Transport`."""
        await self._learner.call("broadcast", version)

    def versions(self) -> Mapping[int, Any]:
        """See `Transport`: none is kept."""
        return {}


@asynccontextmanager
async def opened(
    config: Config, directory: Path, learner: Actor, fleet: Fleet, model_bytes: int
) -> AsyncIterator[Transport]:
    """The transport that the configuration names, or the first that reaches every actor. Raises ConfigError."""
    engine, keep = config.rollout.engine, _SPARE + config.guard.gap_versions
    if engine.transport == "nccl":
        actors = [await worker.ready() for worker in fleet.workers]
        client = PushClient(actors, engine.swap_seconds)
        await learner.call("connect", client, len(actors) * engine.tensor_parallel_size)
        yield Broadcast(learner)
    elif engine.transport == "ray":
        yield ObjectStore(learner, fleet, _kept(config))
    else:
        with WeightsDirectory.open(directory, model_bytes, keep, len(fleet.workers)) as files:
            blind = await _blind([learner, *[await worker.ready() for worker in fleet.workers]], files.path)
            if blind and engine.transport == "file":
                raise ConfigError(
                    f"rollout.engine.transport is 'file', and {', '.join(blind)} cannot see {files.path}, being on "
                    "another host: 'auto' and 'ray' get there"
                )
            if blind:
                yield ObjectStore(learner, fleet, _kept(config))
            else:
                fleet.files = files.path
                yield Files(learner, fleet, files)


async def _blind(actors: Sequence[Actor], directory: Path) -> list[str]:
    """Those that files there do not reach."""
    return [actor.name for actor in actors if not await actor.call("sees", str(directory))]


def _kept(config: Config) -> int:
    return max(1, config.guard.gap_versions)
