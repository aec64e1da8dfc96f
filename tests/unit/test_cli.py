"""`cwm-rl` from outside: bad input gets one sentence, exit code 2 and no traceback."""

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from fakes import TINY, closed_group, tiny_model
from plain_sandbox import PlainSandboxes

from rl import images
from rl.cli import main
from rl.config import load
from rl.driver.inbox import Batch
from rl.ledger import Ledger
from rl.prepare import create, load_tasks, stored_config
from rl.reports.closing import finished
from rl.reports.report import batch_stats, build
from rollout_workers.sandbox import select, selftest
from verifiers.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "deploy/configs").glob("*.toml"))
WANT_DATA = [path for path in CONFIGS if "data.dir=PATH" in path.read_text()]
TASK = {"id": "a", "domain": "math", "prompt": "What is 7 + 5?", "answer": "12"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that could run: one task, a model from nothing, everything below `tmp_path`."""
    (tmp_path / "tasks.jsonl").write_text(json.dumps(TASK) + "\n")
    shape = "\n".join(f"{key} = {value}" for key, value in TINY.items())
    path = tmp_path / "c.toml"
    path.write_text(
        f'[run]\ndirectory = "{tmp_path}/runs"\nid = "one"\n[model.init]\n{shape}\n'
        f'[data]\ndir = "{tmp_path}"\n[[data.sources]]\npath = "tasks.jsonl"\nlimits = {{ tokens = 256 }}\n'
        "[rollout.engine]\ncontext = 256\n"
    )
    return path


def exits(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(one) for one in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence."""
    assert exits(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert err.startswith("cwm-rl: ")
    assert "Traceback" not in out + err
    return err


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in WANT_DATA], ids=lambda path: path.name)
def test_a_dry_run_shows_the_whole_configuration_and_starts_nothing(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    assert exits("train", path, "--dry-run", "--set", "run.steps=7", "--set", f"run.directory={tmp_path}") == 0
    shown, words = capsys.readouterr()
    resolved = json.loads(shown)
    assert resolved["run"]["steps"] == 7
    assert resolved["algorithm"]["clip_high"] == 0.25, "defaults are shown too"
    for line in ("cluster", "model", "workers", "learner", "sandbox", "tasks", "steps"):
        assert f"\n{line} " in f"\n{words}"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", WANT_DATA, ids=lambda path: path.name)
def test_a_dry_run_refuses_what_a_run_would(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "there is no such file" in refusal(capsys, "train", path, "--dry-run", "--set", f"data.dir={tmp_path}")


def test_a_dry_run_tells_what_scores(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "{ math = 1, length = { weight = 0.2, if_correct = true, options = { limit = 9, margin = 1 } } }"
    assert exits("train", config, "--dry-run", "--set", f"verifiers.math={recipe}") == 0
    assert "\nrewards    math: 1 math + 0.2 length if correct\n" in capsys.readouterr().err
    recipe = "{ math = 1, format = { gate = true, options = { needs = 'boxed' } } }"
    assert exits("train", config, "--dry-run", "--set", f"verifiers.math={recipe}") == 0
    assert "\nrewards    math: 1 math, format as a gate\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.stepps=3", "there is no key 'run.stepps': did you mean 'steps'?"),
        ("run.steps=many", "run.steps: input should be a valid integer"),
        ("run.steps", "--set takes a.b=value"),
        ("data.dir=/nowhere", "/nowhere/tasks.jsonl: there is no such file"),
        ("verifiers.math.maths=1", "no verifier is called 'maths': did you mean 'math'?"),
        ("verifiers.mathh.math=1", "[verifiers.mathh] is of no verifier that a task could name: did you mean 'math'?"),
        ("verifiers.math.math=-1", "verifiers.math.math.weight: input should be greater than 0, not -1"),
        ("data.sources.0.verifier=mathh", "no verifier is called 'mathh'"),
        ("data.sources.0.columns={ prompt = 'question' }", "tasks.jsonl, line 1, column 'question': missing"),
    ],
)
def test_a_bad_setting_is_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: str
) -> None:
    assert words in refusal(capsys, "train", config, "--set", override)
    assert not (tmp_path / "runs").exists(), "nothing is made for a run that cannot start"


def test_no_such_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no configuration at" in refusal(capsys, "train", tmp_path / "nothing.toml")


def test_a_broken_task_file_is_named_with_its_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks.jsonl").write_text(json.dumps(TASK) + "\n{broken\n")
    assert "tasks.jsonl, line 2: is not JSON" in refusal(capsys, "train", config)


def test_a_run_directory_that_exists(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "mine").touch()
    assert "exists: go on with `cwm-rl resume" in refusal(capsys, "train", config)
    assert os.listdir(tmp_path / "runs" / "one") == ["mine"]


def test_a_run_directory_that_cannot_be_made(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("a file")
    assert "cannot be made" in refusal(capsys, "train", config)


def test_a_model_directory_that_is_not_there(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = config.read_text()
    config.write_text(f'[model]\npath = "{tmp_path}/no-model"\n' + text[text.index("[data]") :])
    assert "there is no model at" in refusal(capsys, "train", config)


def test_an_unknown_environment_is_found_with_the_tasks(config: Path) -> None:
    with pytest.raises(UserError, match="environment"):
        load_tasks(load(config, ["data.sources.0.environment=cod"]))


def test_the_same_task_in_two_sources_is_found(config: Path) -> None:
    settings = load(config)
    twice = settings.data.model_copy(update={"sources": settings.data.sources * 2})
    with pytest.raises(UserError, match="stand in more than one of"):
        load_tasks(settings.model_copy(update={"data": twice}))
    math = "{generator='math',limits={tokens=99,prompt_tokens=50,reply_tokens=40}}"
    with pytest.raises(UserError, match="'math' of difficulty 1 twice with one seed"):
        load_tasks(load(config, ["data.sources=[]", f"data.generated=[{math},{math}]"]))


@pytest.mark.parametrize("command", ["resume", "audit"])
def test_no_such_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert str(tmp_path / "nothing") in refusal(capsys, command, tmp_path / "nothing")
    assert refusal(capsys, command, tmp_path)


def test_a_run_whose_configuration_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = tmp_path / "config.json"
    for content, words in [
        (b"", "is damaged: "),
        (b"{", "is damaged: "),
        (b'{"run": "\xff"}', "is damaged: "),
        (b"[]", ": input should be "),
        (b"{}", ": model: field required"),
        (b'{"run": {"steps": 0}}', ": run.steps: input should be greater than or equal to 1, not 0"),
    ]:
        stored.write_bytes(content)
        refused = refusal(capsys, "resume", tmp_path)
        assert str(stored) in refused
        assert words in refused


@pytest.mark.parametrize("command", ["status", "top", "track", "resume"])
def test_a_ledger_that_was_overwritten_is_a_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    ledger = run / "ledger.sqlite"
    with closing(sqlite3.connect(ledger)) as whole:
        (size,) = whole.execute("PRAGMA page_size").fetchone()
        pages = [page for (page,) in whole.execute("SELECT rootpage FROM sqlite_schema WHERE rootpage > 1")]
    with ledger.open("r+b") as file:  # the tables' pages, but not those that name them
        for page in pages:
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)
    further = {"track": ("--to", "tensorboard"), "top": ("--once",)}.get(command, ())
    assert str(ledger) in refusal(capsys, command, run, *further)


def test_the_status_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"no ledger at {tmp_path}" in refusal(capsys, "status", tmp_path)


def test_a_warm_starts_dtype_is_its_configurations(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--set model.dtype" in refusal(capsys, "sft", config, "--dtype", "bfloat16")


def test_a_resume_with_a_bad_setting(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("train", config, "--dry-run") == 0
    (tmp_path / "config.json").write_text(capsys.readouterr().out)
    assert "did you mean 'steps'?" in refusal(capsys, "resume", tmp_path, "--set", "run.stepps=9")


@pytest.fixture
def run(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was made and has taken no step; its configuration named its directories as seen from `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return create(load(config, ["data.dir=.", "run.directory=runs"]), str)


def test_a_run_that_is_finished_is_not_run_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger.open(run) as ledger:
        group = closed_group(ledger, 1.0, -1.0)
        stats = batch_stats(Batch((group,), ()), 0) | {
            "entropy": 1.0,
            "kl_k3": 0.0,
            "clip_fraction": 0.0,
            "grad_norm": 1.0,
        }
        ledger.commit(1, [member.episode.key for member in group.members], stats)
    seconds = {"startup": 1.0, "training": 61.0}
    report = json.dumps(build(run, 0.0, seconds, {}, None, "bubblewrap works.", ()))
    (run / "report.json").write_text(report)
    before = (run / "config.json").read_bytes()
    assert exits("resume", run, "--set", "run.steps=1") == 0
    said = capsys.readouterr().out
    assert "is finished: --set run.steps=2 or more goes on" in said
    assert "1 optimiser steps in 61 s" in said
    assert (run / "report.json").read_text() == report
    assert (run / "config.json").read_bytes() == before
    (run / "report.json").write_text(report[:20])
    assert finished(run, 1) is None  # a report that cannot be read is written again


def test_a_resume_remembers_what_was_set(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir("/")
    # No address: the run gets as far as its ledger, and Ray does not look for a cluster.
    assert "no Ray cluster at nowhere" in (
        refusal_of_a_run(capsys, "resume", run, "--set", "run.steps=9", "--set", "cluster.address=nowhere")
    )
    stored = stored_config(run)
    assert stored.run.steps == 9
    assert stored.data.dir == tmp_path
    assert stored.run.directory == tmp_path / "runs"


def refusal_of_a_run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Its sentence; how to go on stands before it."""
    assert exits(*arguments) == 2
    advice, sentence = capsys.readouterr().err.splitlines()
    assert advice.startswith("go on with: cwm-rl resume ")
    return sentence


def test_an_audit_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger.create(tmp_path, "run", {}).release()
    assert exits("audit", tmp_path) == 0
    assert capsys.readouterr().err == ""


def test_an_audit_of_what_is_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database " * 100)
    assert "ledger" in refusal(capsys, "audit", tmp_path)


def test_a_model_is_made_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [argument for key, value in TINY.items() for argument in ("--set", f"{key}={value}")]
    assert exits("init-model", tmp_path / "m", *sizes) == 0
    assert "parameters, sha256 " in capsys.readouterr().out
    assert (tmp_path / "m" / "config.json").is_file()


def test_a_shape_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting, words in [("hiden_size=64", "did you mean 'hidden_size'?"), ("layers=0", "layers: ")]:
        assert words in refusal(capsys, "init-model", tmp_path / "m", "--set", setting)
    assert os.listdir(tmp_path) == []


def test_a_model_where_something_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path} exists: choose another path" in refusal(capsys, "init-model", tmp_path)
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal(capsys, "init-model", tmp_path / "file" / "below")


def test_a_model_of_a_corpus_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing, binary = tmp_path / "nothing", tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for corpus, words in [(nothing, "No such file"), (tmp_path, "Is a directory"), (binary, "is not UTF-8")]:
        refused = refusal(capsys, "init-model", tmp_path / "m", "--corpus", corpus)
        assert str(corpus) in refused
        assert words in refused
    assert os.listdir(tmp_path) == ["binary"]


@pytest.mark.parametrize("setting", ["kv_heads=3", "heads=3"])
def test_a_model_of_an_impossible_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str) -> None:
    assert "head" in refusal(capsys, "init-model", tmp_path / "m", "--set", setting)


def test_a_job_without_a_cluster(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(config.parent)
    assert "no cluster to ask" in refusal(capsys, "submit", config)
    monkeypatch.chdir(ROOT)
    assert "lies outside" in refusal(capsys, "submit", config)


def test_a_tokenizer_that_does_not_fit_its_model(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(tmp_path / "model")
    stored = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(stored | {"vocab_size": 100}))
    text = config.read_text()
    config.write_text(
        f'[model]\npath = "{model}"\n' + text[: text.index("[model.init]")] + text[text.index("[data]") :]
    )
    assert exits("train", config) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "take the tokenizer that was saved with the model" in err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


GENERATED = """[model]
path = "x"
[[data.generated]]
generator = "math"
[[data.generated]]
generator = "trace"
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-n 0", "there is nothing to evaluate on: 0 held-out tasks a domain, 1 samples a task"),
        ("-n 3 -k 0", "3 held-out tasks a domain, 0 samples a task; both must be at least 1"),
        ("--greedy -k 2", "leave out one of --greedy and -k"),
        ("--tasks maht", "no generator makes the domain 'maht'; nearest first, there are math, "),
        ("--tasks math,swe", "no generator makes the domain 'swe'; nearest first, there are "),
        ("--tasks ,", "--tasks names no domain: give all, or some of math, code, trace, repair"),
        ("--difficulty 9", "--difficulty: difficulty: input should be less than or equal to 5, not 9"),
        ("--set rollout.slotz=1", "there is no key 'rollout.slotz': did you mean 'slots'?"),
        ("--set verifiers.math.maths=1", "data.generated, math: no verifier is called 'maths': did you mean 'math'?"),
        ("--out taken", "taken exists: choose another --out, or remove it"),
        ("--out taken/below", "taken is a file"),
        ("--config nothing.toml", "no configuration at nothing.toml"),
        ("--config c.toml", "there is no generator in c.toml, and only generators have held-out tasks"),
        ("--config g.toml --tasks code", "no generator in g.toml makes the domain 'code'; nearest first, there are "),
    ],
)
def test_an_evaluation_that_cannot_be(
    config: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    words: str,
) -> None:
    monkeypatch.chdir(config.parent)
    Path("taken").touch()
    Path("g.toml").write_text(GENERATED)
    before = sorted(os.listdir())
    assert words in refusal(capsys, "eval", model, *arguments.split())
    assert sorted(os.listdir()) == before


def spoilt(model: Path, kind: str) -> None:
    weights, stored = model / "model.safetensors", model / "config.json"
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "without":
        weights.unlink()
    elif kind == "tokenizer":
        stored.write_text(json.dumps(json.loads(stored.read_text()) | {"vocab_size": 100}))
    elif kind == "unconfigured":
        stored.unlink()
    else:
        shutil.rmtree(model)
        if kind == "file":
            model.touch()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut", "does not load: model.safetensors is damaged or cut"),
        ("without", "does not load: there are no weights in it"),
        ("tokenizer", "take the tokenizer that was saved with the model"),
        ("unconfigured", "it has no config.json"),
        ("file", "it is no directory"),
        ("nothing", "it is no directory"),
    ],
)
def test_an_evaluation_of_a_model_that_does_not_load(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "models" / "mine"
    shutil.copytree(model, mine)
    spoilt(mine, kind)
    for name in (mine, "models/mine"):
        refused = refusal(capsys, "eval", name)
        assert words in refused
        assert str(name) in refused or str(mine) in refused
    assert os.listdir() == ["models"]


def test_a_generator_whose_verifier_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("g.toml").write_text(GENERATED)
    said = refusal(capsys, "train", "g.toml", "--set", "verifiers.trace.trase=1")
    assert "data.generated, trace: no verifier is called 'trase': did you mean 'trace'?" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "nothing.toml"], 2, "no configuration at nothing.toml"),
        (["audit", "nothing"], 2, "nothing: name the directory of a run"),
        (["dance"], 2, "invalid choice: 'dance'"),
    ],
)
def test_from_the_shell(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "rl.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_selftest_fails_where_one_attempt_escapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def choose(*_: object, **__: object) -> tuple[PlainSandboxes, str]:
        return PlainSandboxes(), "no walls at all."

    async def held(_: object) -> str:
        return "it was held"

    monkeypatch.setattr(select, "choose", choose)
    attempts = (selftest.Attempt("other episodes", selftest.other_episodes), selftest.Attempt("nothing", held))
    monkeypatch.setattr(selftest, "ATTEMPTS", attempts)
    assert exits("sandbox", "selftest", "--json") == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["tried"], found["contained"]) == (2, 1)
    assert [one["contained"] for one in found["attempts"]] == [False, True]
    assert "no walls at all." in err
    monkeypatch.setattr(selftest, "ATTEMPTS", attempts[1:])
    assert exits("sandbox", "selftest") == 0
    assert "1 of 1 contained" in capsys.readouterr().out


@pytest.mark.parametrize("every", ["0", "-1", "nan", "inf"])
def test_a_reaper_that_never_rests_is_refused(every: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--every" in refusal(capsys, "sandbox", "reap", f"--every={every}")


def test_an_image_needs_an_engine(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    assert exits("image", "build", "--new") == 2
    assert "no container engine answers" in capfd.readouterr().err
    monkeypatch.setattr(images, "SCRIPT", tmp_path / "no.sh")
    assert "clone" in refusal(capfd, "image", "build")


@pytest.mark.parametrize("command", ["status", "stop"])
def test_a_mistyped_run_is_no_question_about_clusters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert f"there is no run in {tmp_path}/typo" in refusal(capsys, command, tmp_path / "typo")


def test_what_the_disk_refuses_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert exits("verifier", "new", "mine", "--directory", tmp_path / "file") == 1
    assert capsys.readouterr().err == f"cwm-rl: {tmp_path}/file/cwm_rl_mine: Not a directory\n"


@pytest.mark.parametrize(
    "words",
    [
        ("service", "--episodes", "0"),
        ("weights", "--updates", "0"),
        ("rollouts", "--rounds", "-1"),
        ("async", "--mean", "-1"),
        ("async", "--mean", "inf"),
        ("learner", "--steps", "x"),
    ],
)
def test_numbers_that_a_benchmark_cannot_have(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("bench", *words) == 2
    assert f"argument {words[1]}: invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--episodes", "1"), "1 episodes are no run"),
        (("--frozen", "-3"), "-3 of 200 clients cannot be frozen"),
        (("--frozen", "20", "--clients", "20"), "20 of 20 clients cannot be frozen"),
        (("--seconds", "0"), "in 0 s nothing is measured"),
    ],
)
def test_a_benchmark_of_the_service_that_cannot_be(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refusal(capsys, "bench", "service", *words)


@pytest.mark.parametrize("words", [("--shape", "8b"), ("--tokens", "1", "9"), ("--microbatch", "10")])
def test_a_benchmark_of_the_learner_that_cannot_be(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("bench", "learner", *words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_said_to_nobody_ends_no_run(tmp_path: Path) -> None:
    script = "from rl.console import say\nfor _ in range(3): say('lag \u2264 4')\nopen('done', 'w').close()"
    for command in (f"python -c {shlex.quote(script)} | true", f"python -c {shlex.quote(script)} > /dev/full"):
        (tmp_path / "done").unlink(missing_ok=True)
        paths = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        subprocess.run(["sh", "-c", command], cwd=tmp_path, env=os.environ | paths, check=False, timeout=60)
        assert (tmp_path / "done").exists(), command
