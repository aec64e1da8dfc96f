"""The whole configuration, composed of the models that each floor owns for its own parts."""

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rl.init_model import InitModel
from rl.sft.config import Beta, SftConfig
from rl.tasks.files import FileSource
from rl.tasks.generated import GeneratedSource
from rl.tasks.stream import MixtureStage, SoftTokens
from rollout_workers.config import RolloutConfig
from verifiers import registry
from verifiers.errors import UserError

M = TypeVar("M", bound=BaseModel)
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class ConfigError(UserError):
    """A configuration that cannot be used, in one sentence."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunConfig(_Model):
    """What a run is called, where it lies and how long it goes."""

    directory: Path = Field(Path("runs"), description="Where runs are kept; each in a directory of its own.")
    id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="The run's name; none takes the time."
    )
    steps: int = Field(5, ge=1, description="Optimiser steps in all.")
    seconds: float | None = Field(
        None, gt=0, description="Take no further step after so many seconds of training; a resume has as many again."
    )
    seed: int = Field(0, description="Seed of weights, task order and sampling.")
    trackers: tuple[Tracker, ...] = Field((), description="Trackers that get the numbers too, in their own process.")


class ModelConfig(_Model):
    """The policy the run starts from: a directory or hub name, or a shape to make one of."""

    path: str | None = Field(None, description="Hugging Face directory, or a name on its hub.")
    init: InitModel | None = Field(None, description="Make a model from nothing instead.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of the weights, on both sides.")

    @field_validator("path")
    @classmethod
    def _home(cls, path: str | None) -> str | None:
        return path if path is None else str(Path(path).expanduser())

    @model_validator(mode="after")
    def _one_of_two(self) -> "ModelConfig":
        if self.path is None and self.init is None:
            raise ValueError("give either model.path or [model.init]")
        if self.path is not None and self.init is not None:
            raise ValueError(
                "give either model.path or [model.init], not both; to put a model in the place of a file's "
                "[model.init], say --set 'model={ path = \"...\" }'"
            )
        return self


class DataConfig(_Model):
    """Where tasks come from."""

    dir: Path = Field(Path("."), description="Relative paths of sources start here.")
    sources: tuple[FileSource, ...] = Field((), description="Task files.")
    generated: tuple[GeneratedSource, ...] = Field((), description="Generators of endless tasks.")
    mixture: tuple[MixtureStage, ...] = Field(
        (), description="How often each domain is drawn, by step; unset: file tasks uniformly, or generators equally."
    )
    soft_tokens: SoftTokens | None = Field(
        None, description="How long an episode may be, by step, before the verifier `length` takes something off."
    )

    @model_validator(mode="after")
    def _can_be_drawn(self) -> "DataConfig":
        if not self.sources and not self.generated:
            raise ValueError("data needs at least one of data.sources and data.generated")
        if self.sources and self.generated and not self.mixture:
            raise ValueError("files and generators together need a data.mixture, which says how often each is drawn")
        steps = [stage.from_step for stage in self.mixture]
        if not self.sources and any(stage.solve_rate for stage in self.mixture):
            raise ValueError("data.mixture.solve_rate is of tasks that come again, and generated ones come once only")
        if steps and (steps[0] != 0 or steps != sorted(set(steps))):
            raise ValueError(f"the stages of data.mixture must begin at step 0 and go up, not at {steps}")
        return self


class WarmStartConfig(_Model):
    """A supervised stage on the generators' demonstrations, before the run; its model is kept for the next one."""

    directory: Path = Field(Path("models"), description="Where warm starts are kept.")
    mistakes: dict[str, float] = Field(
        {}, description="Domain -> probability that a decision in a demonstration goes wrong; 0 without an entry."
    )
    weights: dict[str, int] = Field({}, description="Domain -> how many demonstrations in turn; 1 without an entry.")
    sft: SftConfig = SftConfig()


class EvalConfig(_Model):
    """Evaluation on held-out tasks before the first step and after the last one."""

    tasks: int = Field(200, ge=1, description="Held-out tasks a domain.")
    samples: int = Field(1, ge=1, description="Episodes a task, at the rollouts' temperature.")


class AlgorithmConfig(_Model):
    """The objective and what is left out of it (sources in `rl.algorithm`)."""

    group_size: int = Field(8, ge=2, description="Episodes of one task that share a baseline.")
    advantage: Literal["cwm", "grpo", "dr_grpo", "rloo"] = Field("cwm", description="How returns become advantages.")
    loss: Literal["clip", "gspo", "cispo", "dppo_tv"] = Field(
        "clip", description="The surrogate. gspo clips whole sequences: ε some 3e-4, and norm counts sequences."
    )
    correction: Literal["none", "decoupled", "tis", "icepop", "mis"] = Field(
        "none",
        description="Clip against the policy at the start of the batch, and weight by its ratio to the sampler. With "
        "minibatches = 1 nothing is clipped, as nothing has moved yet; stale mistakes are then penalised in full.",
    )
    correction_cap: float = Field(2.0, gt=0, description="Upper bound of that ratio: tis cuts there, icepop, mis mask.")
    correction_floor: float = Field(0.5, ge=0, description="Lower bound of that ratio: icepop masks below it.")
    divergence: float = Field(0.2, gt=0, le=1, description="Of dppo_tv: how far a token's probability may move.")
    clip_low: float = Field(0.2, gt=0, lt=1, description="ε_low of the clipped ratio.")
    clip_high: float = Field(0.25, gt=0, description="ε_high of the clipped ratio.")
    norm: float = Field(131072, gt=0, description="N, the constant the objective is divided by (CWM: its context).")
    token_budget: int = Field(8192, ge=1, description="A batch is cut at so many tokens with non-zero advantage.")
    minibatches: int = Field(
        1,
        ge=1,
        description="Optimiser steps a batch, each on a share of its tokens; one version is published for all. Several "
        "copy weights and moments to the host's memory first: if one is refused, none was taken.",
    )
    max_lag: int = Field(4, ge=0, description="Newest version − version of the last sampled token, at most.")
    shuffle_rewards: bool = Field(
        False, description="A control that must not learn: rewards are dealt out by chance within each group."
    )
    rare_token_from: int | None = Field(
        None, ge=0, description="Gibberish: ids from here on are rare (vocabulary by frequency); none turns it off."
    )

    @model_validator(mode="after")
    def _corrects_what_clips(self) -> "AlgorithmConfig":
        if self.correction != "none" and self.loss != "clip":
            raise ValueError(f"correction = '{self.correction}' goes with loss = 'clip', not with '{self.loss}'")
        if self.correction == "icepop" and self.correction_floor >= self.correction_cap:
            raise ValueError(f"correction_floor must be below correction_cap, {self.correction_cap:g}")
        return self


class LearnerConfig(_Model):
    """The optimiser and the machine it runs on."""

    lr: float = Field(3e-4, ge=0, description="AdamW's learning rate, constant; 0 is a control that must not learn.")
    muon_lr: float | None = Field(
        None, ge=0, description="Muon's, constant, for the hidden matrices; 0 or none leaves them to AdamW."
    )
    lr_scale: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="Factor of the rates for weights whose names contain the key, the first one that does."
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW's decay rates of its two means.")
    eps: float = Field(1e-8, gt=0, description="AdamW's, added to the root of the second mean.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's and Muon's.")
    max_grad_norm: float = Field(1.0, gt=0, description="The gradient is clipped to this norm; logged unclipped.")
    microbatch_tokens: int = Field(2048, ge=64, description="Tokens of one packed forward pass.")
    activation_checkpointing: bool = Field(
        False, description="Keep a layer's input only, and compute the rest again for the gradient."
    )
    compile: bool = Field(False, description="Let torch compile norms and feed-forward parts: minutes once, for a GPU.")
    device: str = Field("cpu", description='"cpu" or "cuda".')
    threads: int = Field(1, ge=1, description="torch threads on a CPU.")
    cores: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="CPUs of the learner, counted among those it may use; none leaves it free."
    )
    cpus: float = Field(1, gt=0, description="CPUs Ray reserves.")
    gpus: float = Field(0, ge=0, description="GPUs Ray reserves.")
    step_seconds: float = Field(600, gt=0, description="Deadline of one step.")


class CheckpointConfig(_Model):
    """How often the learner's state is saved, and how much of it is kept."""

    every: int = Field(1, ge=1, description="Steps between checkpoints: what a crash can cost.")
    keep: int = Field(3, ge=1, description="Newest checkpoints kept.")


class GuardConfig(_Model):
    """When a run stops by itself, and what it checks of itself."""

    zero_advantage_groups: int = Field(64, ge=1, description="Stop after so many groups in a row taught nothing.")
    refused_batches: int = Field(
        3, ge=1, description="Stop after so many batches in a row whose loss or gradient was not finite."
    )
    retries: int = Field(2, ge=0, description="Further attempts at an episode after a failure of ours.")
    worker_restarts: int = Field(3, ge=0, description="New starts of lost workers before the run fails.")
    group_seconds: float = Field(900, gt=0, description="Deadline of a group; who is late is dropped.")
    batch_seconds: float = Field(1800, gt=0, description="Deadline of the wait for a batch.")
    gap_versions: int = Field(
        4, ge=0, description="At the end, compare log-probabilities of engine and learner for so many versions."
    )


class ClusterConfig(_Model):
    """The Ray cluster a run joins, or starts for itself."""

    address: str | None = Field(None, description='A running cluster, or "auto"; none starts one on loopback.')
    connect_seconds: float = Field(30, gt=0, description="Deadline for the cluster's answer.")


class PartConfig(_Model):
    """How one verifier counts in a sum."""

    weight: float = Field(1.0, gt=0, description="Factor of its reward in the sum.")
    gate: bool = Field(False, description="What it does not find correct gets the lowest reward.")
    if_correct: bool = Field(False, description="Count it only where the answer is correct.")
    options: dict[str, Any] = Field({}, description="Arguments of its constructor.")

    @model_validator(mode="before")
    @classmethod
    def _from_weight(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {"weight": value}


class Config(_Model):
    """Everything. Unknown keys are refused."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig
    warm_start: WarmStartConfig | None = Field(None, description="None starts from the model as it is.")
    eval: EvalConfig | None = Field(None, description="None evaluates nothing.")
    verifiers: dict[str, dict[str, PartConfig]] = Field(
        {},
        description="Verifier that tasks name -> the verifiers that score them: weight, or a table; unset: itself. In "
        "a table of one's own the verifier itself scores only if it is named, too.",
    )
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    learner: LearnerConfig = LearnerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        context = self.rollout.engine.context
        if self.model.init is not None and self.model.init.context < context:
            raise ValueError(
                f"rollout.engine.context is {context} and model.init.context only {self.model.init.context}"
            )
        limits = {f"data.sources.{at}": source.limits for at, source in enumerate(self.data.sources)}
        limits |= {f"data.generated.{at}": source.limits for at, source in enumerate(self.data.generated)}
        for key, override in limits.items():
            if (tokens := override.apply().tokens) > context:
                raise ValueError(f"{key}.limits.tokens is {tokens} and rollout.engine.context only {context}")
        soft = self.data.soft_tokens
        if soft is not None and soft.first >= (most := max(one.apply().tokens for one in limits.values())):
            raise ValueError(
                f"data.soft_tokens.first is {soft.first}, and no episode may have more than {most} tokens: nothing "
                "would be too long"
            )
        lengths = [parts["length"] for parts in self.verifiers.values() if "length" in parts]
        if soft is None and any(not {"limit", "margin"} & part.options.keys() for part in lengths):
            raise ValueError("the verifier 'length' needs an option 'limit' or 'margin', or data.soft_tokens")
        for name, part in (("warm_start", self.warm_start), ("eval", self.eval)):
            if part is not None and not self.data.generated:
                raise ValueError(f"[{name}] needs data.generated: files have neither demonstrations nor held-out tasks")
        return self

    @model_validator(mode="after")
    def _scores_something(self) -> "Config":
        known = set(registry.targets()) | {source.verifier for source in self.data.generated}
        known |= {source.verifier for source in self.data.sources if source.verifier}
        if unknown := sorted(self.verifiers.keys() - known):
            near = get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(known))}"
            raise ValueError(f"[verifiers.{unknown[0]}] is of no verifier that a task could name: {hint}")
        return self


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, apply `a.b=value` overrides (values in TOML, else plain strings), validate.

    Raises ConfigError naming the file and the key.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"no configuration at {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for text in overrides:
        override(tree, text)
    return validated(Config, tree, str(path))


def changed(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with overrides applied. Raises ConfigError."""
    tree = config.model_dump(mode="json")
    for text in overrides:
        override(tree, text)
    return validated(Config, tree, "--set")


def validated(model: type[M], tree: dict[str, Any], where: str) -> M:
    """Validate plain values that came from `where`. Raises ConfigError."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        found = "; ".join(_sentence(model, one) for one in error.errors()[:3])
        raise ConfigError(f"{where}: {found}") from error


def override(tree: dict[str, Any], text: str) -> None:
    """Set `a.b=value` in a tree; the value is TOML, or else a plain string. Raises ConfigError."""
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set takes a.b=value, not '{text}'")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    place: Any = tree
    for name in names[:-1]:
        if isinstance(place, list) and name.isdigit() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, dict):
            place = place.setdefault(name, {})
        else:
            raise ConfigError(f"--set {text}: there is nothing below '{name}'")
    if not isinstance(place, dict):
        raise ConfigError(f"--set {text}: '{names[-2]}' holds a value, no further keys")
    place[names[-1]] = parsed


def _sentence(model: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = _known(model, path[:-1])
        near = get_close_matches(path[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(known))}"
        return f"there is no key '{key}': {hint}"
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not key:
        return message
    if error["type"] == "string_type":
        message += "; a text that looks like a number or a date is quoted twice, \"'42'\""
    of_a_table = error["type"] == "value_error" and isinstance(error["input"], dict)  # which then says all itself
    unshown = error["type"] == "missing" or of_a_table
    return f"{key}: {message}" + ("" if unshown else f", not {error['input']!r:.80}")


def _known(model: Any, path: Sequence[str]) -> list[str]:
    """Names of the keys below a path of keys and list indices."""
    for name in path:
        if not name.isdigit():
            field = getattr(model, "model_fields", {}).get(name)
            model = model if field is None else _inner(field.annotation)  # else the key of a table of one's own
    return list(getattr(model, "model_fields", ()))


def _inner(annotation: Any) -> Any:
    """The model inside `X | None`, `tuple[X, ...]` or `dict[str, X]`, however deep."""
    for argument in getattr(annotation, "__args__", ()):
        if hasattr(found := _inner(argument), "model_fields"):
            return found
    return annotation
