"""report.html: one file that needs nothing else, in which what a model wrote is only text."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fakes import closed_group, new_ledger

from rl.evaluation.reading import WorthReading
from rl.ledger import Ledger, LedgerError
from rl.reports.html import FILE, write
from verifiers.task import Message

ATTACK = "</pre><script>alert(1)</script><img src=x onerror=alert(1)> \x1b[31mred \u202eback\x00\ud800"
SHARE = {"pass@1": 0.25, "low": 0.2, "high": 0.31, "tasks": 200, "samples": 200}
BETTER = SHARE | {"pass@1": 0.75, "low": 0.7, "high": 0.8}
STEP = {"step": 1, "reward": {"math": 0.5}, "parts": {"math": 0.5}}
REPORT: dict[str, Any] = {
    "steps": 1,
    "seconds": {"startup": 1.0, "training": 61.5},
    "reward": [STEP],
    "ledger": {"balanced": True, "dispatched": 6, "trained": 4, "pending": 0},
    "dropped": {"stale": 2, "gibberish": 0},
    "verdicts": {"scored": 6},
    "correct": {"math": 3},
    "multi_version_fraction": 0.25,
    "logprob_gap": {"max": 1e-6, "tokens": 4000, "versions": 1, "by_version": {"3": 1e-6}},
    "throughput": {"sampled_tokens_per_s": 1234.5, "trained_tokens_per_s": 1000.0},
    "time": {"learner": {"forward": 2.5}},
    "faults": ["worker-0: died"],
    "sandbox": "bubblewrap works.",
    "peak_rss_bytes": 2**31,
    "eval": {"before": {"math": SHARE}, "after": {"math": BETTER}},
    "second_turn": {"before": 0.05, "after": 0.3, "gain": 0.25, "tasks": {"before": 90, "after": 60}},
    "controls": {"learning rate 0": {"before": {"math": SHARE}, "after": {"math": SHARE}}},
}


class Seen(HTMLParser):
    """Names of tags, attributes, and the text of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    yield from new_ledger(tmp_path)


@pytest.fixture
def run(ledger: Ledger, tmp_path: Path) -> Path:
    """The directory of a run of one step."""
    group = closed_group(ledger, 1.0, -1.0)
    ledger.commit(1, [member.episode.key for member in group.members], {"reward": {"math": 0.5}})
    return tmp_path


def written(run: Path, report: dict[str, Any], *worth_reading: WorthReading) -> str:
    assert write(run, report, worth_reading) == run / FILE
    return (run / FILE).read_text(encoding="utf-8")


def test_the_report_tells_it_in_words_a_picture_and_tables(run: Path) -> None:
    messages = (Message("user", "Write f."), Message("assistant", "def f(): ..."), Message("tool: bash", "1 failed"))
    page = written(run, REPORT, WorthReading("code/17", "solved at the second turn", messages, "all tests pass"))
    seen = Seen(page)
    assert "svg" in seen.tags
    for words in (
        "1 optimiser steps in 62 s",
        "0.250 (0.200 – 0.310)",
        "+0.500",
        "after, of 60 tasks",
        "learning rate 0",
        "+0.000",
        "stale",
        "1,234",
        "version 3",
        "learner: forward",
        "worker-0: died",
        "code/17",
        "solved at the second turn",
        "tool: bash",
        "all tests pass",
    ):
        assert words in seen.text, words
    assert "gibberish" not in seen.text


def test_it_needs_nothing_else_and_runs_nothing(run: Path) -> None:
    page = written(run, REPORT)
    seen = Seen(page)
    assert not seen.tags & {"script", "link", "img", "iframe", "object"}
    assert not {name for name in seen.attributes if name.startswith("on")}
    assert not [link for link in re.findall(r'(?:href|src)="([^"]*)"', page) if not link.startswith("#")]
    assert "default-src 'none'" in page


def test_what_a_model_wrote_is_only_text(run: Path) -> None:
    worth = WorthReading(ATTACK, ATTACK, (Message("assistant", ATTACK), Message(ATTACK, "x")), ATTACK)
    report = REPORT | {"faults": [ATTACK], "dropped": {ATTACK: 1}, "sandbox": ATTACK}
    page = written(run, report, worth)
    seen = Seen(page)
    assert not seen.tags & {"script", "img"}
    assert seen.text.count("<script>alert(1)</script>") == 9
    assert seen.text.count("\\x1b[31mred \\u202eback\\x00\\ud800") == 9
    assert not {one for one in page if not one.isprintable()} - {"\n", "\t"}


@pytest.mark.parametrize("missing", [*REPORT, "everything"])
def test_what_an_older_report_lacks_is_left_out(ledger: Ledger, tmp_path: Path, missing: str) -> None:
    assert ledger.step == 0
    report = {} if missing == "everything" else {name: value for name, value in REPORT.items() if name != missing}
    assert "Run run-1" in Seen(written(tmp_path, report | {"eval": {}})).text


def test_a_run_without_a_comparison_of_engine_and_learner(run: Path) -> None:
    assert "Engine against learner" not in written(run, REPORT | {"logprob_gap": None})


def test_no_ledger_no_report(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger"):
        write(tmp_path, REPORT, ())
    assert not list(tmp_path.iterdir())
