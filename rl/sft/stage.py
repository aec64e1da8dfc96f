"""The supervised stage: a model learns from demonstrations, by the loss on what the policy would have written.

for batch of packed conversations, until the budget of tokens is used:
    loss  = mean over the policy's tokens of -log pi(token | what precedes it)
    theta <- Muon for the hidden matrices, AdamW for the rest, at rates that rise, stay and fall to 0
"""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

import torch
from safetensors import SafetensorError

from rl.init_model import InitModel, init_model
from rl.progress import Say
from rl.sft.config import SftConfig
from rl.sft.data import Conversations
from rl.sft.trainer import RECORD, SftError, SftFailed, SftInterrupted, Stage, Trainer, partial_of, threads
from rl.tasks.conversations import Shuffled, read
from rollout_workers.renderer import Renderer
from rollout_workers.weights import WeightsError, WeightsRef
from rollout_workers.weights import check as check_weights

__all__ = ["SftConfig", "SftError", "SftFailed", "SftInterrupted", "Stage", "from_file", "train", "warm_start"]

_PATIENCE_SECONDS: Final = 3600.0
_GRACE_SECONDS: Final = 300.0
"""For what a stage does beside learning."""
_ASK_SECONDS: Final = 1.0


def train(stage: Stage, out: Path, say: Say) -> dict[str, Any]:
    """Run the stage, or go on with it, and put the model at `out`. Returns what `sft.json` in it holds.

    Raises SftError where it cannot start, SftFailed where it cannot go on, SftInterrupted where it was asked to stop.
    """
    check_free(out)
    if stage.config.device.startswith("cuda") and not torch.cuda.is_available():
        raise SftError(f"there is no GPU for device '{stage.config.device}' here: set device=cpu")
    with threads(stage.config.threads):
        trainer = Trainer(stage, partial_of(out), say)
        try:
            partial_of(out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SftError(f"{partial_of(out)} cannot be made: {error.strerror}") from error
        try:
            trainer.run()
            return trainer.finish(out)
        except KeyboardInterrupt:
            raise SftInterrupted(f"stopped at once: the same command goes on from step {trainer.saved}") from None
        except (OSError, SafetensorError) as error:
            raise SftFailed(
                f"{partial_of(out)} cannot be written: {error}; the same command goes on from step {trainer.saved}"
            ) from error


def warm_start(
    base: InitModel | str,
    conversations: Conversations,
    identity: Mapping[str, Any],
    config: SftConfig,
    models: Path,
    say: Say,
    *,
    dtype: str = "float32",
    reasoning: bool = True,
    out: Path | None = None,
    texts: Iterable[str] = (),
) -> Path:
    """What `base` becomes by this stage: made, gone on with, or, of the same digest below `models`, there already.

    `identity` tells the conversations from all others; `out` is a place to put the model instead; a tokenizer made
    from nothing is learnt from `texts` as well. Raises what `train` raises, and InitModelError.
    """
    of_base = _shape(base) if isinstance(base, InitModel) else fingerprint(base)
    stage = Stage(str(base), conversations, {"base": of_base, "conversations": identity}, config, dtype, reasoning)
    shared, out = out is None, out or models / f"warm-{stage.digest}"
    patience = config.seconds + _GRACE_SECONDS if config.seconds else _PATIENCE_SECONDS
    with _alone(out, say, patience) if not (shared and finished(out)) else nullcontext():
        if shared and finished(out):
            say(f"the warm start is there already: {out}")
            return out
        check_free(out)
        if isinstance(base, InitModel):
            begin = partial_of(out) / "base"
            shutil.rmtree(begin, ignore_errors=True)
            size = init_model(base, begin, texts)
            say(f"made a model of {size:,} parameters from nothing")
            stage = replace(stage, model=str(begin))
        say(in_words(train(stage, out, say), out))
    return out


@contextmanager
def _alone(out: Path, say: Say, patience: float) -> Iterator[None]:
    """While no other process makes the model at `out`: two runs of one configuration may be started at once.

    Raises SftError, also where another one is still at it after `patience` seconds.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = out.with_name(f".{out.name}.lock").open("ab")
    except OSError as error:
        raise SftError(f"{out} cannot be made: {error.strerror}") from error
    with lock:
        try:
            if not _locked(lock):
                say(f"another process makes {out}: waiting for it, {patience:.0f} s at most")
                _wait(lock, out, patience)
        except OSError as error:
            say(f"{lock.name} cannot be locked ({error.strerror}): start no second run that makes the same model")
        yield
        Path(lock.name).unlink(missing_ok=True)  # who still waits for it finds the model made


def _wait(lock: IO[bytes], out: Path, patience: float) -> None:
    until = time.monotonic() + patience
    while not _locked(lock):
        if time.monotonic() > until:
            raise SftError(
                f"another process has been making {out} for {patience:.0f} s: end it, or wait until it is done, and "
                "start again"
            )
        time.sleep(_ASK_SECONDS)


def _locked(lock: IO[bytes]) -> bool:
    """By us, from now on. Raises OSError where files cannot be locked."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def from_file(
    name: str, data: Path, config: SftConfig, *, columns: Mapping[str, str] | None = None, dtype: str = "float32"
) -> Stage:
    """The stage of any model on a file of conversations. Raises RendererError for the model, DataError for the file."""
    Renderer.load(name)  # complains of a missing or unfit model before the file is read
    conversations = list(read(data, columns))
    with data.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    identity = {"base": fingerprint(name), "data": content, "columns": dict(columns or {})}
    return Stage(name, Shuffled(conversations, config.seed), identity, config, dtype)


def check_free(out: Path) -> None:
    """Raises SftError where something stands at `out`."""
    if out.exists():
        raise SftError(f"{out} exists: choose another path, or remove it")


def in_words(record: Mapping[str, Any], out: Path) -> str:
    """What a finished stage did, for people."""
    left_out = f"; {record['left_out']} conversations were longer than the context" if record["left_out"] else ""
    return (
        f"{out}: {record['steps']} steps on {record['tokens']:,} tokens in {record['seconds']:.0f} s "
        f"({record['tokens_per_second']:,.0f} tokens/s), loss {record['loss']:.3f}{left_out}"
    )


def finished(out: Path) -> bool:
    """Whether a whole model made by this stage lies there."""
    try:
        json.loads((out / RECORD).read_text())
        weights = list(out.glob("model*.safetensors"))
        for file in weights:
            check_weights(WeightsRef(0, str(file)))
    except (OSError, ValueError, WeightsError):
        return False
    return bool(weights)


def fingerprint(name: str) -> dict[str, Any]:
    """Tells a model directory from others without reading its weights; a hub name stands for itself."""
    directory = Path(name)
    if not directory.is_dir():
        return {"name": name}
    stats = {path.name: path.stat() for path in sorted(directory.iterdir()) if path.is_file()}
    return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def _shape(shape: InitModel) -> dict[str, Any]:
    """A shape with its corpus by content. Raises SftError."""
    try:
        corpus = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in shape.corpus]
    except OSError as error:
        raise SftError(f"{error.filename}: {error.strerror}") from error
    return {**shape.model_dump(mode="json"), "corpus": corpus}
