"""What travels to a cluster, read back as the job reads it."""

import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from rl.config import load
from rl.jobs import job_for


@pytest.mark.parametrize("name", ["nano", "42", "1.5", "2026-01-31", "true"])
def test_the_job_is_the_run_of_that_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where TOML would take the name for a number, a date or a truth."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "c.toml"
    file.write_text(f'[run]\nid = "{name}"\n[model]\npath = "m"\n[[data.sources]]\npath = "t"\n')
    job = job_for(load(file), file, ["run.steps=7"])
    words = shlex.split(job.entrypoint)
    assert words[:5] == ["python", "-m", "rl.cli", "train", "c.toml"]
    found = load(file, [value for flag, value in pairwise(words) if flag == "--set"])
    assert (found.run.id, found.run.steps, found.run.directory) == (name, 7, tmp_path / "runs")
    assert (job.name, job.directory) == (name, tmp_path / "runs" / name)


@pytest.mark.parametrize(("given", "found"), [("models", "runs/models"), ("/elsewhere", "/elsewhere")])
def test_its_warm_start_lies_beside_its_runs(
    given: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job's own directory goes with the job."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "c.toml"
    file.write_text(
        f'[model.init]\nhidden_size = 32\n[[data.generated]]\ngenerator = "math"\n[warm_start]\ndirectory = "{given}"\n'
    )
    words = shlex.split(job_for(load(file), file, []).entrypoint)
    warm_start = load(file, [value for flag, value in pairwise(words) if flag == "--set"]).warm_start
    assert warm_start is not None and warm_start.directory == tmp_path / found
