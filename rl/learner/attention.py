"""Attention over rows laid end to end, without ever building the (T, T) mask that would keep them apart.

Global layers attend row by row with a causal kernel. Sliding layers cut queries and keys into blocks of a window each:
a query sees its own block and the one before, which is all its window can reach. Cost: Σ L² and 2·T·window.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "cwm_rl_packed"


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    positions: Tensor,
    row_lengths: tuple[int, ...],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Query (1, H, T, D), key and value (1, H_kv, T, D), `positions` (T,) within rows -> (1, T, H, D).

    A function of transformers' attention interface; it builds its masks itself, so `attention_mask` is None.
    """
    if sliding_window is None or sliding_window >= max(row_lengths):
        rows = zip(*(torch.split(one, list(row_lengths), dim=2) for one in (query, key, value)), strict=True)
        out = [
            scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in rows
        ]
        return torch.cat(out, dim=2).transpose(1, 2), None
    return _sliding(query[0], key[0], value[0], positions, sliding_window, scaling)[None], None


def _sliding(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, window: int, scaling: float | None
) -> Tensor:
    """(H, T, D) -> (T, H, D)."""
    heads, size, width = query.shape
    blocks = -(-size // window)
    tail = blocks * window - size
    q = pad(query, (0, 0, 0, tail)).view(heads, blocks, window, width).transpose(0, 1)
    k, v = (_with_previous(pad(one, (0, 0, 0, tail)), blocks, window) for one in (key, value))
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=_band(pad(positions, (0, tail)), blocks, window), scale=scaling, enable_gqa=True
    )
    return out.permute(0, 2, 1, 3).reshape(blocks * window, heads, width)[:size]


def _with_previous(one: Tensor, blocks: int, window: int) -> Tensor:
    """(H, blocks·window, D) -> (blocks, H, 2·window, D): every block behind the one before it."""
    split = one.view(one.shape[0], blocks, window, -1)
    return torch.cat([pad(split, (0, 0, 0, 0, 1, 0))[:, :-1], split], dim=2).transpose(0, 1)


def _band(positions: Tensor, blocks: int, window: int) -> Tensor:
    """(blocks, 1, window, 2·window) bool: the key is in the query's row and at most window − 1 tokens before it.

    A key d tokens back is in the same row exactly if the query stands at position d of its row or later.
    """
    steps = torch.arange(window, device=positions.device)
    back = steps[:, None] + window - torch.arange(2 * window, device=positions.device)
    near = (back >= 0) & (back < window)
    return (near & (back <= positions.view(blocks, window, 1)))[:, None]


AttentionInterface.register(NAME, packed_attention)
