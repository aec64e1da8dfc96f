"""Checkpoints: ordinary Hugging Face directories, with the optimiser's state below `trainer/`. Nothing is pickled."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rl.learner.masters import Masters
from rl.learner.muon import Muon

# In a directory of their own: engines load every safetensors file that lies beside a config.json.
_OPTIMISER = "trainer/optimizer.safetensors"
_STATE = "trainer/state.json"


class CheckpointError(Exception):
    """A checkpoint that is not whole."""


def save(
    path: Path,
    model: Any,
    masters: Masters,
    tokenizer: Any,
    optimisers: Sequence[torch.optim.Optimizer],
    state: Mapping[str, Any],
) -> None:
    """Write the directory under a temporary name and rename it: it is there whole or not at all.

    The weights are those that were stepped, in float32 whatever the model's dtype. `state` is JSON and holds at least
    the `step`; no parameter has two of the optimisers. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        model.save_pretrained(temporary, state_dict=masters.state_dict())
        tokenizer.save_pretrained(temporary)  # a checkpoint without its tokenizer cannot be used
        (temporary / _OPTIMISER).parent.mkdir()
        save_file(_flatten(masters, optimisers), temporary / _OPTIMISER)
        (temporary / _STATE).write_text(json.dumps(state))
        settle(temporary, path)  # what may stand there was left by a lineage that was rolled back
    except SafetensorError as error:  # its word for a full disk
        raise OSError(f"the checkpoint {path} was not written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settle(temporary: Path, path: Path) -> None:
    """Bring a written directory to the disk and then to its name, in place of what has that name. Raises OSError."""
    for entry in temporary.rglob("*"):
        _sync(entry)
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
    _sync(path.parent)


def read_step(path: Path) -> int:
    """The step a checkpoint holds, see `read_state`. Raises CheckpointError."""
    return int(read_state(path)["step"])


def read_state(path: Path) -> dict[str, Any]:
    """The state a checkpoint holds, after a look at every file of it. Raises CheckpointError."""
    try:
        state: dict[str, Any] = json.loads((path / _STATE).read_text())
        step = state["step"]
        for file in {path / "config.json", path / "tokenizer_config.json", *path.glob("*.json")}:
            json.loads(file.read_text("utf-8"))
        weights = list(path.glob("model*.safetensors"))
        for file in [*weights, path / _OPTIMISER]:
            load_file(file)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} is not whole: {error}") from error
    if not weights or not isinstance(step, int):
        raise CheckpointError(f"the checkpoint {path} is not whole: it has no {'step' if weights else 'weights'}")
    return state


def load_optimiser(path: Path, masters: Masters, optimiser: torch.optim.Optimizer) -> None:
    """Bring the optimiser back; for parameters that another one stepped it begins anew. Raises CheckpointError."""
    try:
        flat = load_file(path / _OPTIMISER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the optimiser's state in {path} cannot be read: {error}") from error
    names = _names(masters, optimiser)
    state = {
        index: {key.rpartition("/")[2]: value for key, value in flat.items() if key.rpartition("/")[0] == name}
        for index, name in enumerate(names)
    }
    own = {"momentum_buffer"} if isinstance(optimiser, Muon) else {"step", "exp_avg", "exp_avg_sq"}
    kept = {index: one for index, one in state.items() if one.keys() == own}
    optimiser.load_state_dict({**optimiser.state_dict(), "state": kept})


def prune(directory: Path, keep: int, step: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`. Later ones were abandoned when the run fell back."""
    found = sorted(directory.glob("step-*"))
    lasting = [path for path in found if path <= path_of(directory, step)][-keep:]
    for path in found:
        if path not in lasting:
            shutil.rmtree(path)


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"step-{step:08d}"


def _flatten(masters: Masters, optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    return {
        f"{names[index]}/{key}": value.contiguous()
        for optimiser in optimisers
        for names in [_names(masters, optimiser)]
        for index, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }


def _names(masters: Masters, optimiser: torch.optim.Optimizer) -> list[str]:
    """Names of an optimiser's parameters, in the order in which it numbers them."""
    names = {id(parameter): name for name, parameter in masters.named_parameters()}
    return [names[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
