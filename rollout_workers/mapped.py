"""A safetensors file as tensors that lie where the file does. All are of one storage, so that neighbours can be one."""

import json
import mmap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By their names in the format (huggingface/safetensors, README)."""


def mapped(path: Path, *, shared: bool = False) -> dict[str, Tensor]:
    """All tensors by name; writing to one changes the file if `shared`, else this process's copy of the page.

    Raises OSError, and ValueError, LookupError or RuntimeError for what is no such file.
    """
    with path.open("r+b" if shared else "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        # Populated where it will be written: a fault for every page in the middle of an optimiser's step costs more.
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE if shared else mmap.MAP_PRIVATE
        memory = torch.frombuffer(mmap.mmap(file.fileno(), 0, flags=flags), dtype=torch.uint8)
    data = memory[8 + length :]
    return {
        name: data[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]]).view(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def joined(parts: Sequence[Tensor]) -> Tensor:
    """They below each other, (rows of all, …): as they lie, where that is side by side, else copied."""
    first = parts[0]
    beside = all(
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.data_ptr() + one.nbytes == other.data_ptr()
        for one, other in pairwise(parts)
    )
    if not beside:
        return torch.cat(list(parts))
    return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())
