"""What steps the weights: AdamW, or Muon for the hidden matrices and AdamW for the rest."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rl.learner.masters import Masters
from rl.learner.muon import Muon
from verifiers.errors import UserError


def optimisers(
    policy: Any,
    masters: Masters,
    *,
    lr: float,
    muon_lr: float | None,
    betas: tuple[float, float],
    weight_decay: float,
    lr_scale: Mapping[str, float] = MappingProxyType({}),
    eps: float = 1e-8,
    over: Callable[..., Iterable[Any]] = map,
) -> list[torch.optim.Optimizer]:
    """They share out the weights that are trained; `muon_lr` of 0 or none leaves Muon out, `over` is `Muon`'s.

    Muon is for hidden matrices: an embedding or a head is a table of vectors. `lr_scale` maps a part of weights' names
    to a factor of their rate; the first part that a name contains counts. Raises UserError where none contains a part.
    """
    tables = {id(part.weight) for part in (policy.get_input_embeddings(), policy.get_output_embeddings()) if part}
    hidden = {name for name, one in policy.named_parameters() if one.ndim == 2 and id(one) not in tables}
    trained = {name: one for name, one in masters.named_parameters() if one.requires_grad}
    for part in lr_scale:
        if not any(part in name for name in trained):
            raise UserError(f"learner.lr_scale: no weight's name contains {part!r}; they are such as {min(trained)}")
    matrices = {name: one for name, one in trained.items() if muon_lr and name in hidden}
    rest = {name: one for name, one in trained.items() if name not in matrices}
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(_groups(rest, lr, lr_scale), lr, betas, eps, weight_decay)]
    if muon_lr and matrices:
        found.append(Muon(_groups(matrices, muon_lr, lr_scale), muon_lr, weight_decay=weight_decay, over=over))
    return found


class Snapshot:
    """Where optimisers and what they step stood, in the host's memory."""

    def __init__(self, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        self._known = [(one, set(one.state)) for one in optimisers]
        stepped = [one for optimiser in optimisers for group in optimiser.param_groups for one in group["params"]]
        moments = [value for optimiser in optimisers for state in optimiser.state.values() for value in state.values()]
        self._tensors = [(one, one.detach().to("cpu", copy=True)) for one in (*stepped, *moments)]

    @torch.no_grad()
    def restore(self) -> None:
        """Bring all of it back there."""
        for optimiser, known in self._known:
            for one in optimiser.state.keys() - known:
                del optimiser.state[one]
        for one, before in self._tensors:
            one.copy_(before)


def _groups(weights: Mapping[str, Tensor], lr: float, lr_scale: Mapping[str, float]) -> list[dict[str, Any]]:
    """The weights by their rates."""
    rates: dict[float, list[Tensor]] = {}
    for name, one in weights.items():
        factor = next((factor for part, factor in lr_scale.items() if part in name), 1.0)
        rates.setdefault(lr * factor, []).append(one)
    return [{"params": params, "lr": rate} for rate, params in rates.items()]
