"""A safetensors file as tensors that lie where the file does."""

import json
import math
import mmap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final

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
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BOOL": torch.bool,
}
"""By their names in the format (huggingface/safetensors, README)."""


def mapped(path: Path) -> dict[str, Tensor]:
    """To be read; all of one storage, so that neighbours can be one. Writing changes this process's copy of a page.

    Raises OSError, and ValueError, LookupError, TypeError or RuntimeError for what is no such file.
    """
    with path.open("rb") as file:
        header, start = _header(file)
        memory = torch.frombuffer(mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE), dtype=torch.uint8)
    found = {}
    for name, entry in header.items():
        dtype, (first, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        data = memory[start + first : start + end]
        aligned = (start + first) % dtype.itemsize == 0  # ours are
        found[name] = (data if aligned else data.clone()).view(dtype).view(entry["shape"])
    return found


def mapped_shared(path: Path) -> dict[str, Tensor]:
    """To be written, which changes the file; each of a storage of its own, as those who save them expect.

    The file must be aligned to what it holds. Raises what `mapped` does.
    """
    with path.open("r+b") as file:
        header, start = _header(file)
        # Populated: a fault for every page of it in the middle of an optimiser's step would cost more.
        memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    found = {}
    for name, entry in header.items():
        dtype, shape, first = DTYPES[entry["dtype"]], entry["shape"], start + entry["data_offsets"][0]
        count = math.prod(shape)
        flat = (
            torch.frombuffer(memory, dtype=dtype, count=count, offset=first) if count else torch.empty(0, dtype=dtype)
        )
        found[name] = flat.view(shape)
    return found


def _header(file: IO[bytes]) -> tuple[dict[str, Any], int]:
    """What is said of each tensor, and where the data begin."""
    length = int.from_bytes(file.read(8), "little")
    header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def joined(parts: Sequence[Tensor]) -> Tensor:
    """They below each other, (rows of all, …): as they lie, where that is side by side, else copied."""
    first = parts[0]
    if len(parts) == 1:
        return first
    beside = all(
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.data_ptr() + one.nbytes == other.data_ptr()
        for one, other in pairwise(parts)
    )
    if not beside:
        return torch.cat(list(parts))
    return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())
