"""Advantages: how much better than its group an episode did. (G,) in, (G,) float32 out; no gradient flows through."""

from collections.abc import Callable

import torch
from torch import Tensor

from rollout_workers.trajectory import Group

Estimator = Callable[[Tensor, Tensor], Tensor]
"""(rewards (G,), lengths (G,) in sampled tokens) -> advantages (G,)."""

_EPSILON = 1e-6


def cwm(rewards: Tensor, lengths: Tensor) -> Tensor:
    """A_i = R_i − μ, μ = Σ R_i·L_i / Σ L_i: centred, weighted by length, not divided by the deviation (CWM).

    Zero where nobody sampled a token. Equal rewards give exact zeros.
    """
    gaps, weights = _gaps(rewards), lengths.float()
    total = weights.sum()
    return gaps - (gaps * weights).sum() / total if total > 0 else torch.zeros_like(gaps)


def grpo(rewards: Tensor, lengths: Tensor) -> Tensor:
    """A_i = (R_i − mean R) / (std R + 1e-6), std over G − 1 (DeepSeekMath, arXiv 2402.03300). Ignores lengths."""
    centred = dr_grpo(rewards, lengths)
    if len(centred) < 2:
        return centred
    return centred / (centred.square().sum() / (len(centred) - 1)).sqrt().add(_EPSILON)


def dr_grpo(rewards: Tensor, lengths: Tensor) -> Tensor:
    """A_i = R_i − mean R (Dr. GRPO, arXiv 2503.20783). Ignores lengths."""
    gaps = _gaps(rewards)
    return gaps - gaps.mean()


def rloo(rewards: Tensor, lengths: Tensor) -> Tensor:
    """A_i = R_i − mean of the others' R (leave one out, arXiv 2402.14740). Ignores lengths; zero for a group of one."""
    centred = dr_grpo(rewards, lengths)
    return centred * (len(centred) / (len(centred) - 1)) if len(centred) > 1 else centred


ADVANTAGES: dict[str, Estimator] = {"cwm": cwm, "grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}
"""By the name in a configuration."""


def of_group(group: Group, estimator: Estimator = cwm) -> Tensor:
    """Advantages of a group's members, in their order; (G,) float32."""
    rewards = torch.tensor([member.verdict.reward for member in group.members], dtype=torch.float32)
    lengths = torch.tensor([member.episode.sampled_tokens for member in group.members])
    return estimator(rewards, lengths)


def _gaps(rewards: Tensor) -> Tensor:
    """R_i − R_0. A baseline of gaps leaves equal rewards at exactly zero, which a rounded mean would not."""
    return rewards.float() - rewards[0].float()
