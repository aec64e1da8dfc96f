"""`cwm-rl bench learner`: our step against a bare torch loop on the same rows, what cutting the head saves, and MFU.

The rival is what one writes first: rows of like length padded to a batch, the model's own attention and head, the
clipped surrogate, AdamW; no entropy, no statistics. Tokens a second count real tokens, never padding.
"""

import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from rl.config import AlgorithmConfig, LearnerConfig
from rl.init_model import InitModel, init_model
from rl.learner import model
from rl.learner.learner import Learner, LearnerSetup
from rl.learner.packing import MicroBatch, Row, pack, row
from rl.progress import Say
from rollout_workers.clock import Clock
from rollout_workers.trajectory import Completion, Context, Trajectory
from verifiers.errors import UserError

NANO: Final = InitModel(hidden_size=128, layers=3, context=1024, vocab_size=768, sliding_window=512)
_COMMON: Final = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "num_attention_heads": 16}
QWEN3: Final[dict[str, dict[str, int]]] = {
    "0.6b": _COMMON | {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072},
    "1.7b": _COMMON | {"hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144},
    "4b": _COMMON
    | {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32},
}
"""Published dense shapes; their weights are drawn at random."""
SHAPES: Final = ("nano", *QWEN3)
SHORTEST: Final = 8
"""Tokens of a row, at least; two thirds of them are sampled."""

_VOCABULARY, _MEMORY_TOKENS = 32768, 4096
_PEAK_SIZE, _PEAK_PRODUCTS = 8192, 20


class BenchError(UserError):
    """The benchmark cannot run here."""


@dataclass(frozen=True)
class Work:
    """What is trained on."""

    shape: str = "nano"
    device: str = "cpu"
    dtype: str = "float32"
    rows: int = 64
    shortest: int = 64
    longest: int = 640
    """Tokens of a row, evenly spread on a logarithmic scale."""
    steps: int = 10
    microbatch_tokens: int = 4096
    recompute: bool = False
    compile: bool = False
    rival: bool = True

    @property
    def learner(self) -> LearnerConfig:
        """Its configuration."""
        return LearnerConfig(
            device=self.device,
            threads=torch.get_num_threads(),
            microbatch_tokens=self.microbatch_tokens,
            activation_checkpointing=self.recompute,
            compile=self.compile,
        )


def bench(work: Work, say: Say) -> dict[str, Any]:
    """All of it, as plain data. Raises BenchError."""
    if work.shape not in SHAPES:
        raise BenchError(f"there is no shape '{work.shape}': there are {', '.join(SHAPES)}")
    if work.microbatch_tokens < work.longest or work.shortest > work.longest or work.shortest < SHORTEST:
        raise BenchError(
            f"rows of {work.shortest} to {work.longest} tokens in micro-batches of {work.microbatch_tokens} cannot be: "
            f"the shortest has {SHORTEST} at least, and the longest fits into one"
        )
    if work.device != "cpu" and not torch.cuda.is_available():
        raise BenchError(f"torch {torch.__version__} sees no GPU here: leave out --device, or install the cuda lock")
    with tempfile.TemporaryDirectory(prefix="cwm-bench-") as folder:
        path = Path(folder) / "model"
        say(f"a model of shape {work.shape} with random weights …")
        make(path, work.shape, work.device)
        found = speed(path, work, say)
        if work.device == "cpu":
            say("memory, with the head cut and whole …")
            found |= memory(Path(folder))
    return {"learner": found}


def make(path: Path, shape: str, device: str) -> None:
    """A model with random weights."""
    init_model(NANO, path)
    if shape in QWEN3:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        (path / "model.safetensors").unlink()
        config = Qwen3Config(**QWEN3[shape], tie_word_embeddings=True, max_position_embeddings=40960)
        with torch.device(device):  # a GPU draws the numbers faster
            Qwen3ForCausalLM(config).save_pretrained(path)


def rows_of(work: Work, vocabulary: int) -> list[Row]:
    """Rows of random tokens, the last two thirds as if sampled, a little off the policy."""
    chance = np.random.default_rng(0)
    made = []
    for index in chance.permutation(work.rows):
        size = round(work.shortest * (work.longest / work.shortest) ** ((index + 0.5) / work.rows))
        tokens = tuple(chance.integers(0, vocabulary, size).tolist())
        cut = size // 3
        logp = tuple((chance.normal(-math.log(vocabulary), 0.1, size - cut)).tolist())
        trajectory = Trajectory((Context(tokens[:cut]), Completion(tokens[cut:], logp, 0)))
        made.append(row(trajectory, float(chance.choice([-1.0, 1.0]))))
    return made


def speed(path: Path, work: Work, say: Say) -> dict[str, Any]:
    """Tokens a second of ours and of the rival, in turns, so that a machine's moods meet both."""
    algorithm = AlgorithmConfig(norm=float(work.rows * work.longest))
    ours = Learner(LearnerSetup(str(path), False, work.dtype, 1.0, work.learner, algorithm))
    policy = ours.policy
    rows = rows_of(work, policy.config.vocab_size)
    tokens = sum(len(one.tokens) for one in rows)
    micro = pack(rows, work.microbatch_tokens)
    computed = sum(len(one.tokens) for one in micro)
    rival = Bare(path, work, algorithm) if work.rival else None
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for step in range(-2, work.steps):
        say(f"step {step + 1} of {work.steps} …" if step >= 0 else "warming up …")
        took = _timed(work.device, lambda: ours.step(rows))
        other = _timed(work.device, lambda: rival.step(rows)) if rival else math.nan
        if step >= 0:
            seconds["ours"].append(took)
            seconds["bare"].append(other)
    mine, bare = (tokens / float(np.median(one)) for one in seconds.values())
    found: dict[str, Any] = {
        "shape": work.shape,
        "device": torch.cuda.get_device_name() if work.device != "cpu" else "cpu",
        "dtype": work.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters": sum(one.numel() for one in policy.parameters()),
        "rows": len(rows),
        "row_tokens": [min(len(one.tokens) for one in rows), max(len(one.tokens) for one in rows)],
        "tokens_per_step": tokens,
        "microbatches": len(micro),
        "padding_fraction": 1 - tokens / computed,
        "tokens_per_s": mine,
        "seconds": dict(ours.status()[1]),
    }
    if rival:
        found |= {"bare_tokens_per_s": bare, "ratio": mine / bare, "bare_padding_fraction": rival.padding(rows)}
    if work.device != "cpu":
        peak = peak_flops()
        each = flops(policy, micro)
        found |= {
            "tflops": each * mine / tokens / 1e12,
            "peak_tflops": peak / 1e12,
            "mfu": each * mine / tokens / peak,
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        }
    return found


class Bare:
    """The rival: a bare torch loop."""

    def __init__(self, path: Path, work: Work, algorithm: AlgorithmConfig) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, work.dtype)).to(work.device)
        self._model.train()
        if work.recompute:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
        self._optimiser = torch.optim.AdamW(self._model.parameters(), 3e-4, (0.9, 0.95))
        self._work, self._algorithm = work, algorithm

    def step(self, rows: Sequence[Row]) -> None:
        """One optimiser step."""
        self._optimiser.zero_grad(set_to_none=True)
        for some in self._batches(rows):
            tokens, mask, old, advantage, real = (one.to(self._work.device) for one in _padded(some))
            logits = self._model(input_ids=tokens, attention_mask=real, use_cache=False).logits[:, :-1].float()
            logp = torch.log_softmax(logits, -1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
            ratio = (logp - old[:, 1:]).exp()
            low, high = 1 - self._algorithm.clip_low, 1 + self._algorithm.clip_high
            gain = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
            loss = -(gain * mask[:, 1:]).sum() / self._algorithm.norm
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimiser.step()

    def padding(self, rows: Sequence[Row]) -> float:
        """Share of what it computes that is no row's."""
        computed = sum(len(some) * len(some[0].tokens) for some in self._batches(rows))
        return 1 - sum(len(one.tokens) for one in rows) / computed

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """The longest first; the first of a batch says how wide it is."""
        some: list[Row] = []
        for one in sorted(rows, key=lambda one: -len(one.tokens)):
            if some and (len(some) + 1) * len(some[0].tokens) > self._work.microbatch_tokens:
                yield some
                some = []
            some.append(one)
        yield some


def _padded(rows: Sequence[Row]) -> tuple[torch.Tensor, ...]:
    """Tokens, mask, recorded log-probabilities, all (B, L), advantages, (B, 1), and which tokens are real, (B, L)."""

    def laid(name: str) -> torch.Tensor:
        parts = [torch.from_numpy(getattr(one, name)) for one in rows]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    lengths = torch.tensor([len(one.tokens) for one in rows])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    return laid("tokens"), laid("mask"), laid("logprobs"), torch.tensor([[one.advantage] for one in rows]), real.long()


def flops(policy: Any, batches: Sequence[MicroBatch]) -> float:
    """Of the matrix products that a step needs, forth and back; what is computed again does not count.

    6 a parameter and token, the head for the policy's tokens only; attention's scores and sums, half of them causal.
    """
    config: Any = policy.config
    tables = {
        id(one.weight): one.weight.numel() for one in (policy.get_input_embeddings(), policy.get_output_embeddings())
    }
    body = sum(one.numel() for one in policy.parameters() if one.ndim == 2 and id(one) not in tables)
    head = policy.get_output_embeddings().weight.numel()
    width = int(config.num_hidden_layers * config.num_attention_heads * config.head_dim)
    lengths = [length for one in batches for length in one.row_lengths]
    sampled = sum(int(one.mask.sum()) for one in batches)
    return 6.0 * float(body * sum(lengths) + head * sampled + width * sum(length**2 for length in lengths))


def peak_flops() -> float:
    """What large bfloat16 products reach on this GPU, in operations a second."""
    a, b = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    took = _timed("cuda", lambda: [a @ b for _ in range(_PEAK_PRODUCTS)])
    return 2.0 * _PEAK_SIZE**3 * _PEAK_PRODUCTS / took


def memory(folder: Path) -> dict[str, Any]:
    """MiB by which one gradient of a model with a large vocabulary raises a process, the head cut and whole."""
    path = folder / "large-vocabulary"
    init_model(NANO.model_copy(update={"vocab_size": _VOCABULARY}), path)
    spawn = multiprocessing.get_context("spawn")
    found = []
    for elements in (None, _VOCABULARY * _MEMORY_TOKENS):
        # A process each: what an allocator keeps is not given back.
        with ProcessPoolExecutor(1, spawn) as process:
            found.append(process.submit(peak_mib, str(path), elements).result())
    cut, whole = found
    return {"memory_mib": cut, "whole_head_memory_mib": whole, "memory_ratio": cut / whole, "vocabulary": _VOCABULARY}


def peak_mib(path: str, head_elements: int | None) -> float:
    """Of this process: how far one gradient drives its resident memory above where it stood."""
    torch.set_num_threads(1)
    policy = model.load(path, dtype="float32", device="cpu")
    work = Work(rows=16, shortest=_MEMORY_TOKENS // 16, longest=_MEMORY_TOKENS // 16)
    (batch,) = pack(rows_of(work, _VOCABULARY), _MEMORY_TOKENS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on; see proc(5)
    before = _status("VmRSS")
    model.backward(policy, batch, 1.0, lambda logp, _: -logp.sum(), Clock(), head_elements=head_elements)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A value of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _timed(device: str, work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_words(found: dict[str, Any]) -> str:
    """The result as text for people."""
    return "\n".join(
        f"{name:>24}  {value:,.4g}" if isinstance(value, float) else f"{name:>24}  {value}"
        for name, value in found["learner"].items()
        if name != "seconds"
    )
