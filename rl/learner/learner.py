"""The learner: one optimiser step on packed micro-batches. `rl.cluster` makes it a Ray actor."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl.algorithm.losses import statistics
from rl.cluster import PushClient, put
from rl.config import AlgorithmConfig, LearnerConfig
from rl.learner import checkpoint, model, weights
from rl.learner.masters import Masters
from rl.learner.objective import Objective
from rl.learner.optimisers import Snapshot, optimisers
from rl.learner.packing import MicroBatch, Row, balanced_shares, pack
from rollout_workers.clock import Clock
from rollout_workers.cores import allowed
from rollout_workers.weights import sees
from verifiers.errors import UserError


class StepRefused(UserError):
    """Loss or gradient is not finite; the weights are as they were."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class LearnerSetup:
    """What a learner is started with."""

    model: str
    """Hugging Face directory or hub name."""
    resumed: bool
    """It is a checkpoint of this very run, whose optimiser goes on."""
    dtype: str
    temperature: float
    config: LearnerConfig
    algorithm: AlgorithmConfig


class Learner:
    """Holds the policy and its optimisers; every method runs to its end before the next."""

    def __init__(self, setup: LearnerSetup) -> None:
        from transformers import AutoTokenizer

        config = setup.config
        if config.cores:
            os.sched_setaffinity(0, allowed(config.cores))
        torch.set_num_threads(config.threads)
        self._setup = setup
        self._clock = Clock()
        self._model = model.load(
            setup.model,
            dtype="float32",
            device=config.device,
            recompute=config.activation_checkpointing,
            fuse=config.compile,
        )
        self._masters = Masters(self._model, getattr(torch, setup.dtype))
        self._tokenizer = AutoTokenizer.from_pretrained(setup.model)
        self._optimisers = optimisers(
            self._model,
            self._masters,
            lr=config.lr,
            muon_lr=config.muon_lr,
            lr_scale=config.lr_scale,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        if setup.resumed:
            for one in self._optimisers:
                checkpoint.load_optimiser(Path(setup.model), self._masters, one)
        self._objective = Objective(setup.algorithm)
        self._outbox = weights.Outbox(weights.parameters(self._model))

    @property
    def policy(self) -> Any:
        """The model that is trained."""
        return self._model

    def size_bytes(self) -> int:
        """Bytes of the weights, once the model is loaded."""
        return sum(parameter.nbytes for parameter in self._model.parameters())

    def step(self, rows: Sequence[Row]) -> dict[str, float]:
        """One step on all rows, or `algorithm.minibatches` steps, each on a share of them.

        Returns what is logged; norms are those before clipping, the largest of several. Raises StepRefused, the weights
        being as they were.
        """
        if not rows:
            raise StepRefused("a step on an empty batch was asked for")
        if not all(np.isfinite(one.advantage) and np.isfinite(one.logprobs[one.mask]).all() for one in rows):
            raise StepRefused(
                f"an advantage or a recorded log-probability of {len(rows)} rows is not finite: the step was not taken"
            )
        tokens = self._setup.config.microbatch_tokens
        count = min(self._setup.algorithm.minibatches, len(rows))
        shares = [pack(share, tokens) for share in (balanced_shares(rows, count) if count > 1 else [rows])]
        proximals = [[self._proximal(batch) if count > 1 else None for batch in share] for share in shares]
        loss, norm, seen = 0.0, 0.0, _Seen()
        with self._clock.time("keeping"):
            kept = Snapshot(self._optimisers) if count > 1 else None
        try:
            for share, proximal in zip(shares, proximals, strict=True):
                share_loss, share_norm = self._step(share, proximal, seen)
                loss, norm = loss + share_loss, max(norm, share_norm)
        except StepRefused:
            if kept is not None:
                kept.restore()
                self._masters.stepped()
            raise
        return {
            "loss": loss,
            "grad_norm": norm,
            "rows": len(rows),
            "microbatches": sum(map(len, shares)),
            "packed_tokens": sum(len(batch.tokens) for share in shares for batch in share),
            **seen.summary(),
        }

    def _step(
        self, batches: Sequence[MicroBatch], proximals: Sequence[torch.Tensor | None], seen: "_Seen"
    ) -> tuple[float, float]:
        """One optimiser step; its loss, and its gradient's norm before clipping. Raises StepRefused, not taking it."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss = 0.0
        for batch, proximal in zip(batches, proximals, strict=True):
            loss += self._backward(batch, proximal, seen)
        with self._clock.time("optimiser"):
            groups = [group for optimiser in self._optimisers for group in optimiser.param_groups]
            stepped = [one for group in groups for one in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(stepped, self._setup.config.max_grad_norm).item()
            if not (np.isfinite(loss) and np.isfinite(norm)):
                rows = sum(len(batch.row_lengths) for batch in batches)
                raise StepRefused(f"loss {loss} with gradient norm {norm} on {rows} rows: the step was not taken")
        with self._clock.time("publishing"):
            self._outbox.release()
        with self._clock.time("optimiser"):
            for optimiser in self._optimisers:
                optimiser.step()
            self._masters.stepped()
        seen.stepped = True
        return loss, norm

    def _proximal(self, batch: MicroBatch) -> torch.Tensor | None:
        """Log-probabilities before the batch, (T,), where the objective asks for them."""
        if self._setup.algorithm.correction == "none":
            return None
        with self._clock.time("forward"), torch.no_grad():
            return model.forward(self._model, batch, self._setup.temperature).logp

    def _backward(self, batch: MicroBatch, proximal: torch.Tensor | None, seen: "_Seen") -> float:
        """Add a micro-batch's gradient to the parameters'; returns its loss."""
        behaviour, mask, advantages = (
            torch.from_numpy(one).to(self._setup.config.device)
            for one in (batch.logprobs, batch.mask, batch.advantages)
        )

        loss, first = self._objective.on(behaviour, advantages, mask, batch.row_lengths, proximal)
        part, out = model.backward(self._model, batch, self._setup.temperature, loss, self._clock, first=first)
        seen.add(out, behaviour, advantages, mask)
        return part

    def sees(self, directory: str) -> bool:
        """Whether files can be written there for the driver and the workers."""
        return sees(directory)

    def write_weights(self, path: str) -> None:
        """Leave the current weights where the engines read them. Raises OSError."""
        with self._clock.time("publishing"):
            self._outbox.publish(Path(path))

    def pack_weights(self) -> tuple[Any]:
        """Ray's reference to the bytes of such a file, in a tuple, so that it is not followed."""
        with self._clock.time("publishing"):
            return (put(weights.pack(weights.parameters(self._model))),)

    def connect(self, client: PushClient, engine_ranks: int) -> None:
        """Meet the engines behind `client`, `engine_ranks` GPUs in all, for `broadcast`."""
        from rollout_workers.transfer import nccl_sender

        self._client = client
        self._sender = nccl_sender(self._model, client, engine_ranks)

    def broadcast(self, version: int) -> None:
        """Push the current weights into the engines as `version`; returns when all of them go on."""
        self._client.version = version
        with self._clock.time("publishing"):
            self._sender.send_weights()

    def save(self, path: str, step: int) -> None:
        """Write a checkpoint. Raises OSError."""
        with self._clock.time("checkpoint"):
            checkpoint.save(Path(path), self._model, self._masters, self._tokenizer, self._optimisers, {"step": step})

    def status(self) -> tuple[int, Mapping[str, float]]:
        """This process's id, and where its time went."""
        return os.getpid(), dict(self._clock.seconds)

    def gaps(self, rows: Mapping[int, Sequence[Row]], *files: str | NDArray[np.uint8]) -> dict[int, tuple[float, int]]:
        """For every version: max |log π_learner − recorded| over tokens sampled under it, and how many tokens.

        `files` hold the weights of the versions in `rows`, in that order, or are their bytes. `rows` must have been
        sampled so that the comparison is exact (see `rl.learner.exactness`). Ends this learner's use: its weights are
        replaced by the last version's.
        """
        self._outbox.release()
        found = {}
        for (version, sampled), source in zip(rows.items(), files, strict=True):
            weights.read(self._model, source)
            worst, count = 0.0, 0
            for one in sampled:
                with torch.no_grad():
                    out = model.forward(self._model, pack([one], 1)[0], self._setup.temperature)
                chosen = one.versions == version
                apart = np.abs(out.logp.cpu().numpy()[chosen] - one.logprobs[chosen])
                worst = float(np.maximum(worst, apart.max(initial=0.0)))  # which keeps a NaN, as Python's max does not
                count += int(chosen.sum())
            found[version] = (worst, count)
        return found


class _Seen:
    """What was seen of a batch's sampled tokens, over all its micro-batches."""

    def __init__(self) -> None:
        self._parts: list[tuple[torch.Tensor, ...]] = []
        self._before = 0
        self.stepped = False
        """Whether the weights have moved since the batch was begun."""

    def add(self, out: model.Forward, behaviour: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> None:
        """A micro-batch; all tensors (T,)."""
        no_gradient = out.no_gradient * (advantages != 0)  # else there was nothing to take
        self._parts.append(tuple(one.detach()[mask] for one in (out.logp, behaviour, out.entropy, no_gradient)))
        self._before += not self.stepped

    def summary(self) -> dict[str, float]:
        """Statistics of the whole batch; `clip_fraction` is the share of tokens that the loss took the gradient from.

        Engine and learner are compared before the first step alone, as later ones move the weights.
        """
        _, _, entropy, no_gradient = (torch.cat(part) for part in zip(*self._parts, strict=True))
        logp, behaviour, *_ = (torch.cat(part) for part in zip(*self._parts[: self._before], strict=True))
        stats = statistics(logp, behaviour, torch.ones_like(logp, dtype=torch.bool))
        return {**stats, "entropy": entropy.mean().item(), "clip_fraction": no_gradient.mean().item()}
