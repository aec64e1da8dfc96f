"""What `cwm-rl eval` was asked for, checked before anything starts."""

import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from rl import cluster
from rl.config import Config, ModelConfig, load, override, validated
from rl.plan import check_machine
from rl.prepare import check_generated
from rl.tasks.generated import GeneratedSource
from rollout_workers.renderer import Renderer
from rollout_workers.weights import WeightsError, WeightsRef, check
from verifiers.errors import UserError

ALL: Final = "all"
_WEIGHTS: Final = ("safetensors", "bin", "pt")
_CONTEXT: Final = 1024
_BUILT_IN: Final[dict[str, Any]] = {
    "math": {"difficulty": 2, "limits": {"tokens": 384, "prompt_tokens": 256, "reply_tokens": 128}},
    "code": {
        "difficulty": 2,
        "limits": {"tokens": 512, "prompt_tokens": 256, "reply_tokens": 128, "tool_tokens": 128},
    },
    "trace": {"difficulty": 1, "limits": {"tokens": 512, "prompt_tokens": 256, "reply_tokens": 224}},
    "repair": {
        "difficulty": 1,
        "limits": {"tokens": 800, "prompt_tokens": 256, "reply_tokens": 128, "tool_tokens": 224},
    },
}
"""Generator -> what a small model gets of it, without a configuration."""


class EvaluationError(UserError):
    """An evaluation that cannot be made, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `cwm-rl eval` is asked for."""

    model: str
    """Directory, or name on Hugging Face's hub."""
    domains: str = ALL
    """Names of domains between commas, or `all`."""
    tasks: int = 200
    """Held-out tasks of every domain."""
    samples: int = 1
    """Episodes of every task."""
    greedy: bool = False
    difficulty: int | None = None
    """Replaces every source's own; None keeps it."""
    config: Path | None = None
    """Whose sources and rollouts are used."""
    overrides: Sequence[str] = ()
    """`a.b=value` on the configuration, or on what stands for one."""
    out: Path | None = None
    """Directory to make; none makes one below evals/."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A request that can be carried out; `config` names its model and its sources."""

    request: Request
    config: Config
    out: Path

    @property
    def model(self) -> str:
        """Directory of the model, or its name on the hub."""
        return str(self.config.model.path)


def prepare(request: Request) -> Evaluation:
    """Check everything that can be checked before something starts. Raises UserError."""
    if request.tasks < 1 or request.samples < 1:
        raise EvaluationError(
            f"there is nothing to evaluate on: {request.tasks} held-out tasks a domain, {request.samples} samples a "
            "task; both must be at least 1"
        )
    if request.greedy and request.samples > 1:
        raise EvaluationError(
            f"greedy sampling says the same {request.samples} times: leave out one of --greedy and -k"
        )
    out = _free(request)
    config = load(request.config, request.overrides) if request.config else _built_in(request.overrides)
    sources = _chosen(request, config.data.generated)
    model = _found(request.model)
    Renderer.load(model, reasoning=config.rollout.reasoning)  # complains of a missing or unfit model
    config = config.model_copy(
        update={
            "model": ModelConfig(path=model, dtype=config.model.dtype),
            "data": config.data.model_copy(update={"generated": sources}),
        }
    )
    if request.config is None:
        config = _within(config, _context_of(model))
    check_generated(config)
    check_machine(config)
    cluster.check(config.cluster)
    return Evaluation(request, config, out)


def deadline(config: Config, episodes: int) -> float:
    """Seconds that so many episodes on held-out tasks may take.

    As if in every slot each took as long as a whole group may, and one time more for a worker that starts anew.
    """
    rounds = math.ceil(episodes / (config.rollout.workers * config.rollout.slots))
    return config.guard.group_seconds * (rounds + 1)


def _free(request: Request) -> Path:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(request.model).resolve().name) or "model"
    out = request.out or Path("evals") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if out.exists():
        raise EvaluationError(f"{out} exists: choose another --out, or remove it")
    out = out.resolve()
    above = next(path for path in out.parents if path.exists())
    if not above.is_dir():
        raise EvaluationError(f"{out} cannot be made: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise EvaluationError(f"{out} cannot be made: {above} is not yours to write, choose another --out")
    return out


def _built_in(overrides: Sequence[str]) -> Config:
    """What stands for a configuration: good for a small model on a CPU. Raises ConfigError."""
    tree: dict[str, Any] = {
        "model": {"path": ""},
        "data": {"generated": [{"generator": name, **source} for name, source in _BUILT_IN.items()]},
        "rollout": {
            "slots": 64,
            "engine": {"context": _CONTEXT, "kv_cache_gib": 0.5},
            "sandbox": {"backend": "bubblewrap"},  # starts ten times as fast as a container
        },
    }
    for text in overrides:
        override(tree, text)
    return validated(Config, tree, "--set")


def _chosen(request: Request, sources: Sequence[GeneratedSource]) -> tuple[GeneratedSource, ...]:
    """The sources of the domains asked for, at the difficulty asked for. Raises EvaluationError, ConfigError."""
    known = list(dict.fromkeys(source.domain for source in sources))
    where = f" in {request.config}" if request.config else ""
    if not known:
        raise EvaluationError(f"there is no generator{where}, and only generators have held-out tasks")
    asked = [name for part in request.domains.split(",") if (name := part.strip())]
    domains = known if asked == [ALL] else asked
    if not domains:
        raise EvaluationError(f"--tasks names no domain: give {ALL}, or some of {', '.join(known)}")
    for name in domains:
        if name not in known:
            nearest = ", ".join(get_close_matches(name, known, n=len(known), cutoff=0.0))
            raise EvaluationError(f"no generator{where} makes the domain '{name}'; nearest first, there are {nearest}")
    chosen = [source for source in sources if source.domain in domains]
    if request.difficulty is not None:
        level = {"difficulty": request.difficulty}
        chosen = [validated(GeneratedSource, source.model_dump() | level, "--difficulty") for source in chosen]
    return tuple(dict.fromkeys(chosen))


def _found(model: str) -> str:
    """An absolute path, for workers start elsewhere, or a name on the hub. Raises EvaluationError.

    What lies below a directory that is there is no name on the hub: asking for it would take a minute.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        _whole(path)
        return str(path.resolve())
    if path.exists() or path.is_absolute() or len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir()):
        raise EvaluationError(f"there is no model at {model}: it is no directory")
    return model


def _whole(directory: Path) -> None:
    """Says at once what an engine would only say after its start. Raises EvaluationError."""
    weights = [path for ending in _WEIGHTS for path in directory.glob(f"*.{ending}")]
    if (directory / "config.json").is_file() and not weights:
        raise EvaluationError(f"the model at {directory} does not load: there are no weights in it")
    for path in weights:
        try:
            if path.suffix == ".safetensors":
                check(WeightsRef(0, str(path)))
        except WeightsError as error:
            raise EvaluationError(f"the model at {directory} does not load: {path.name} is damaged or cut") from error


def _context_of(model: str) -> int | None:
    """The longest sequence a model was made for, if its configuration says so."""
    from transformers import AutoConfig

    found = getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _within(config: Config, context: int | None) -> Config:
    """The same in a context of at most `context`."""
    engine = config.rollout.engine
    if context is None or context >= engine.context:
        return config
    sources = []
    for source in config.data.generated:
        limits = source.limits.apply()
        less = {"tokens": min(limits.tokens, context), "prompt_tokens": min(limits.prompt_tokens, context)}
        sources.append(source.model_copy(update={"limits": source.limits.model_copy(update=less)}))
    rollout = config.rollout.model_copy(update={"engine": engine.model_copy(update={"context": context})})
    data = config.data.model_copy(update={"generated": tuple(sources)})
    return config.model_copy(update={"rollout": rollout, "data": data})
