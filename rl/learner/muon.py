"""Muon: momentum whose matrices are brought near the nearest orthogonal ones (Jordan 2024, kellerjordan.github.io)."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

# The quintic iteration's coefficients (source above): singular values end within about 0.7 and 1.2, in five steps.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """The update of `torch.optim.Muon` with its defaults, in float32 and for all matrices of a shape at once.

    torch's own works in bfloat16, matrix by matrix; on a CPU without bfloat16 units that takes 25 times as long.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        over: Callable[..., Iterable[Any]] = map,
    ) -> None:
        """`over` is `map`, or maps in threads: shapes are independent of each other."""
        self._over = over
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(one.ndim != 2 for group in self.param_groups for one in group["params"]):
            raise ValueError("Muon takes matrices")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """W ← W − lr · √max(1, rows/columns) · orthogonal(momentum), Nesterov's momentum; lr · decay · W before it."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for one in group["params"]:
                if one.grad is not None:
                    by_shape.setdefault(one.shape, []).append(one)
            largest_first = sorted(by_shape.values(), key=lambda same: -len(same) * same[0].numel())
            list(self._over(partial(self._step, group), largest_first))

    @torch.no_grad()
    def _step(self, group: dict[str, Any], same: list[Tensor]) -> None:
        """Of all matrices of a shape."""
        rows, columns = same[0].shape
        updates = orthogonal(torch.stack([self._moved(one, one.grad, group["momentum"]) for one in same]))
        torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_add_(same, list(updates.to(same[0].dtype).unbind()), alpha=-scale)

    def _moved(self, one: Tensor, gradient: Any, momentum: float) -> Tensor:
        """The gradient with Nesterov's momentum, which this moves on."""
        state: dict[str, Tensor] = self.state[one]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        moved: Tensor = gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum)
        return moved.float()


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns) -> the same, every one near U Vᵀ of its singular value decomposition; float32."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=_EPS)[:, None, None]
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x
