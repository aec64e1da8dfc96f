"""Attention over rows laid end to end, row by row, without ever building the (T, T) mask that would keep them apart.

Where a layer slides, a row longer than its window is cut into blocks of queries, a window each: the first is causal,
every other one sees the keys that its window can reach. A row of L tokens costs L² / 2, or 2·L·window if that is less.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "cwm_rl_packed"
_BEYOND = frozenset({"s_aux", "softcap", "position_bias"})
"""Arguments of other attention functions that change what comes out."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_lengths: tuple[int, ...],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Query (1, H, T, D), key and value (1, H_kv, T, D) -> (1, T, H, D).

    A function of transformers' attention interface; it builds its masks itself, so `attention_mask` is None. Raises
    ValueError for a model whose attention is more than that.
    """
    if unknown := sorted(name for name in _BEYOND & others.keys() if others[name] is not None):
        raise ValueError(
            f"this model's attention has {unknown[0]}, which the learner does not know: it cannot be trained here"
        )
    rows = zip(*(torch.split(one, list(row_lengths), dim=2) for one in (query, key, value)), strict=True)
    out = [part for q, k, v in rows for part in _row(q, k, v, sliding_window or q.shape[2], scaling)]
    return torch.cat(out, dim=2).transpose(1, 2), None


def _row(query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float | None) -> list[Tensor]:
    """Of one row's L tokens, block by block; (1, H, L, D) in all."""
    q, k, v = (one[:, :, :window] for one in (query, key, value))
    out = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)]
    for start in range(window, query.shape[2], window):
        block, seen = slice(start, start + window), slice(start - window + 1, start + window)
        q, k, v = query[:, :, block], key[:, :, seen], value[:, :, seen]
        band = _band(q.shape[2], k.shape[2], window, q.device)
        out.append(scaled_dot_product_attention(q, k, v, attn_mask=band, scale=scaling, enable_gqa=True))
    return out


def _band(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """(queries, keys) bool: the first query's window begins at the first key, the next one's at the second."""
    ahead = torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None]
    return (ahead >= 0) & (ahead < window)


AttentionInterface.register(NAME, packed_attention)
