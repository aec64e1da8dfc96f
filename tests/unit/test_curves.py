"""A run's curves, gathered from a real ledger and drawn."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import closed_group, new_ledger
from PIL import Image

from rl.evaluation.evaluate import Sample, write
from rl.ledger import Ledger
from rl.reports import curves, series

STATS = {"entropy": 1.5, "grad_norm": 0.25, "lag_by_token": {"0": 4, "2": 2}}
SHARE = {"pass@1": 0.5, "low": 0.4, "high": 0.6, "tasks": 90}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    yield from new_ledger(tmp_path)


def take(ledger: Ledger, steps: int, **rewards: float | None) -> None:
    for _ in range(steps):
        group = closed_group(ledger, 1.0, -1.0)
        keys = [member.episode.key for member in group.members]
        ledger.commit(ledger.step + 1, keys, STATS | {"reward": rewards})
        ledger.publish(ledger.step)


def sample(number: int, *, correct: bool | None) -> Sample:
    return Sample(f"t{number}", "math", 1, 0, "scored", 1.0, correct, 1, 5, "", ())


def test_a_run_that_has_done_nothing_yet_has_empty_curves_and_a_picture(ledger: Ledger, tmp_path: Path) -> None:
    found = series.gather(tmp_path)
    assert (found.run, found.steps, found.reward, found.held_out) == ("run-1", 0, {}, {})
    assert curves.svg(curves.figure(found)).startswith("<svg ")


def test_the_numbers_are_the_ledgers(ledger: Ledger, tmp_path: Path) -> None:
    take(ledger, 1, math=0.5)
    take(ledger, 2, math=None, code=-0.25)
    found = series.gather(tmp_path)
    assert found.steps == 3
    assert found.reward == {"math": ((1, 0.5),), "code": ((2, -0.25), (3, -0.25))}
    assert found.entropy == ((1, 1.5), (2, 1.5), (3, 1.5))
    assert found.lag == {0: 12, 2: 6}
    assert [step for step, speed in found.tokens_per_second if speed > 0] == [2, 3]


def test_speed_says_nothing_of_the_time_between_a_fall_and_the_next_step(ledger: Ledger, tmp_path: Path) -> None:
    take(ledger, 2, math=0.5)
    ledger.rollback(1)
    ledger.publish(1)
    take(ledger, 2, math=0.5)
    assert [step for step, _ in series.gather(tmp_path).tokens_per_second] == [3]


def test_held_out_skill_comes_from_the_report_or_else_from_the_evaluations(ledger: Ledger, tmp_path: Path) -> None:
    write([sample(0, correct=True), sample(1, correct=False), sample(2, correct=None)], tmp_path / "eval/before.jsonl")
    (tmp_path / "eval/after.jsonl").write_text('{"task_id": "half a li')
    found = series.held_out(tmp_path)
    assert found.keys() == {"math"} and found["math"].keys() == {"before"}
    share = found["math"]["before"]
    assert share.value == 0.5 and 0.0 < share.low < 0.5 < share.high < 1.0
    (tmp_path / "report.json").write_text(json.dumps({"eval": {"after": {"math": SHARE, "seconds": 3}}}))
    assert series.held_out(tmp_path)["math"] == {"before": share, "after": series.Interval(0.5, 0.4, 0.6)}


def test_the_png_is_sharp_and_twice_a_thousand_pixels_wide(ledger: Ledger, tmp_path: Path) -> None:
    take(ledger, 30, math=0.5, code=0.1)
    path = tmp_path / "curves.png"
    curves.write_png(curves.figure(series.gather(tmp_path)), path)
    with Image.open(path) as image:
        assert image.width == 2000
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 50


@pytest.mark.parametrize("narrow", [False, True])
def test_the_svg_stands_alone_and_has_axes_with_units(ledger: Ledger, tmp_path: Path, narrow: bool) -> None:
    take(ledger, 12, math=0.5)
    report = {"eval": {"before": {"math": SHARE}, "after": {"math": SHARE}}}
    whole = curves.figure(series.gather(tmp_path, report), narrow=narrow)
    assert all(axes.get_xlabel() or axes.get_xticklabels() for axes in whole.axes)
    assert all(axes.get_ylabel() and axes.get_title(loc="left") for axes in whole.axes)
    text = curves.svg(whole)
    assert ElementTree.fromstring(text).tag.endswith("svg")
    outside = [link for link in re.findall(r'(?:href|src)="([^"]*)"', text) if not link.startswith("#")]
    assert not outside and "<script" not in text and "url(http" not in text


def test_names_of_domains_are_data_and_no_markup(ledger: Ledger, tmp_path: Path) -> None:
    names = ["_hidden", "$\\frac{1}{", "<script>alert(1)</script>", "\x1b[31m", "漢字 \u202e", "n" * 200, ""]
    take(ledger, 12, **dict.fromkeys(names, 0.5))
    report = {"eval": {"after": dict.fromkeys(names, SHARE)}}
    text = curves.svg(curves.figure(series.gather(tmp_path, report)))
    ElementTree.fromstring(text)
    assert "<script" not in text and "\x1b" not in text


def test_more_domains_than_colours(ledger: Ledger, tmp_path: Path) -> None:
    rewards = {f"d{number}": number / 20 for number in range(20)}
    take(ledger, 2, **rewards)
    lines = curves.figure(series.gather(tmp_path)).axes[0].lines
    assert {str(line.get_label()): list(line.get_ydata()) for line in lines} == {
        domain: [reward, reward] for domain, reward in rewards.items()
    }
    assert len({line.get_color() for line in lines}) == 8, "then they come again"


def test_a_domain_keeps_its_colour_whichever_others_are_there(ledger: Ledger, tmp_path: Path) -> None:
    take(ledger, 2, trace=0.1)
    alone = curves.figure(series.gather(tmp_path)).axes[0].lines[-1]
    take(ledger, 1, math=0.1, trace=0.1, chess=0.1)
    lines = {line.get_label(): line for line in curves.figure(series.gather(tmp_path)).axes[0].lines}
    assert lines["trace"].get_color() == alone.get_color()
    assert len({line.get_color() for line in lines.values()}) == 3
