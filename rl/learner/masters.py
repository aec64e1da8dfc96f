"""float32 copies of parameters that are kept in fewer bits: gradients are summed, and steps taken, on the copies.

bfloat16 has 8 significant bits: a parameter w that is stepped in it moves only where the step is above |w| / 512, so
that at a learning rate of 1e-6 nearly none ever would. Source: Micikevicius et al. 2018, Mixed Precision Training.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor


class Masters:
    """Of a model that was loaded in float32. With `dtype` float32 the copies are its parameters themselves."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self._model = model
        self._copies: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if dtype == torch.float32 or not parameter.requires_grad:
                continue
            self._copies[name] = copy = parameter.detach().clone().requires_grad_()
            parameter.data = parameter.detach().to(dtype)
            parameter.register_post_accumulate_grad_hook(partial(_hand_over, copy))  # type: ignore[no-untyped-call]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """What an optimiser is to step."""
        for name, parameter in self._model.named_parameters():
            yield name, self._copies.get(name, parameter)

    def state_dict(self) -> dict[str, Tensor]:
        """The model's, in float32; what it knows by two names, as a tied head, is under both."""
        copies = {id(one): self._copies[name] for name, one in self._model.named_parameters() if name in self._copies}
        everything = self._model.state_dict(keep_vars=True)
        return {name: copies.get(id(one), one).detach() for name, one in everything.items()}

    @torch.no_grad()
    def stepped(self) -> None:
        """Bring the model's own parameters to where the copies now are."""
        for name, parameter in self._model.named_parameters():
            if name in self._copies:
                parameter.copy_(self._copies[name])


@torch.no_grad()
def _hand_over(copy: Tensor, small: Tensor) -> None:
    """Runs when a gradient came in: sums over micro-batches are float32 too."""
    if small.grad is not None:
        copy.grad = small.grad.float() if copy.grad is None else copy.grad.add_(small.grad)
    small.grad = None
