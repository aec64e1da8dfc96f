"""The configuration: what is refused, in which words, and that every key is explained."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from fakes import config_of
from pydantic import BaseModel, ValidationError

from rl.config import Config, ConfigError, ModelConfig, changed, load
from rl.init_model import InitModel
from rl.keys import in_words

ROOT = Path(__file__).parents[2]
MINIMAL = '[model]\npath = "m"\n[[data.sources]]\npath = "t.jsonl"\n'


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(MINIMAL)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/configs").glob("*.toml")), ids=lambda path: path.name)
def test_what_we_ship_loads(path: Path) -> None:
    assert load(path).run.steps >= 1


def test_a_minimal_file_takes_the_defaults(minimal: Path) -> None:
    config = load(minimal)
    assert (config.model.path, config.algorithm.group_size, config.run.id) == ("m", 8, None)
    assert Config.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError):
        config.run.steps = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("algoritm.group_size", "algorithm"),
        ("algorithm.groupsize", "group_size"),
        ("rollout.engine.contxt", "context"),
        ("rollout.sandbox.back_end", "backend"),
        ("data.source", "sources"),
        ("data.sources.0.verifer", "verifier"),
        ("data.sources.0.limits.turn", "turns"),
        ("guard.retry", "retries"),
        ("cluster.adress", "address"),
        ("verifiers.math.length.weigth", "weight"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(minimal: Path, key: str, near: str) -> None:
    found = refusal(minimal, f"{key}=1")
    assert f"there is no key '{key}'" in found or f"there is no key '{key.split('.')[0]}'" in found
    assert f"did you mean '{near}'?" in found


def test_an_unknown_key_inside_a_model_from_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[model.init]\nhiden_size = 64\n[[data.sources]]\npath = "t"\n')
    assert refusal(path) == f"{path}: there is no key 'model.init.hiden_size': did you mean 'hidden_size'?"


def test_a_key_like_no_other_gets_the_list(minimal: Path) -> None:
    assert "known are connect_seconds" in refusal(minimal, "cluster.zzz=1").replace("address, ", "")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learner.lr=fast", "learner.lr: input should be a valid number"),
        ("learner.lr=-1.0", "learner.lr: input should be greater than or equal to 0, not -1.0"),
        ("run.steps=0", "run.steps: input should be greater than or equal to 1, not 0"),
        ("run.steps=2.5", "run.steps: "),
        ("run.id='../x'", "run.id: "),
        ("rollout.slots=-3", "rollout.slots: "),
        ("rollout.engine.kv=drop", "rollout.engine.kv: input should be 'keep' or 'recompute', not 'drop'"),
        ("rollout.engine.kv_cache_gib=0", "rollout.engine.kv_cache_gib: "),
        ("rollout.engine.cores=[-1]", "rollout.engine.cores.0: "),
        (
            "rollout.engine={ cores = [0], tensor_parallel_size = 2 }",
            "rollout.engine: cores pin an engine of one process",
        ),
        ("algorithm.clip_low=1.0", "algorithm.clip_low: "),
        ("algorithm.group_size=1", "algorithm.group_size: "),
        ("algorithm.max_lag=-1", "algorithm.max_lag: input should be greater than or equal to 0, not -1"),
        ("algorithm.minibatches=0", "algorithm.minibatches: "),
        (
            "data={ generated = [{generator = 'math'}], mixture = [{weights = {math = 1}, solve_rate = [0.1, 0.7]}] }",
            "data: data.mixture.solve_rate is of tasks that come again",
        ),
        ("learner.betas=[0.9]", "learner.betas.1: "),
        ("learner.betas=[1.0, 0.9]", "learner.betas.0: input should be less than 1"),
        ("run.id=2025-01-02", "run.id: input should be a valid string; a text that looks like a number or a date"),
        ("data.sources=[]", "data: data needs at least one of data.sources and data.generated"),
        ("data.sources.0.limits.tokens=-5", "data.sources.0.limits.tokens: "),
        ("verifiers.math.math=much", "verifiers.math.math.weight: "),
        ("model.dtype=float16", "model.dtype: "),
    ],
)
def test_a_wrong_value_is_named_with_its_key(minimal: Path, override: str, words: str) -> None:
    found = refusal(minimal, override)
    assert found.startswith(f"{minimal}: {words}")


def test_a_model_is_a_path_or_a_shape(minimal: Path) -> None:
    assert refusal(minimal, "model.init.layers=2").endswith("say --set 'model={ path = \"...\" }'")
    minimal.write_text('[model.init]\n[[data.sources]]\npath = "t"\n')
    assert load(minimal, ['model={ path = "m" }']).model == ModelConfig(path="m")
    minimal.write_text('[model]\ndtype = "float32"\n[[data.sources]]\npath = "t"\n')
    assert "give either model.path or [model.init]" in refusal(minimal)
    minimal.write_text('[[data.sources]]\npath = "t"\n')
    assert "model: field required" in refusal(minimal)


def test_contexts_must_fit_one_another(minimal: Path) -> None:
    assert "limits.tokens is 4096 and rollout.engine.context only 2048" in refusal(
        minimal, "rollout.engine.context=2048"
    )
    minimal.write_text('[model.init]\ncontext = 1024\n[[data.sources]]\npath = "t"\n')
    assert "rollout.engine.context is 4096 and model.init.context only 1024" in refusal(minimal)


def test_what_is_no_configuration(tmp_path: Path) -> None:
    assert "no configuration at" in refusal(tmp_path / "nothing.toml")
    assert "no configuration at" in refusal(tmp_path)
    for content in (b"[model\n", b"\xff\xfe\x00", b"a = 1\na = 2\n"):
        (tmp_path / "c.toml").write_bytes(content)
        assert "is not TOML" in refusal(tmp_path / "c.toml")


def test_overrides_reach_everything(minimal: Path) -> None:
    config = load(
        minimal,
        [
            *(
                "run.steps=7",
                "run.id=mine",
                "model.path=/models/a b",
                "learner.cores=[0, 1]",
                "learner.betas=[0.8, 0.9]",
            ),
            *("data.sources.0.limits.turns=3", "data.sources.0.columns={ prompt = 'question' }", "data.dir=here=there"),
            *(
                "verifiers.math.math=1",
                "verifiers.math.printable=0.25",
                "rollout.reasoning=false",
                " algorithm.norm =8",
            ),
        ],
    )
    assert (config.run.steps, config.run.id, config.model.path) == (7, "mine", "/models/a b")
    assert (config.learner.cores, config.learner.betas) == ((0, 1), (0.8, 0.9))
    assert config.data.sources[0].limits.apply().turns == 3
    assert (config.data.sources[0].columns, config.data.dir) == ({"prompt": "question"}, Path("here=there"))
    weights = {name: part.weight for name, part in config.verifiers["math"].items()}
    assert weights == {"math": 1.0, "printable": 0.25}
    assert (config.rollout.reasoning, config.algorithm.norm) == (False, 8)


@pytest.mark.parametrize("override", ["run.steps", "=3", ".steps=3", "run.=3", "data.sources.9.path=x"])
def test_an_override_that_means_nothing_is_refused(minimal: Path, override: str) -> None:
    assert "--set" in refusal(minimal, override)


def test_a_stored_configuration_is_changed_by_the_same_rules() -> None:
    config = config_of("run.steps=3")
    assert changed(config, ["run.steps=10"]).run.steps == 10
    assert changed(config, []) == config
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        changed(config, ["run.stepps=10"])


def models_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from models_of(inner)


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_every_key_is_explained() -> None:
    seen = list(models_of(Config))
    assert InitModel in seen
    for model in seen:
        assert model.__doc__
        for name, field in model.model_fields.items():
            # A section is explained by its model's docstring.
            assert field.description or is_model(field.annotation), f"{model.__name__}.{name} has no description"


def test_every_key_is_told_with_its_type_and_default() -> None:
    told = dict(text.split("\n    ") for text in in_words())
    assert told["algorithm.group_size: int = 8"] == "Episodes of one task that share a baseline."
    assert told['rollout.engine.kv: "keep" | "recompute" = "keep"']
    assert told["data.sources.N.limits.turns: int | none = none"] == "Replies of the policy."
    assert told["verifiers.NAME.NAME.options: { NAME = anything } = {}"]
    assert told["learner.betas: [float, float] = [0.9,0.95]"] and told["data.sources.N.path: str, required"]
    assert told["[checkpoint]"].startswith("How often the learner's state is saved")
    words = set(re.findall(r"\w+", " ".join(told)))
    for model in models_of(Config):
        assert model.model_fields.keys() <= words


def test_a_length_penalty_that_would_take_nothing_off() -> None:
    with pytest.raises(ConfigError, match="'length' needs an option"):
        config_of("verifiers.math={ math = 1.0, length = 0.2 }")
    with pytest.raises(ConfigError, match="nothing would be too long"):
        config_of("data.soft_tokens={}", "verifiers.math={ math = 1.0, length = 0.2 }")
    assert config_of("data.soft_tokens={ first = 10 }", "verifiers.math={ math = 1.0, length = 0.2 }")
