"""Published weights on their way to the workers: what is offered, where it lies, and whether it arrived whole."""

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_MAX_HEADER = 100 << 20


class WeightsError(Exception):
    """Weights could not be taken; the version before them goes on serving."""


@dataclass(frozen=True, slots=True)
class WeightsRef:
    """Where one version lies: a safetensors file that every engine process on this host can read."""

    version: int
    path: str


def check(ref: WeightsRef) -> None:
    """Read the header and compare its promise with the file's size, before anything is paused for it.

    Raises WeightsError for a missing, truncated or overlong file. Format: an 8-byte little-endian length, a JSON
    header with `data_offsets` a tensor, the bytes (huggingface/safetensors, README).
    """
    try:
        with open(ref.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
            header = json.loads(file.read(length)) if length <= min(_MAX_HEADER, size) else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = bool(ends) and 8 + length + max(ends) == size
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"weights of version {ref.version} at {ref.path} cannot be read: {error}") from error
    if not whole:
        raise WeightsError(f"weights of version {ref.version} at {ref.path} are not whole: {size} bytes")


def sees(directory: str) -> bool:
    """Whether a directory of one process, whose name no other host has, is there for this one, too."""
    return Path(directory).is_dir()
