"""The warm start of a configuration: which demonstrations it has, and what is said of one that cannot be made."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from fakes import TINY

from rl.cli import main
from rl.sft.stage import SftError
from rl.sft.warm_start import Demonstrations
from rl.tasks.generated import GeneratedSource
from verifiers.task import Message

SOURCES = (
    GeneratedSource(generator="math"),
    GeneratedSource(generator="math", difficulty=2),
    GeneratedSource(generator="code"),
)


def config(directory: Path, text: str) -> Path:
    shape = "\n".join(f"{key} = {value}" for key, value in TINY.items())
    path = directory / "c.toml"
    path.write_text(
        f'[model.init]\n{shape}\n[[data.generated]]\ngenerator = "math"\nlimits = {{ tokens = 256 }}\n'
        f"[rollout.engine]\ncontext = 256\n{text}"
    )
    return path


def code_of(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_domains_and_their_sources_take_turns() -> None:
    found = Demonstrations(SOURCES, {"math": 3}, {})
    expected = [
        *(("math", 0, 0), ("math", 1, 0), ("math", 0, 1), ("code", 2, 0)),
        *(("math", 1, 1), ("math", 0, 2), ("math", 1, 2), ("code", 2, 1)),
    ]
    for index, (_, source, number) in enumerate(expected):
        assert found(index) == SOURCES[source].demonstration(number, 0.0)
        assert found(index) == found(index)


def test_mistakes_are_made_where_they_are_asked_for() -> None:
    right, wrong = (Demonstrations(SOURCES, {}, mistakes) for mistakes in ({}, {"math": 0.9}))
    differ = Counter(index % 2 for index in range(40) if right(index) != wrong(index))
    assert differ[0] > 10, "math"
    assert differ[1] == 0, "code"


def test_whatever_changes_a_demonstration_changes_the_identity() -> None:
    first = Demonstrations(SOURCES, {}, {}).identity()
    assert Demonstrations(SOURCES, {}, {}).identity() == first
    assert json.loads(json.dumps(first)) == first
    others = [
        Demonstrations(SOURCES[1:], {}, {}),
        Demonstrations(SOURCES, {"code": 2}, {}),
        Demonstrations(SOURCES, {}, {"code": 0.1}),
    ]
    assert all(other.identity() != first for other in others)


@pytest.mark.parametrize(
    ("weights", "mistakes", "words"),
    [
        ({"maths": 1}, {}, "warm_start.weights: no generator makes the domain 'maths'; there are code, math"),
        ({}, {"repair": 0.1}, "warm_start.mistakes: no generator makes the domain 'repair'"),
        ({"code": 0, "math": 0}, {}, "all of them are 0"),
    ],
)
def test_a_domain_without_demonstrations(weights: dict[str, int], mistakes: dict[str, float], words: str) -> None:
    with pytest.raises(SftError, match=words):
        Demonstrations(SOURCES, weights, mistakes)


def test_a_weight_of_zero_leaves_a_domain_out() -> None:
    found = Demonstrations(SOURCES, {"math": 0}, {})
    assert [found(index) for index in range(3)] == [SOURCES[2].demonstration(index, 0.0) for index in range(3)]
    assert all(isinstance(message, Message) for message in found(0))


@pytest.mark.slow
def test_a_configurations_warm_start_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(
        tmp_path,
        f'[warm_start]\ndirectory = "{tmp_path}/models"\n[warm_start.sft]\ntokens = 2000\nthreads = 1\n',
    )
    assert code_of("sft", path) == 0
    (made,) = (tmp_path / "models").iterdir()
    assert f"{made}: " in capsys.readouterr().out
    assert code_of("sft", path) == 0
    assert f"the warm start is there already: {made}" in capsys.readouterr().out
    assert code_of("sft", path, "--out", tmp_path / "mine", "--set", "warm_start.sft.tokens=500") == 0
    assert json.loads((tmp_path / "mine/sft.json").read_text())["config"]["tokens"] == 500
    assert len(os.listdir(tmp_path / "models")) == 1


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("", [], "the configuration has no [warm_start]"),
        ("[warm_start]\nmistakes = { code = 0.1 }\n", [], "no generator makes the domain 'code'"),
        ("[warm_start]\n", ["--model", "m"], "sft takes a configuration, or --model and --data, not both"),
    ],
)
def test_bad_input_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, more: list[str], words: str
) -> None:
    assert code_of("sft", config(tmp_path, text), *more) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["c.toml"]
