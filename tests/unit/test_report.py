"""The report of a small run that went through a real ledger."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import closed_group, new_ledger

from rl.driver.inbox import Batch
from rl.learner.exactness import Gap
from rl.ledger import DropReason, Ledger
from rl.reports.report import batch_stats, build, in_words, peak_rss_bytes, spent, step_line

LEARNED = {"entropy": 5.5, "kl_k3": 0.01, "clip_fraction": 0.0, "grad_norm": 0.25}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    yield from new_ledger(tmp_path)


@pytest.fixture
def report(ledger: Ledger) -> dict[str, Any]:
    """Two steps, one group that taught nothing, one retry, one fault."""
    began = time.time()
    for rewards in ((1.0, -1.0), (1.0, 0.0)):
        group = closed_group(ledger, *rewards)
        stats = LEARNED | batch_stats(Batch((group,), ()), ledger.version)
        ledger.commit(ledger.step + 1, [member.episode.key for member in group.members], stats)
        ledger.publish(ledger.step)
    useless = closed_group(ledger, 1.0, 1.0)
    ledger.drop([member.episode.key for member in useless.members], DropReason.ZERO_ADVANTAGE)
    ledger.fault("worker-0", "EngineError", "vLLM's engine process died")
    ledger.finish()
    gap = Gap(2e-6, 40, {0: 2e-6, 1: 1e-6})
    seconds = {"startup": 3.0, "training": 2.0}
    return build(ledger.path, began, seconds, {"learner": {"forward": 0.5}}, gap, "bubblewrap works.", ())


def test_what_was_spent_between_two_looks() -> None:
    before = {"driver": {"a": 1.0}, "worker-0": {"sampling": 5.0, "tool": 1.0}, "worker-1": {"sampling": 5.0}}
    after = {"driver": {"a": 1.5, "b": 2.0}, "worker-0": {"sampling": 2.0, "tool": 3.0}, "worker-1": {"sampling": 7.0}}
    assert spent(after, before) == {
        "driver": {"a": 0.5, "b": 2.0},
        "worker-0": {"sampling": 2.0, "tool": 3.0},  # another process by now
        "worker-1": {"sampling": 2.0},
    }


def test_the_stats_of_a_batch(ledger: Ledger) -> None:
    group = closed_group(ledger, 1.0, -0.5)
    stats = batch_stats(Batch((group,), ()), newest=2)
    assert stats == {
        "reward": {"math": 0.25},
        "correct": {"math": 0.5},
        "parts": {"math": 0.25},
        "episodes": 2,
        "sampled_tokens": 6,
        "lag_max": 2,
        "lag_by_token": {"2": 6},
    }


def test_a_step_in_one_line(ledger: Ledger) -> None:
    stats = LEARNED | batch_stats(Batch((closed_group(ledger, 1.0, -0.5),), ()), newest=2)
    line = step_line(3, 5, stats, 1234.5, {DropReason.STALE: 4})
    assert "\n" not in line
    for words in (
        "step 3/5",
        "math +0.25",
        "2 episodes",
        "1,234 tokens/s",
        "lag ≤ 2",
        "entropy 5.50",
        "|g| 0.25",
        "stale 4",
    ):
        assert words in line


def test_the_report_in_numbers(report: dict[str, Any]) -> None:
    assert (report["run"], report["steps"], report["version"]) == ("run-1", 2, 2)
    assert report["ledger"] == {"balanced": True, "dispatched": 6, "trained": 4, "pending": 0}
    assert set(report["dropped"]) == {reason.value for reason in DropReason}, "zeros are there too"
    assert {reason: count for reason, count in report["dropped"].items() if count} == {"zero_advantage": 2}
    assert (report["verdicts"], report["correct"]) == ({"scored": 6}, {"math": 4})
    assert report["multi_version_fraction"] == 0
    assert report["lag"] == {"0": 4}
    assert report["logprob_gap"] == {"max": 2e-6, "tokens": 40, "versions": 2, "by_version": {"0": 2e-6, "1": 1e-6}}
    assert report["throughput"] == {"sampled_tokens_per_s": 9.0, "trained_tokens_per_s": 6.0}
    assert [one["step"] for one in report["reward"]] == [1, 2]
    assert report["time"] == {"learner": {"forward": 0.5}}
    assert report["faults"] == ["worker-0: vLLM's engine process died"]
    assert report["peak_rss_bytes"] > 1 << 20
    assert json.loads(json.dumps(report)) == report


def test_the_report_in_words(report: dict[str, Any]) -> None:
    words = in_words(report)
    for sentence in (
        "2 optimiser steps in 2 s of training.",
        "reward math: +0.000 at step 1, +0.500 at step 2",
        "Answers that were right, of 6: 4 in math.",
        "Episodes: 6 dispatched = 4 trained + 2 dropped + 0 pending; the ledger adds up.",
        "Dropped: zero_advantage 2.",
        "0% of the trained episodes",
        "differ by at most 2.0e-06 nats a token (40 tokens of 2 versions)",
        "9 tokens/s sampled, 6 trained",
        "bubblewrap works.",
    ):
        assert sentence in words


def test_bad_news_is_told(report: dict[str, Any]) -> None:
    report["ledger"]["balanced"] = False
    report["correct"], report["logprob_gap"] = {}, None
    words = in_words(report)
    assert "THE LEDGER DOES NOT ADD UP" in words
    assert "Answers that were right, of 6: none." in words
    assert "nats" not in words


def test_a_report_without_gap(ledger: Ledger) -> None:
    group = closed_group(ledger, 1.0, -1.0)
    ledger.commit(1, [m.episode.key for m in group.members], LEARNED | batch_stats(Batch((group,), ()), 0))
    found = build(ledger.path, time.time() + 1000, {"startup": 1, "training": 1}, {}, None, "", ())
    assert found["logprob_gap"] is None
    assert found["throughput"]["sampled_tokens_per_s"] == 0, "what an earlier process sampled is not of this one"


def test_memory_of_actors_is_counted_and_of_the_dead_is_not() -> None:
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    dead = subprocess.Popen(["true"])
    dead.wait()
    alone = peak_rss_bytes([dead.pid])
    assert alone > len(block)
    assert peak_rss_bytes([os.getppid()]) > alone
