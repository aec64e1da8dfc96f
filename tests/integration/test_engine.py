"""The engine with real weights: what it samples after an update is of the new file, and a bad file changes nothing."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import AsyncMock

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rl.bench.rollouts import SHAPES
from rl.init_model import init_model
from rl.learner import weights
from rollout_workers.engine import Engine, EngineConfig, EngineError
from rollout_workers.trajectory import Completion
from rollout_workers.weights import WeightsError, WeightsRef

pytestmark = [
    pytest.mark.required,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # what vLLM and torch say of themselves
]

PROMPT = list(range(40, 72))


def logprobs_of(model: Path, tokens: tuple[int, ...]) -> torch.Tensor:
    """By transformers, of `tokens` after the prompt."""
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(
            torch.tensor([[*PROMPT, *tokens]])
        ).logits
    return logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)[torch.arange(len(tokens)), list(tokens)]


def gaps(models: Sequence[Path], completions: Sequence[Completion]) -> dict[int, float]:
    """By version: how far log-probabilities are from transformers' with the weights of that version all along."""
    tokens, found, at = tuple(token for one in completions for token in one.tokens), {}, 0
    for one in completions:
        own = logprobs_of(models[one.version], tokens)[at : at + len(one.tokens)]
        found[one.version] = (own - torch.tensor(one.logprobs)).abs().max().item() if one.tokens else 0.0
        at += len(one.tokens)
    return found


def in_use(file: Path) -> bool:
    """Whether a child process has it in its memory."""
    children = psutil.Process().children(recursive=True)
    return any(str(file) in Path(f"/proc/{child.pid}/maps").read_text() for child in children)


async def test_updates_are_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [tmp_path / str(seed) for seed in range(3)]
    for seed, model in enumerate(models):
        init_model(SHAPES["nano"].model_copy(update={"seed": seed}), model)
    files = [model / "model.safetensors" for model in models]
    files[2] = tmp_path / "as a learner writes it"
    weights.write(weights.parameters(AutoModelForCausalLM.from_pretrained(models[2], dtype=torch.float32)), files[2])

    tensors = load_file(files[1])
    lacking, misshapen, cut = (tmp_path / f"{name}.safetensors" for name in ("lacking", "misshapen", "cut"))
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up_proj" not in name}, lacking)
    save_file({**tensors, "model.norm.weight": torch.ones(7)}, misshapen)
    cut.write_bytes(files[1].read_bytes()[:-1])

    options = {"dtype": "float32", "slots": 4, "temperature": 1.0, "stop": (), "seed": 0}
    async with Engine.start(str(models[0]), EngineConfig(context=512, kv_cache_gib=0.1), **options) as engine:
        await engine.serve()

        async def is_exactly(model: Path, version: int) -> None:
            (completion,) = (await engine.sample(PROMPT, 24)).completions
            assert completion.version == version
            gap = logprobs_of(model, completion.tokens) - torch.tensor(completion.logprobs)
            assert gap.abs().max() < 1e-4

        await is_exactly(models[0], 0)
        await engine.swap(WeightsRef(1, str(files[1])))
        await is_exactly(models[1], 1)
        for bad, said in ((lacking, "up_proj"), (misshapen, "7"), (cut, "not whole")):
            with pytest.raises(WeightsError, match=said):
                await engine.swap(WeightsRef(2, str(bad)))
            await is_exactly(models[1], 1)
        call, config = engine._llm.collective_rpc, engine._config
        with monkeypatch.context() as slow:
            slow.setattr(engine, "_config", config.model_copy(update={"swap_seconds": 0.1}))
            slow.setattr(engine._llm, "collective_rpc", AsyncMock(return_value=[None]))
            with pytest.raises(WeightsError, match=r"not loaded within 0.1 s"):
                await engine.swap(WeightsRef(2, str(files[1])))
        await is_exactly(models[1], 1)

        # Under requests that run, whose cache stays as it is; the third set lies as a learner writes it.
        running = [asyncio.create_task(engine.sample(PROMPT, 400)) for _ in range(4)]
        queued = asyncio.create_task(engine.sample(PROMPT, 50))  # for a slot, until all swaps are over
        await asyncio.sleep(0.2)
        for version, file in ((2, files[2]), (3, files[0]), (4, files[2])):
            await engine.swap(WeightsRef(version, str(file)))
        by_version = [models[0], models[1], models[2], models[0], models[2]]
        for reply in running:
            found = gaps(by_version, (await reply).completions)
            assert found.keys() >= {1, 4}
            assert found[1] < 1e-4 < found[4]
        assert gaps(by_version, (await queued).completions)[4] < 1e-4
        await is_exactly(models[2], 4)
        assert in_use(files[2]), "it is sampled from where it lies"
        assert not in_use(files[0]), "it was let go of"

        # One that fails in its pause: who waits for a reply is told, too, and so is who asks for one.
        running[0] = asyncio.create_task(engine.sample(PROMPT, 400))
        await asyncio.sleep(0.2)
        monkeypatch.setattr(
            engine._llm, "collective_rpc", lambda name, *a, **b: call(name.replace("take_", "no_"), *a, **b)
        )
        for failing in (engine.swap(WeightsRef(5, str(files[1]))), running[0], engine.sample(PROMPT, 4)):
            with pytest.raises(EngineError, match="could not take weights"):
                await asyncio.wait_for(failing, 30)


async def test_a_cache_that_is_computed_anew_leaves_nothing_of_the_old_weights(tmp_path: Path) -> None:
    models = [tmp_path / str(seed) for seed in range(2)]
    for seed, model in enumerate(models):
        init_model(SHAPES["nano"].model_copy(update={"seed": seed}), model)
    options = {"dtype": "float32", "slots": 2, "temperature": 1.0, "stop": (), "seed": 0}
    config = EngineConfig(context=512, kv_cache_gib=0.1, kv="recompute")
    async with Engine.start(str(models[0]), config, **options) as engine:
        await engine.swap(WeightsRef(0, str(models[0] / "model.safetensors")))  # the first one takes its time
        running = [asyncio.create_task(engine.sample(PROMPT, 450)) for _ in range(2)]
        await asyncio.sleep(0.2)
        await engine.swap(WeightsRef(1, str(models[1] / "model.safetensors")))
        for reply in running:
            found = gaps(models, (await reply).completions)
            assert found.keys() == {0, 1} and max(found.values()) < 1e-4
