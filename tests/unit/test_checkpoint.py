"""Checkpoints: whole or not there, and what is not whole is found."""

import os
import resource
from pathlib import Path

import pytest
import torch
from fakes import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl.config import AlgorithmConfig, LearnerConfig
from rl.learner.checkpoint import CheckpointError, load_optimiser, path_of, prune, read_step
from rl.learner.learner import Learner, LearnerSetup
from rl.learner.masters import Masters
from rl.learner.packing import row
from rollout_workers.trajectory import Completion, Context, Trajectory

ROW = row(Trajectory((Context((1, 2)), Completion((3, 4), (-5.0, -5.0), 0))), 1.0)


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    path = tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    made = Learner(LearnerSetup(str(path), False, "float32", 1.0, LearnerConfig(), AlgorithmConfig()))
    made.step([ROW])
    return made


@pytest.fixture
def saved(learner: Learner, tmp_path: Path) -> Path:
    path = path_of(tmp_path / "checkpoints", 4)
    learner.save(str(path), 4)
    return path


def test_a_checkpoint_is_a_hugging_face_directory(saved: Path) -> None:
    assert read_step(saved) == 4
    AutoModelForCausalLM.from_pretrained(saved)
    assert AutoTokenizer.from_pretrained(saved).chat_template
    assert os.listdir(saved.parent) == ["step-00000004"]
    assert [path.name for path in saved.glob("*.safetensors")] == ["model.safetensors"], "engines load all of them"
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja", ".txt"}, "nothing in it is pickled"


def test_saving_over_an_existing_one_replaces_it(learner: Learner, saved: Path) -> None:
    (saved / "left over").touch()
    learner.save(str(saved), 5)
    assert read_step(saved) == 5
    assert not (saved / "left over").exists()
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "trainer/optimizer.safetensors", "trainer/state.json"),
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_found(saved: Path, name: str, share: float) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=f"{saved} is not whole"):
        read_step(saved)


def test_a_missing_file_is_found(saved: Path) -> None:
    for name in ("model.safetensors", "trainer/optimizer.safetensors", "trainer/state.json", "config.json"):
        (saved / name).rename(saved.parent / "away")
        with pytest.raises(CheckpointError, match=f"{saved} is not whole"):
            read_step(saved)
        (saved.parent / "away").rename(saved / name)


def test_a_state_that_is_none_is_found(saved: Path) -> None:
    for content in ("{}", '{"step": "x"}', "[]", "3", '{"step": null}', '{"step": []}'):
        (saved / "trainer/state.json").write_text(content)
        with pytest.raises(CheckpointError, match="is not whole"):
            read_step(saved)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not whole"):
        read_step(tmp_path / "nothing")


def test_an_optimisers_state_that_cannot_be_read_is_named(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    optimiser = torch.optim.AdamW(model.parameters())
    (saved / "trainer/optimizer.safetensors").write_bytes(b"\0" * 8)
    with pytest.raises(CheckpointError, match="the optimiser's state in"):
        load_optimiser(saved, Masters(model, torch.float32), optimiser)


def test_a_failed_save_leaves_nothing_half_written(learner: Learner, tmp_path: Path) -> None:
    """A file stands where the checkpoint should go, or where its folder should."""
    (tmp_path / "checkpoints").mkdir()
    occupied = tmp_path / "checkpoints" / "step-00000001"
    occupied.write_text("mine")
    for path in (occupied, occupied / "step-00000002"):
        with pytest.raises(OSError, match="step-00000001"):
            learner.save(str(path), 1)
        assert os.listdir(tmp_path / "checkpoints") == ["step-00000001"]
        assert occupied.read_text() == "mine"


def test_a_full_disk_leaves_the_checkpoint_before(learner: Learner, saved: Path) -> None:
    none = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, none[1]))
    try:
        with pytest.raises(OSError, match=r"step-00000005 was not written: .* I/O error"):
            learner.save(str(path_of(saved.parent, 5)), 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, none)
    assert os.listdir(saved.parent) == [saved.name]
    assert read_step(saved) == 4


def test_what_a_killed_save_left_is_no_obstacle(learner: Learner, tmp_path: Path) -> None:
    left = tmp_path / ".step-00000003.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    learner.save(str(path_of(tmp_path, 3)), 3)
    assert os.listdir(tmp_path) == ["step-00000003"]
    assert read_step(path_of(tmp_path, 3)) == 3


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (2, 9, 10, 100):
        path_of(tmp_path, step).mkdir()
    (tmp_path / "notes").mkdir()
    prune(tmp_path, 2, 100)
    assert sorted(os.listdir(tmp_path)) == ["notes", "step-00000010", "step-00000100"]
    prune(tmp_path, 5, 100)
    assert len(os.listdir(tmp_path)) == 3


def test_pruning_removes_what_a_fall_back_abandoned_first(tmp_path: Path) -> None:
    for step in (1, 2, 48, 49):
        path_of(tmp_path, step).mkdir()
    prune(tmp_path, 1, 2)
    assert os.listdir(tmp_path) == ["step-00000002"]
