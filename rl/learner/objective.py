"""The loss that a configuration names, on the tokens of a micro-batch as `model.backward` takes them: in pieces."""

from collections.abc import Callable, Sequence

from torch import Tensor

from rl.algorithm import losses
from rl.config import AlgorithmConfig

Loss = Callable[[Tensor, Tensor], Tensor]
"""Log-probabilities and places in the batch of some tokens, (n,) both, to the sum of their losses."""


class Objective:
    """By `algorithm.loss` and `algorithm.correction`."""

    def __init__(self, algorithm: AlgorithmConfig) -> None:
        self._algorithm = algorithm

    def on(
        self,
        behaviour: Tensor,
        advantages: Tensor,
        mask: Tensor,
        row_lengths: Sequence[int],
        proximal: Tensor | None = None,
    ) -> tuple[Loss, Callable[[Tensor], None] | None]:
        """The loss on a micro-batch, (T,) all; and what has to see its log-probabilities first, if anything has.

        `proximal`, for a correction, are the learner's log-probabilities before the batch; none if it is that learner.
        """
        algorithm = self._algorithm
        low, high, norm = algorithm.clip_low, algorithm.clip_high, algorithm.norm
        if algorithm.loss == "gspo":
            return self._gspo(behaviour, advantages, mask, row_lengths)

        def loss(logp: Tensor, places: Tensor) -> Tensor:
            given = behaviour[places], advantages[places], mask[places]
            if algorithm.loss == "cispo":
                return losses.cispo(logp, *given, high=high, norm=norm)
            if algorithm.loss == "dppo_tv":
                return losses.dppo_tv(logp, *given, divergence=algorithm.divergence, norm=norm)
            if algorithm.correction == "none":
                return losses.clipped_surrogate(logp, *given, low=low, high=high, norm=norm)
            return losses.decoupled(
                logp,
                logp.detach() if proximal is None else proximal[places],
                *given,
                correction=algorithm.correction,
                cap=algorithm.correction_cap,
                floor=algorithm.correction_floor,
                low=low,
                high=high,
                norm=norm,
            )

        return loss, None

    def _gspo(
        self, behaviour: Tensor, advantages: Tensor, mask: Tensor, row_lengths: Sequence[int]
    ) -> tuple[Loss, Callable[[Tensor], None]]:
        whole: list[Tensor] = []

        def first(logp: Tensor) -> None:
            whole[:] = losses.sequences(logp, behaviour, mask, row_lengths)

        def loss(logp: Tensor, places: Tensor) -> Tensor:
            log_ratio, tokens = (one[places] for one in whole)
            low, high, norm = self._algorithm.clip_low, self._algorithm.clip_high, self._algorithm.norm
            return losses.gspo(logp, log_ratio, tokens, advantages[places], mask[places], low=low, high=high, norm=norm)

        return loss, first
