"""What a configuration would start, and whether this machine can carry it."""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

from rl.cluster import joined
from rl.config import Config, PartConfig, WarmStartConfig
from rl.doctor import memory
from rollout_workers.sandbox.select import choose
from verifiers.errors import UserError

_BASE_BYTES = 3 << 30
"""Driver, Ray, learner and one engine; the nano run was measured at 2.8 GiB, 0.5 of it its KV cache."""
_DISK_BYTES = 1 << 30


class MachineError(UserError):
    """This machine cannot carry the run."""


def check_machine(config: Config) -> None:
    """For runs on this machine alone: memory, disk and a sandbox. Raises MachineError, SandboxUnavailable."""
    if joined(config.cluster.address):
        return
    needed = _BASE_BYTES + int((config.rollout.engine.kv_cache_gib or 0) * 2**30) * config.rollout.workers
    _, available = memory()
    if available < needed:
        raise MachineError(
            f"{available / 2**30:.1f} GiB of memory are available and the run needs about {needed / 2**30:.1f}: "
            "end other programs, or set fewer rollout.workers or a smaller rollout.engine.kv_cache_gib"
        )
    directory = _existing(config.run.directory)
    if (free := shutil.disk_usage(directory).free) < _DISK_BYTES:
        raise MachineError(
            f"{free / 2**20:.0f} MiB of disk are free at {directory} and a run needs 1 GiB: make room, or set "
            "run.directory"
        )
    sandbox = config.rollout.sandbox
    asyncio.run(choose(sandbox.backend, image=sandbox.image, runtime=sandbox.runtime))


def in_words(config: Config) -> list[str]:
    """What `cwm-rl train` would start."""
    rollout, learner = config.rollout, config.learner
    engine = rollout.engine
    where = joined(config.cluster.address)
    model = config.model.path or "made from nothing, as [model.init] says"
    return [
        f"cluster    {where or 'a Ray of its own on loopback'}",
        f"model      {model}, {config.model.dtype}",
        f"workers    {rollout.workers} x {rollout.slots} episodes at once, {rollout.cpus:g} CPUs and {rollout.gpus:g} "
        f"GPUs each, context {engine.context}, KV cache at a swap: {engine.kv}",
        f"warm start {'none' if config.warm_start is None else _warm_start(config.warm_start)}",
        f"learner    {learner.device}, {learner.cpus:g} CPUs and {learner.gpus:g} GPUs, AdamW {learner.lr:g}",
        f"weights    by {engine.transport}",
        f"sandbox    {rollout.sandbox.backend}",
        f"tasks      {', '.join(_tasks(config))}",
        *(f"rewards    {name}: {_recipe(parts)}" for name, parts in config.verifiers.items()),
        f"batches    of {config.algorithm.token_budget} tokens with an advantage, groups of "
        f"{config.algorithm.group_size}, lag at most {config.algorithm.max_lag}",
        f"steps      {config.run.steps}, a checkpoint every {config.checkpoint.every}",
    ]


def _tasks(config: Config) -> list[str]:
    files = [str(config.data.dir / source.path) for source in config.data.sources]
    return files + [f"generated {one.generator} at difficulty {one.difficulty}" for one in config.data.generated]


def _recipe(parts: Mapping[str, PartConfig]) -> str:
    """`1 math + 0.2 length if correct, format as a gate`."""
    summed = (f"{one.weight:g} {name}{' if correct' * one.if_correct}" for name, one in parts.items() if not one.gate)
    gates = (f"{name} as a gate" for name, one in parts.items() if one.gate)
    return ", ".join([" + ".join(summed), *gates])


def _warm_start(warm: WarmStartConfig) -> str:
    return f"{warm.sft.tokens:,} tokens of demonstrations, kept in {warm.directory}"


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
