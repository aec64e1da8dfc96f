"""The supervised stage's loop, its optimisers, and what it keeps to go on with after an interruption."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rl.interrupts import stop_asked
from rl.learner import checkpoint, model
from rl.learner.masters import Masters
from rl.learner.optimisers import optimisers
from rl.learner.packing import MicroBatch, Row
from rl.learner.replicas import Replicas
from rl.progress import Say, progress
from rl.sft.config import SftConfig
from rl.sft.data import Conversations, Cursor, batches
from rollout_workers.clock import Clock
from rollout_workers.renderer import Renderer
from verifiers.errors import UserError

FORMAT = 1
"""Counted up with every change of this stage that changes its result."""

RECORD = "sft.json"

_BAR = 1000
"""Marks of the progress bar."""
_SMOOTHING = 0.9
_WITHOUT_EFFECT = {"threads", "replicas", "checkpoint_seconds", "microbatch_tokens", "device"}
"""Settings that change a result by rounding at most."""


class SftError(UserError):
    """A supervised stage that cannot start, in one sentence."""


class SftFailed(UserError):
    """A supervised stage that cannot go on."""

    exit_code = 1


class SftInterrupted(UserError):
    """Ctrl-C or SIGTERM; the sentence says what is saved."""

    exit_code = 130


@dataclass(frozen=True)
class Stage:
    """All that a supervised stage depends on."""

    model: str
    """Hugging Face directory or hub name that it starts from."""
    conversations: Conversations
    identity: Mapping[str, Any]
    """JSON that tells this model and these conversations from all others."""
    config: SftConfig
    dtype: str = "float32"
    reasoning: bool = True
    """Whether replies open inside `<think>` where their system message asks for it."""

    @property
    def digest(self) -> str:
        """Of everything the result depends on."""
        settings = self.config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
        whole = [FORMAT, dict(self.identity), settings, self.dtype, self.reasoning]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def partial_of(out: Path) -> Path:
    """Where a stage that is not finished keeps what it has."""
    return out.with_name(f"{out.name}.partial")


@dataclass(frozen=True, slots=True)
class _State:
    """How far a stage is; goes into its checkpoints."""

    digest: str
    step: int = 0
    tokens: int = 0
    policy_tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    """Running mean of the steps' losses."""
    left_out: int = 0
    """Conversations longer than the context."""
    cursor: Cursor = field(default_factory=Cursor)

    @classmethod
    def read(cls, path: Path) -> "_State":
        """Raises CheckpointError."""
        fields = checkpoint.read_state(path)
        try:
            return cls(**fields | {"cursor": Cursor(**fields["cursor"])})
        except (TypeError, KeyError) as error:
            raise checkpoint.CheckpointError(f"the checkpoint {path} is not of this stage: {error}") from error


class Trainer:
    """The model, its optimisers, and how far they are. Raises SftError, RendererError where it cannot start."""

    def __init__(self, stage: Stage, partial: Path, say: Say) -> None:
        from transformers import AutoTokenizer

        self._stage, self._partial, self._say = stage, partial, say
        self._state, path = _newest(partial, stage.digest, say)
        source = str(path or stage.model)
        self._renderer = Renderer.load(source, reasoning=stage.reasoning)
        self._tokenizer = AutoTokenizer.from_pretrained(source)
        try:
            self._model = model.load(source, dtype="float32", device=stage.config.device)
        except (OSError, ValueError, RuntimeError) as error:
            raise SftError(f"the model at {source} does not load: {str(error).splitlines()[0]}") from error
        self._masters = Masters(self._model, getattr(torch, stage.dtype))
        if stage.config.replicas > 1 and (stage.dtype, stage.config.device) != ("float32", "cpu"):
            raise SftError("replicas are for float32 on a CPU: set replicas=1")
        self._replicas = Replicas(self._model, stage.config.replicas)
        self._optimisers = optimisers(
            self._model,
            self._masters,
            lr=stage.config.lr,
            muon_lr=stage.config.muon_lr,
            betas=stage.config.betas,
            weight_decay=stage.config.weight_decay,
            over=self._replicas.map,
        )
        self._rates = [optimiser.param_groups[0]["lr"] for optimiser in self._optimisers]
        if path is not None:
            for optimiser in self._optimisers:
                checkpoint.load_optimiser(path, self._masters, optimiser)
            say(f"going on from step {self._state.step}, {self._state.tokens:,} of {stage.config.tokens:,} tokens")
        self.saved = self._state.step
        """Step of the newest checkpoint."""

    def run(self) -> None:
        """Train until the budget is used. Raises SftInterrupted, SftFailed, NothingFits."""
        config, start = self._stage.config, self._state
        began = saved = time.monotonic()
        with self._replicas, stop_asked() as stop, progress("supervised stage", _BAR, self._done(), self._say) as show:
            stream = batches(
                self._stage.conversations,
                self._renderer,
                start.cursor,
                context=self._context(),
                tokens=config.batch_tokens,
                seed=config.seed,
            )
            while self._used() < 1:
                batch = next(stream)
                loss, policy_tokens = self._step(batch.rows)
                now = time.monotonic()
                before = self._state
                self._state = state = replace(
                    before,
                    step=before.step + 1,
                    tokens=before.tokens + sum(len(row.tokens) for row in batch.rows),
                    policy_tokens=before.policy_tokens + policy_tokens,
                    seconds=start.seconds + now - began,
                    loss=loss if before.step == 0 else _SMOOTHING * before.loss + (1 - _SMOOTHING) * loss,
                    left_out=batch.left_out,
                    cursor=batch.after,
                )
                speed = (state.tokens - start.tokens) / (now - began)
                show(self._done(), f"step {state.step}, loss {state.loss:.3f}, {speed:,.0f} tokens/s")
                if stop.is_set() or now - saved > config.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
                if stop.is_set():
                    raise SftInterrupted(
                        f"stopped and saved at step {state.step}, {self._used():.0%} of the budget: "
                        "the same command goes on from there"
                    )

    def finish(self, out: Path) -> dict[str, Any]:
        """Put the model at `out`, with a record beside it, and remove what was kept to go on with. Raises OSError."""
        state, stage = self._state, self._stage
        record = {
            "digest": stage.digest,
            "config": stage.config.model_dump(mode="json"),
            "identity": dict(stage.identity),
            "steps": state.step,
            "tokens": state.tokens,
            "policy_tokens": state.policy_tokens,
            "left_out": state.left_out,
            "seconds": round(state.seconds, 3),
            "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
            "loss": round(state.loss, 4),
        }
        temporary = self._partial / "finished"
        shutil.rmtree(temporary, ignore_errors=True)
        self._model.save_pretrained(temporary)
        self._tokenizer.save_pretrained(temporary)
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        checkpoint.settle(temporary, out)
        shutil.rmtree(self._partial)
        return record

    def _step(self, rows: tuple[Row, ...]) -> tuple[float, int]:
        """One optimiser step. Returns the mean loss of the policy's tokens, and how many they are."""
        config = self._stage.config
        packed = self._replicas.pack(rows, config.microbatch_tokens)
        count = sum(int(one.mask.sum()) for one in packed)

        def backward(replica: Any, one: MicroBatch) -> float:
            return model.backward(replica, one, 1.0, lambda logp, _: -logp.sum() / count, Clock(), entropy=False)[0]

        loss = math.fsum(self._replicas.backward(packed, backward))
        stepped = [one for _, one in self._masters.named_parameters()]
        norm = torch.nn.utils.clip_grad_norm_(stepped, config.max_grad_norm).item()
        if not math.isfinite(loss + norm):
            at = self._state.step + 1
            raise SftFailed(f"at step {at} the loss is {loss}, its gradient's norm {norm}: lower the learning rates")
        rate = config.rate(self._used())
        for optimiser, lr in zip(self._optimisers, self._rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = lr * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self._masters.stepped()
        return loss, count

    def _used(self) -> float:
        return self._stage.config.used(self._state.tokens, self._state.seconds)

    def _done(self) -> int:
        return min(_BAR, round(_BAR * self._used()))

    def _save(self) -> None:
        path = checkpoint.path_of(self._partial, self._state.step)
        checkpoint.save(path, self._model, self._masters, self._tokenizer, self._optimisers, asdict(self._state))
        checkpoint.prune(self._partial, 1, self._state.step)
        self.saved = self._state.step

    def _context(self) -> int:
        """Tokens of the longest row: what the model takes, or less."""
        longest = self._stage.config.context
        of_model = getattr(self._model.config, "max_position_embeddings", None)
        return min(one for one in (longest, of_model, 1 << 30) if one)


def _newest(partial: Path, digest: str, say: Say) -> tuple[_State, Path | None]:
    """Where to go on: the newest whole checkpoint, or the beginning. Raises SftError for one of another stage."""
    for path in sorted(partial.glob("step-*"), reverse=True):
        try:
            state = _State.read(path)
        except checkpoint.CheckpointError as error:
            say(f"passed over a checkpoint: {error}")
            continue
        if state.digest != digest:
            raise SftError(
                f"{partial} was begun with another model, data or settings: remove it, or choose another path"
            )
        return state, path
    return _State(digest), None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch have so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
