"""The policy's weights as files: safetensors, in an order that lets an engine on the same host use them where they lie.

Publishing costs no copy. The parameters lie in a file of shared memory, which becomes a version by getting its name;
before they change again they are copied to a file of their own, while the engines read the one they have left.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import torch as safetensors
from torch import Tensor

from rollout_workers.files import replacing
from rollout_workers.mapped import DTYPES, mapped_shared
from rollout_workers.scratch import SHARED_MEMORY

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT: Final = 64


def parameters(model: Any) -> dict[str, Tensor]:
    """All under their Hugging Face names. A head tied to the embedding is left out."""
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def write(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a file, whole or not at all. Raises OSError."""
    with replacing(path) as temporary:
        _write(state, temporary)


def pack(state: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """The bytes that `write` writes, (bytes,)."""
    header, names = _layout(state)
    return np.concatenate([np.frombuffer(header, np.uint8), *(_bytes(state[name]) for name in names)])


def read(model: Any, source: str | Path | NDArray[np.uint8]) -> None:
    """The other way, of a file or its bytes. Raises OSError, or RuntimeError where names or shapes differ."""
    state = safetensors.load(source.tobytes()) if isinstance(source, np.ndarray) else safetensors.load_file(source)
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)


class Outbox:
    """Publishes tensors that change in place; on a CPU and into shared memory without a copy, else by `write`."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._lie: Path | None = None
        """The file they lie in, while it is nobody else's."""
        self._published: Path | None = None
        """The last one published since they were last told that they may change."""

    def publish(self, path: Path) -> None:
        """Leave them there as they are now. Raises OSError. Until `release` they must not change."""
        if self._lie is not None and self._lie.parent == path.parent:
            self._lie.replace(path)
            self._lie = None
        else:
            write(self._state, path)
        self._published = path

    def release(self) -> None:
        """What was published stays as it was, whatever now happens to the tensors."""
        if self._published is None:
            return
        parent = self._published.parent
        distinct = len({tensor.data_ptr() for tensor in self._state.values()}) == len(self._state)
        if parent.is_relative_to(SHARED_MEMORY) and distinct and _on_cpu(self._state):
            self._move(parent)
        self._published = None

    def _move(self, parent: Path) -> None:
        """To a file of their own, or, where there is no room, to memory of this process: publishing then says so."""
        path = None
        try:
            number, name = tempfile.mkstemp(".next", ".", parent)
            os.close(number)
            path = Path(name)
            _write(self._state, path)
            moved = mapped_shared(path)
        except OSError:
            if path is not None:
                path.unlink(missing_ok=True)
            moved, path = {name: tensor.detach().clone() for name, tensor in self._state.items()}, None
        for name, tensor in self._state.items():
            tensor.data = moved[name]
        self._lie = path


def _on_cpu(state: Mapping[str, Tensor]) -> bool:
    return all(tensor.device.type == "cpu" for tensor in state.values())


def _layout(state: Mapping[str, Tensor]) -> tuple[bytes, list[str]]:
    """The header, with its length before it, and the names in the file's order.

    Weights of one parent lie side by side, as its biases do, each in the model's order: query, key and value, or gate
    and up, which an engine has as one matrix, are one there, too. Format: huggingface/safetensors, README.
    """
    kinds: dict[tuple[str, str], int] = {}
    for name in state:
        kinds.setdefault(_kind(name), len(kinds))
    names = sorted(state, key=lambda name: (-state[name].element_size(), kinds[_kind(name)]))
    entries, end = {}, 0
    for name in names:
        tensor, start = state[name], end
        end += tensor.nbytes
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-(len(header) + 8) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header, names


def _kind(name: str) -> tuple[str, str]:
    module, _, leaf = name.rpartition(".")
    return module.rpartition(".")[0], leaf


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _write(state: Mapping[str, Tensor], path: Path) -> None:
    header, names = _layout(state)
    with path.open("wb") as file:
        file.write(header)
        for name in names:
            file.write(_bytes(state[name]).data)
