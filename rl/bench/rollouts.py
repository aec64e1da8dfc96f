"""`cwm-rl bench rollouts` and `weights`: our episodes against raw vLLM, without and with updates; updates alone."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from operator import add, truediv
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any, Final

import torch
from safetensors.torch import load_file

from rl.driver.publisher import WeightsDirectory
from rl.init_model import InitModel, init_model
from rl.learner.weights import Outbox
from rl.progress import Say
from rollout_workers.engine import Engine, EngineConfig, EngineError
from rollout_workers.episode import run_episode
from rollout_workers.renderer import Renderer
from rollout_workers.trajectory import Episode, EpisodeKey
from rollout_workers.weights import WeightsRef
from verifiers.sandbox import Sandbox, SandboxSpec, SandboxUnavailable
from verifiers.task import Limits, Message, Task

SHAPES: Final = {
    "nano": InitModel(hidden_size=128, layers=3, context=1024, vocab_size=768, sliding_window=512),
    "3m": InitModel(hidden_size=256, layers=4, intermediate_size=768, context=1024, sliding_window=512),
    "500m": InitModel(
        hidden_size=1536, layers=16, heads=12, kv_heads=4, intermediate_size=5120, vocab_size=512, context=1024
    ),
}
PROMPT_TOKENS: Final = 32

_numbers = count()


@dataclass(frozen=True)
class Work:
    """What is sampled."""

    shape: str = "nano"
    streams: int = 64
    tokens: int = 128
    replies: int = 4
    """Of each stream, one after the other, in a round."""
    rounds: int = 5
    """Of each kind, by turns; the median counts."""
    update_every: float = 1.0
    """Seconds."""


@dataclass(frozen=True)
class Updates:
    """What is swapped."""

    shape: str = "3m"
    streams: int = 16
    updates: int = 20


@asynccontextmanager
async def _served(shape: str, streams: int) -> AsyncIterator[tuple[Engine, Path]]:
    """An engine on random weights, and the file they lie in."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        await asyncio.to_thread(init_model, SHAPES[shape], model)
        config = EngineConfig(context=SHAPES[shape].context, kv_cache_gib=1)
        options: dict[str, Any] = {"dtype": "float32", "slots": streams, "temperature": 1.0, "stop": (), "seed": 0}
        async with Engine.start(str(model), config, **options) as engine:
            await engine.serve()
            yield engine, model / "model.safetensors"


def _task(prompt: list[int], tokens: int) -> Task:
    text = "".join(ascii_lowercase[token % 26] for token in prompt)
    limits = Limits(turns=1, reply_tokens=tokens)
    return Task(f"bench/{text}", "bench", (Message("user", text),), "math", environment="single_turn", limits=limits)


class _NoSandboxes:
    """Nothing that is sampled here is executed."""

    def open(self, spec: SandboxSpec = SandboxSpec()) -> AbstractAsyncContextManager[Sandbox]:  # noqa: B008
        raise SandboxUnavailable("this benchmark has none")


def _prompts(streams: int) -> list[list[int]]:
    chance = Random(0)  # noqa: S311 - no secret
    return [[chance.randrange(32, 256) for _ in range(PROMPT_TOKENS)] for _ in range(streams)]


async def rollouts(work: Work, say: Say) -> dict[str, Any]:
    """Tokens a second of as many streams, by turns: raw vLLM on the prompts of episodes, those episodes as a worker
    acts them, and the same with updates. All in this process: Ray's way to a worker is in none of them. Each time all
    of them begin with nothing in the prefix cache, as after an update. Ratios are medians over the rounds, of what was
    measured within seconds: a shared machine is quicker in one minute than in the next.
    """
    say(f"starting an engine on {work.shape} …")
    async with _served(work.shape, work.streams) as (engine, weights):
        renderer, versions = Renderer.load(str(weights.parent)), count(1)
        tasks = [_task(prompt, work.tokens) for prompt in _prompts(work.streams)]
        prompts = {task.id: renderer.prompt(task.messages) for task in tasks}

        async def streams(sample: Callable[[Task], Awaitable[object]]) -> None:
            async def one(task: Task) -> None:
                for _ in range(work.replies):
                    await sample(task)

            await asyncio.gather(*map(one, tasks))

        async def acted(task: Task) -> None:
            found = await run_episode(EpisodeKey(next(_numbers), 0, 0), task, engine, renderer, _NoSandboxes())
            if not isinstance(found, Episode) or found.sampled_tokens != work.tokens:
                raise EngineError(f"an episode of the benchmark came to nothing: {found}")

        kinds: dict[str, Callable[[], Awaitable[object]]] = {
            "raw": lambda: streams(lambda task: _raw(engine, prompts[task.id], work.tokens, f"raw-{engine.version}")),
            "ours": lambda: streams(acted),
        }
        kinds["updated"] = lambda: _updated(kinds["ours"], engine, weights, versions, work.update_every)
        for kind in kinds.values():
            await kind()
        updates = 0
        speeds: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(work.rounds):
            say(f"round {number + 1} of {work.rounds} …")
            for name, kind in list(kinds.items())[:: 1 if number % 2 else -1]:
                await engine.swap(WeightsRef(next(versions), str(weights)))
                began, before = time.monotonic(), engine.version
                await kind()
                updates += engine.version - before
                speeds[name].append(work.streams * work.replies * work.tokens / (time.monotonic() - began))
        raw, ours, updated = (speeds[name] for name in ("raw", "ours", "updated"))
        return {
            "rollouts": {
                "shape": work.shape,
                "raw_tokens_per_s": statistics.median(raw),
                "tokens_per_s": statistics.median(ours),
                "ratio": statistics.median(map(truediv, ours, raw)),
                "updated_tokens_per_s": statistics.median(updated),
                "updated_ratio": statistics.median(map(truediv, updated, ours)),
                "updates": updates,
            }
        }


async def _raw(engine: Engine, prompt: Sequence[int], tokens: int, salt: str) -> None:
    """AsyncLLM at its best: nothing of ours, log-probabilities of what was sampled in their quicker form."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=1.0,
        max_tokens=tokens,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    request = {"prompt_token_ids": list(prompt), "cache_salt": salt}
    async for _ in engine._llm.generate(request, params, request_id=f"raw-{next(_numbers)}"):
        pass


async def _updated(
    sample: Callable[[], Awaitable[object]], engine: Engine, weights: Path, versions: Iterator[int], every: float
) -> None:
    sampled = asyncio.Event()

    async def updates() -> None:
        while not sampled.is_set():
            try:
                await asyncio.wait_for(sampled.wait(), every)
            except TimeoutError:
                await engine.swap(WeightsRef(next(versions), str(weights)))

    updating = asyncio.create_task(updates())
    try:
        await sample()
    finally:
        sampled.set()  # no cancelling: half an update would leave the engine paused
        await updating


async def weights(work: Updates, say: Say) -> dict[str, Any]:
    """Milliseconds of an update under running requests, from the learner's step to sampling by what came of it.

    `paused_ms` of it is the pause. `released_ms` is no part of it: what the learner then pays before it can step again;
    `read_ratio_with_release` is what both together take, in readings of the file.
    `read_ms` is for reading the file once, when nobody samples.
    """
    say(f"starting an engine on {work.shape} …")
    async with _served(work.shape, work.streams) as (engine, model):
        size = model.stat().st_size
        tensors = {name: tensor.clone() for name, tensor in load_file(model).items()}
        with WeightsDirectory.open(model.parent, size, keep=1) as files:
            return await _weights(work, engine, tensors, files)


async def _weights(
    work: Updates, engine: Engine, tensors: dict[str, torch.Tensor], files: WeightsDirectory
) -> dict[str, Any]:
    outbox, sampling = Outbox(tensors), asyncio.create_task(_without_end(engine, work.streams))
    whole, paused, released = [], [], []
    try:
        await asyncio.sleep(1)
        for version in range(1, work.updates + 1):
            for tensor in tensors.values():
                tensor.mul_(1.0001)  # in place of a step
            file = files.file(version)
            began = time.monotonic()
            await asyncio.to_thread(outbox.publish, file)
            paused.append(await engine.swap(WeightsRef(version, str(file))))
            whole.append(time.monotonic() - began)
            files.prune()
            began = time.monotonic()
            await asyncio.to_thread(outbox.release)
            released.append(time.monotonic() - began)
            await asyncio.sleep(0.2)
    finally:
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
    read = [await asyncio.to_thread(_read_seconds, file) for _ in range(5)]
    return {
        "weights": {
            "shape": work.shape,
            "file_mb": file.stat().st_size / 2**20,
            "update_ms": 1000 * statistics.median(whole),
            "paused_ms": 1000 * statistics.median(paused),
            "released_ms": 1000 * statistics.median(released),
            "read_ms": 1000 * statistics.median(read),
            "read_ratio": statistics.median(whole) / statistics.median(read),
            "read_ratio_with_release": statistics.median(map(add, whole, released)) / statistics.median(read),
        }
    }


async def _without_end(engine: Engine, streams: int) -> None:
    async def one(prompt: list[int]) -> None:
        while True:
            await engine.sample(prompt, 256)

    await asyncio.gather(*(one(prompt) for prompt in _prompts(streams)))


def _read_seconds(file: Path) -> float:
    began = time.monotonic()
    with file.open("rb", buffering=0) as stream:
        buffer = bytearray(1 << 22)
        while stream.readinto(buffer):
            pass
    return time.monotonic() - began


def in_words(found: dict[str, Any]) -> str:
    """The result as text for people."""
    (values,) = found.values()
    return "\n".join(
        f"{name:>24}  {value:,.4g}" if isinstance(value, float) else f"{name:>24}  {value}"
        for name, value in values.items()
    )
