"""Runs that the service starts: what it lists, and nothing else."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import new_ledger
from starlette.testclient import TestClient

from rl.ledger import Ledger
from rl.service.app import create_app
from rl.service.auth import VARIABLES

CONFIG = '[model]\npath = "nowhere"\n[[data.sources]]\npath = "nowhere.jsonl"\n'
WARM = """
[model.init]
context = 256
[[data.generated]]
generator = "math"
limits = { tokens = 200, prompt_tokens = 90, reply_tokens = 80 }
[warm_start]
[rollout.engine]
context = 256
"""
HERE = {"Origin": "http://here:1"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    for name in ("runs", "configs/deeper"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "configs/small.toml").write_text(CONFIG)
    (tmp_path / "configs/deeper/hidden.toml").write_text(CONFIG)
    (tmp_path / "outside.toml").write_text(CONFIG)
    app = create_app(tmp_path / "runs", ["here:1"], configs=tmp_path / "configs")
    with TestClient(app, base_url="http://here:1", follow_redirects=False) as client:
        yield client


@pytest.fixture
def ledger(client: TestClient, tmp_path: Path) -> Iterator[Ledger]:
    (tmp_path / "runs/taken").mkdir()
    yield from new_ledger(tmp_path / "runs/taken")


def start(client: TestClient, **wanted: Any) -> tuple[int, str]:
    answer = client.post("/api/v1/runs", json=wanted, headers=HERE)
    return answer.status_code, str(answer.json().get("detail", ""))


def test_only_what_is_listed_can_be_started(client: TestClient) -> None:
    (only,) = client.get("/api/v1/configurations").json()["configurations"]
    assert only["name"] == "small.toml" and "run.steps" in only["overrides"]
    for name in ("../outside.toml", "deeper/hidden.toml", "hidden.toml", "/etc/passwd", "small.toml\0", ""):
        status, why = start(client, config=name)
        assert status == 422 and why, name


def test_overrides_are_numbers_of_listed_keys(client: TestClient) -> None:
    for key, value in {
        "run.directory": 1,
        "model.path": 1,
        "rollout.sandbox.backend": 1,
        "run.steps": "5",
        "run.seed": [1],
        "algorithm.max_lag": True,
    }.items():
        assert start(client, config="small.toml", overrides={key: value})[0] == 422, key
    status, why = start(client, config="small.toml", overrides={"run.steps": -1})
    assert status == 422 and "run.steps" in why
    infinite = '{"config": "small.toml", "overrides": {"learner.lr": 1e999}}'
    answer = client.post("/api/v1/runs", content=infinite, headers=HERE | {"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_a_runs_name_is_a_name_and_is_free(client: TestClient, ledger: Ledger) -> None:
    for name in ("../x", "a/b", "$(touch x)", "; ls", "a b", "-x", "", "x" * 65, "a\nb"):
        assert start(client, config="small.toml", run=name)[0] == 422, name
    status, why = start(client, config="small.toml", run="taken")
    assert status == 409 and "taken" in why


@pytest.mark.slow
def test_one_that_fails_before_it_begins_says_why(client: TestClient, tmp_path: Path) -> None:
    answer = client.post("/api/v1/runs", json={"config": "small.toml", "run": "try"}, headers=HERE)
    assert answer.status_code == 202 and answer.json() == {"run": "try", "url": "/runs/try"}
    deadline = time.monotonic() + 90
    while (told := client.get("/api/v1/launches").json()["launches"][0])["state"] == "starting":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert told["state"] == "failed" and "cwm-rl: " in told["said"] and "Traceback" not in told["said"]
    assert "Not begun yet" in client.get("/").text
    assert not list((tmp_path / "runs").iterdir())


def test_a_run_that_is_started_knows_no_token_and_writes_below_the_runs(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    told.write_text('#!/bin/sh\nenv\necho "$@"\n')
    told.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(told))
    for name in VARIABLES:
        monkeypatch.setenv(name, "a secret of the service")
    (tmp_path / "configs/warm.toml").write_text(WARM)
    assert start(client, config="warm.toml", run="try")[0] == 202
    deadline = time.monotonic() + 60
    while (one := client.get("/api/v1/launches").json()["launches"][0])["state"] == "starting":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "PYTHONUNBUFFERED=1" in one["said"] and "a secret" not in one["said"]
    assert f'warm_start.directory="{tmp_path}/runs/models"' in one["said"]


def test_what_does_not_run_cannot_be_stopped(client: TestClient, ledger: Ledger, tmp_path: Path) -> None:
    assert client.post("/api/v1/runs/nosuch/stop", headers=HERE).status_code == 404
    ledger.release()
    answer = client.post("/api/v1/runs/taken/stop", headers=HERE)
    assert answer.status_code == 409 and "nothing to stop" in answer.json()["detail"]
    assert client.post("/runs/taken/stop", headers=HERE).status_code == 409
    assert not (tmp_path / "runs/taken/stop.request").exists()


@pytest.mark.parametrize("steps", ["-5", "1e3", "0", "9" * 5000])
def test_the_form_takes_steps_or_says_why_not(client: TestClient, steps: str) -> None:
    answer = client.post("/runs", data={"config": "small.toml", "steps": steps}, headers=HERE)
    assert answer.status_code == 409 and "whole number" in answer.text


def test_the_form_on_the_page_starts_too(client: TestClient) -> None:
    assert "small.toml" in client.get("/").text
    refused = client.post("/runs", data={"config": "nosuch.toml"}, headers=HERE)
    assert refused.status_code == 409 and "nosuch.toml" in refused.text
