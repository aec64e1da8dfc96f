"""Losses: tensors in, a scalar out.

Each is a sum over tokens divided by a constant, so that splitting a batch in any way never changes the gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

STATISTICS = ("tokens", "clip_fraction", "kl_k1", "kl_k3", "ratio_p01", "ratio_p50", "ratio_p99", "gap_max")


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


@torch.no_grad()
def statistics(
    logp: Tensor, logp_behaviour: Tensor, advantage: Tensor, mask: Tensor, *, low: float, high: float
) -> dict[str, float]:
    """How far the learner is from the policy that sampled, over the masked tokens of (T,) tensors.

    tokens           how many those are
    clip_fraction    share of them whose gradient the clipping removes
    kl_k1, kl_k3     estimates of KL(behaviour ‖ learner) in nats: mean of −log ρ, and of ρ − 1 − log ρ
    ratio_p01 …      quantiles of ρ
    gap_max          largest |logp − logp_behaviour|

    All 0 where no token is masked in.
    """
    mask = mask.bool()
    log_ratio = (logp.float() - logp_behaviour.float())[mask]
    if not len(log_ratio):
        return dict.fromkeys(STATISTICS, 0.0)
    ratio, sign = log_ratio.exp(), advantage[mask]
    clipped = ((sign > 0) & (ratio > 1 + high)) | ((sign < 0) & (ratio < 1 - low))
    values = (
        float(len(log_ratio)),
        clipped.float().mean().item(),
        -log_ratio.mean().item(),
        (ratio - 1 - log_ratio).mean().item(),
        *torch.quantile(ratio, ratio.new_tensor([0.01, 0.5, 0.99])).tolist(),
        log_ratio.abs().max().item(),
    )
    return dict(zip(STATISTICS, values, strict=True))


def _log_ratio(logp: Tensor, logp_behaviour: Tensor, mask: Tensor) -> Tensor:
    """log ρ in float32; 0, with no gradient, where `mask` is false."""
    return torch.where(mask, logp.float() - logp_behaviour.float(), 0.0)


LOSSES: dict[str, Callable[..., Tensor]] = {"clip": clipped_surrogate}
"""By the name in a configuration."""
