"""The main job with its sandboxes in containers: five steps, code and repair, nothing left behind."""

import asyncio
from pathlib import Path

import pytest
from launch import cwm_rl, report_of

from rl.ledger.audit import audit
from rollout_workers.sandbox import docker

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]

SETTINGS = (
    *("run.steps=5", "run.id=contained", "warm_start.sft.tokens=30000", "eval.tasks=4", "algorithm.token_budget=1500"),
    *("algorithm.group_size=4", "rollout.slots=16", "rollout.sandbox.warm=8"),
    "data.mixture=[{ from_step = 0, weights = { code = 1, repair = 1 } }]",
    # Seconds of warm start teach nothing, and then nothing but a dense second reward tells the episodes apart.
    "verifiers={ code = { code = 1.0, printable = 0.5 }, repair = { repair = 1.0, printable = 0.5 } }",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first run leaves its warm start for the second."""
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(("name", "runtime"), [("docker", None), ("gvisor", docker.GVISOR)])
async def test_five_steps_in_containers(tmp_path: Path, models: Path, name: str, runtime: str | None) -> None:
    probe, backend = await docker.probe(runtime=runtime)
    if backend is None:
        pytest.skip(probe.why)
    settings = (
        *SETTINGS,
        f"rollout.sandbox.backend={name}",
        f"run.directory={tmp_path}",
        f"warm_start.directory={models}",
    )
    arguments = [part for setting in settings for part in ("--set", setting)]

    def train() -> tuple[int, str]:
        with cwm_rl(tmp_path / "log", "train", "deploy/configs/nano.toml", *arguments) as command:
            return command.finish(), command.output

    code, output = await asyncio.to_thread(train)
    assert code == 0, output
    report = report_of(tmp_path / "contained")
    assert report["steps"] == 5
    assert f"runtime {runtime or 'of its own choice'}" in report["sandbox"]
    assert audit(tmp_path / "contained").ok
    assert {domain for step in report["reward"] for domain in step["reward"]} == {"code", "repair"}
    assert backend.client.containers(all=True, filters={"label": "cwm-rl.run=contained"}) == []
