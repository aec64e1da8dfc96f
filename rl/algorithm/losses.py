"""Losses: tensors in, a scalar out.

Each is a sum over tokens divided by a constant, so that splitting a batch in any way never changes the gradient.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

STATISTICS = ("tokens", "kl_k1", "kl_k3", "ratio_p01", "ratio_p50", "ratio_p99", "gap_max")
MOST_QUANTILES = 1 << 24
"""Values that torch takes quantiles of, at most."""


def clipped_surrogate(
    logp: Tensor, logp_behaviour: Tensor, advantage: Tensor, mask: Tensor, *, low: float, high: float, norm: float
) -> Tensor:
    """−(1/norm) Σ_t M·min(ρA, clip(ρ, 1−low, 1+high)·A), ρ = exp(logp − logp_behaviour). Source: CWM's objective.

    All tensors (T,); log-probabilities in nats; `mask` is true where the policy wrote the token. Elsewhere the values
    do not matter, not even NaN, and no gradient flows. `norm` is a constant, such as the context length.
    """
    mask = mask.bool()
    ratio = _log_ratio(logp, logp_behaviour, mask).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return -torch.where(mask, gain, 0.0).sum() / norm


Correction = Literal["decoupled", "tis", "icepop", "mis"]


def decoupled(
    logp: Tensor,
    logp_proximal: Tensor,
    logp_behaviour: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    correction: Correction,
    cap: float,
    floor: float,
    low: float,
    high: float,
    norm: float,
) -> Tensor:
    """−(1/norm) Σ_t M·f(w)·min(uA, clip(u, 1−low, 1+high)·A), u = π/π_proximal, w = π_proximal/π_behaviour.

    No gradient flows through w. f, by `correction`: `decoupled` w itself (AReaL, arXiv 2505.24298), `tis` min(w, cap)
    (truncated importance sampling), `mis` w where w ≤ cap, else 0 (masked), `icepop` w where floor ≤ w ≤ cap, else 0.
    With one optimiser step a batch the proximal policy is the learner's before it: `logp` without its gradient.
    Otherwise as `clipped_surrogate`.
    """
    mask = mask.bool()
    ratio = _log_ratio(logp, logp_proximal, mask).exp()
    weight = _log_ratio(logp_proximal, logp_behaviour, mask).exp().detach()
    if correction == "tis":
        weight = weight.clamp(max=cap)
    elif correction == "mis":
        weight = torch.where(weight <= cap, weight, 0.0)
    elif correction == "icepop":
        weight = torch.where((weight >= floor) & (weight <= cap), weight, 0.0)
    gain = weight * torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return -torch.where(mask, gain, 0.0).sum() / norm


def cispo(logp: Tensor, logp_behaviour: Tensor, advantage: Tensor, mask: Tensor, *, high: float, norm: float) -> Tensor:
    """−(1/norm) Σ_t M·sg(min(ρ, 1+high))·A·logp: no token loses its gradient (MiniMax-M1, arXiv 2506.13585).

    As there, weights have no lower bound. Otherwise as `clipped_surrogate`.
    """
    mask = mask.bool()
    weight = _log_ratio(logp, logp_behaviour, mask).exp().clamp(max=1 + high).detach()
    return -torch.where(mask, weight * advantage * torch.where(mask, logp.float(), 0.0), 0.0).sum() / norm


def dppo_tv(
    logp: Tensor, logp_behaviour: Tensor, advantage: Tensor, mask: Tensor, *, divergence: float, norm: float
) -> Tensor:
    """−(1/norm) Σ_t M·D·ρA, D = 0 where |π − π_behaviour| > divergence and the step would add to it, else 1.

    The binary total variation of DPPO (arXiv 2602.04879, eq. 11 to 13). Otherwise as `clipped_surrogate`.
    """
    mask = mask.bool()
    log_ratio = _log_ratio(logp, logp_behaviour, mask)
    with torch.no_grad():
        apart = torch.where(mask, logp.float().exp() - logp_behaviour.float().exp(), 0.0)
        away = ((advantage > 0) & (log_ratio > 0)) | ((advantage < 0) & (log_ratio < 0))
        kept = mask & ~(away & (apart.abs() > divergence))
    ratio = torch.where(kept, log_ratio, 0.0).exp()  # what is not kept may overflow, and 0 · ∞ is no gradient of 0
    return -torch.where(kept, ratio * advantage, 0.0).sum() / norm


def gspo(
    logp: Tensor,
    sequence_log_ratio: Tensor,
    sequence_tokens: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    low: float,
    high: float,
    norm: float,
) -> Tensor:
    """−(1/norm) Σ_i min(s_i A_i, clip(s_i, 1−low, 1+high)·A_i), s_i = (π(y_i)/π_behaviour(y_i))^(1/|y_i|).

    GSPO (arXiv 2507.18071), its sum over sequences written as one over their tokens, so that any part of them can be
    taken alone: `sequence_log_ratio` is log s_i and `sequence_tokens` |y_i| at every token of i (see `sequences`), and
    the gradient comes through `logp`. `norm` counts sequences here. Clipping is of whole sequences, ε some 3e-4.
    """
    mask = mask.bool()
    logp = torch.where(mask, logp.float(), 0.0)
    ratio = (torch.where(mask, sequence_log_ratio, 0.0) + logp - logp.detach()).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return -torch.where(mask, gain / sequence_tokens.clamp(min=1), 0.0).sum() / norm


@torch.no_grad()
def sequences(logp: Tensor, logp_behaviour: Tensor, mask: Tensor, row_lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean of log ρ over the masked tokens of each row, and how many those are, at every token; (T,) float32 both."""
    lengths = torch.as_tensor(row_lengths, device=logp.device)
    row = torch.repeat_interleave(torch.arange(len(row_lengths), device=logp.device), lengths)
    mask = mask.bool()
    nothing = torch.zeros(len(row_lengths), device=logp.device)
    tokens = nothing.index_add(0, row, mask.float())
    means = nothing.index_add(0, row, _log_ratio(logp, logp_behaviour, mask)) / tokens.clamp(min=1)
    return means[row], tokens[row]


@torch.no_grad()
def statistics(logp: Tensor, logp_behaviour: Tensor, mask: Tensor) -> dict[str, float]:
    """How far the learner is from the policy that sampled, over the masked tokens of (T,) tensors.

    tokens           how many those are
    kl_k1, kl_k3     estimates of KL(behaviour ‖ learner) in nats: mean of −log ρ, and of ρ − 1 − log ρ
    ratio_p01 …      quantiles of ρ, of evenly spaced tokens where there are more than 2²⁴
    gap_max          largest |logp − logp_behaviour|

    All 0 where no token is masked in.
    """
    mask = mask.bool()
    log_ratio = (logp.float() - logp_behaviour.float())[mask]
    if not len(log_ratio):
        return dict.fromkeys(STATISTICS, 0.0)
    ratio = log_ratio.exp()
    quantiles = ratio[:: -(-len(ratio) // MOST_QUANTILES)]
    values = (
        float(len(log_ratio)),
        -log_ratio.mean().item(),
        (ratio - 1 - log_ratio).mean().item(),
        *torch.quantile(quantiles, ratio.new_tensor([0.01, 0.5, 0.99])).tolist(),
        log_ratio.abs().max().item(),
    )
    return dict(zip(STATISTICS, values, strict=True))


def _log_ratio(logp: Tensor, logp_behaviour: Tensor, mask: Tensor) -> Tensor:
    """log ρ in float32; 0, with no gradient, where `mask` is false."""
    return torch.where(mask, logp.float() - logp_behaviour.float(), 0.0)
