"""The main job, whole: what `make demo` starts, in small, looked at while it runs and after it."""

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from launch import Command, cwm_rl, gone, report_of

from rl.ledger import DropReason, Reader
from rl.ledger.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]

DOMAINS = ("code", "math", "repair", "trace")
# Seconds of warm start teach nothing, and then nothing but a dense second reward tells the episodes apart.
_RECIPES = ", ".join(f"{name} = {{ {name} = 1.0, printable = 0.5 }}" for name in DOMAINS)
SMALL = (
    *("run.steps=5", "warm_start.sft.tokens=30000", "eval.tasks=4", "algorithm.token_budget=3000"),
    *("algorithm.group_size=8", "rollout.slots=32"),
    f"verifiers={{ {_RECIPES} }}",
)


def _listening(command: Command) -> set[str]:
    """Addresses on which the run's processes accept connections."""
    pids = {process.pid for process in command.tree()}
    return {one.laddr.ip for one in psutil.net_connections("inet") if one.pid in pids and one.status == "LISTEN"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("runs")
    settings = (*SMALL, f"run.directory={directory}", "run.id=nano", f"warm_start.directory={directory / 'models'}")
    arguments = [part for setting in settings for part in ("--set", setting)]
    with cwm_rl(directory / "log", "train", "deploy/configs/nano.toml", *arguments) as command:
        command.wait_for("step 1/5")
        listening, processes = _listening(command), command.tree()
        code = command.finish()
    yield {
        "code": code,
        "directory": directory / "nano",
        "output": command.output,
        "listening": listening,
        "left": gone(processes),
    }


@pytest.fixture(scope="module")
def report(run: dict[str, Any]) -> dict[str, Any]:
    assert run["code"] == 0, run["output"]
    return report_of(run["directory"])


def test_takes_its_steps_and_tells(run: dict[str, Any], report: dict[str, Any]) -> None:
    assert report["steps"] == 5
    assert "Answers that were right" in run["output"]
    assert "Traceback" not in run["output"]


def test_evaluates_before_and_after(run: dict[str, Any], report: dict[str, Any]) -> None:
    for when in ("before", "after"):
        assert {domain: rates["tasks"] for domain, rates in report["eval"][when].items()} == dict.fromkeys(DOMAINS, 4)
        assert (run["directory"] / "eval" / f"{when}.jsonl").read_text().count("\n") == 16
    assert set(report["second_turn"]) == {"before", "after", "gain", "tasks"}
    assert {"warm_start", "startup", "training", "eval_before", "eval_after"} <= set(report["seconds"])


def test_leaves_a_picture_and_a_page(run: dict[str, Any], report: dict[str, Any]) -> None:
    assert (run["directory"] / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (run["directory"] / "report.html").read_text()
    assert "<svg" in page
    assert "<script" not in page


def test_the_ledger_adds_up(run: dict[str, Any], report: dict[str, Any]) -> None:
    assert report["ledger"]["balanced"]
    assert report["ledger"]["pending"] == 0
    assert set(report["dropped"]) == {reason.value for reason in DropReason}
    found = audit(run["directory"])
    assert found.ok, found.problems


def test_weights_entered_running_episodes(report: dict[str, Any]) -> None:
    assert report["multi_version_fraction"] > 0


def test_engine_and_learner_agree(report: dict[str, Any]) -> None:
    assert report["logprob_gap"]["versions"] >= 3
    assert report["logprob_gap"]["max"] <= 1e-4


def test_every_episode_that_was_sampled_has_a_verdict(report: dict[str, Any]) -> None:
    assert set(report["verdicts"]) == {"scored"}
    assert report["dropped"]["infra_error"] == report["dropped"]["verifier_error"] == 0


def test_time_and_memory_are_told(report: dict[str, Any]) -> None:
    assert set(report["time"]) == {"driver", "learner", "worker-0"}
    assert {"forward", "backward", "optimiser"} <= set(report["time"]["learner"])
    assert {"sampling", "grading", "swapping"} <= set(report["time"]["worker-0"])
    assert report["throughput"]["sampled_tokens_per_s"] > report["throughput"]["trained_tokens_per_s"] > 0
    assert report["peak_rss_bytes"] > 1 << 30


def test_nothing_listens_beyond_loopback(run: dict[str, Any]) -> None:
    addresses = {ipaddress.ip_address(address.removeprefix("::ffff:")) for address in run["listening"]}
    assert addresses
    assert all(address.is_loopback for address in addresses), run["listening"]


def test_nothing_is_left_behind(run: dict[str, Any]) -> None:
    assert run["left"] == []


def test_checkpoints_are_ordinary_model_directories(run: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with Reader(run["directory"]) as reader:
        step, path = reader.checkpoints()[0]
    assert step == 5
    config = AutoModelForCausalLM.from_pretrained(path).config
    assert config.model_type == "cwm"
    assert 256 < len(AutoTokenizer.from_pretrained(path)) <= config.vocab_size
    # vLLM loads every file of weights that it finds beside config.json.
    assert [file.name for file in Path(path).glob("*.safetensors")] == ["model.safetensors"]
