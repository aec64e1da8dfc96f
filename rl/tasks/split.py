"""Which tasks are held out for evaluation: by a hash of their content, so that none ever stands on both sides."""

import hashlib
from typing import Literal

Split = Literal["train", "held_out"]


def split_of(content: str, share: float) -> Split:
    """`held_out` for a share of all contents; the same content always falls on the same side of the same share."""
    number = int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return "held_out" if number < share * 2.0**64 else "train"
