"""What steps the weights: AdamW, or Muon for the hidden matrices and AdamW for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from rl.learner.masters import Masters
from rl.learner.muon import Muon


def optimisers(
    policy: Any,
    masters: Masters,
    *,
    lr: float,
    muon_lr: float | None,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float = 1e-8,
    over: Callable[..., Iterable[Any]] = map,
) -> list[torch.optim.Optimizer]:
    """They share out the weights that are trained; `muon_lr` of 0 or none leaves Muon out, `over` is `Muon`'s.

    Muon is for hidden matrices: an embedding or a head is a table of vectors.
    """
    tables = {id(part.weight) for part in (policy.get_input_embeddings(), policy.get_output_embeddings()) if part}
    hidden = {name for name, one in policy.named_parameters() if one.ndim == 2 and id(one) not in tables}
    trained = {name: one for name, one in masters.named_parameters() if one.requires_grad}
    matrices = [one for name, one in trained.items() if muon_lr and name in hidden]
    rest = [one for name, one in trained.items() if not (muon_lr and name in hidden)]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr, betas, eps, weight_decay)]
    if muon_lr and matrices:
        found.append(Muon(matrices, muon_lr, weight_decay=weight_decay, over=over))
    return found
