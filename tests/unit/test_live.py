"""What one sees of a run while it runs."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import new_ledger

from rl import progress
from rl.driver.live import Live
from rl.driver.waits import Waits
from rl.ledger import Ledger

STATS: dict[str, Any] = {"reward": {}, "episodes": 1, "lag_max": 0, "entropy": 1.0, "grad_norm": 1.0}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    yield from new_ledger(tmp_path)


def test_speed_counts_from_the_beginning_of_training(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = 0.0, list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    live = Live(5, ledger, Waits(), said.append)
    now = 300.0  # of start and evaluation
    live.training()
    now = 310.0
    live.step(1, STATS | {"sampled_tokens": 1000})
    assert " 100 tokens/s" in said[0]


async def test_a_stage_says_what_it_waits_for(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    waits, said = Waits(), list[str]()
    async with waits.named("the workers to start", 9), Live(5, ledger, waits, said.append).shown("start", 2, lambda: 0):
        await asyncio.sleep(0)
    assert said[0] == "start: 0%, waiting for the workers to start (0 s)"
