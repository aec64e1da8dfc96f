"""A run's curves as numbers, from its ledger and its evaluations. What a run has not got is empty."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rl.evaluation import evaluate
from rl.ledger import Reader, Step

Points = tuple[tuple[int, float], ...]
"""(step, value), by step."""

EVALUATIONS = ("before", "after")
USUAL = ("math", "code", "trace", "repair", "swe")
"""Domains that come first wherever domains stand in a row."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A share and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curves:
    """What `rl.reports.curves` draws."""

    run: str
    steps: int
    """The last step."""
    reward: Mapping[str, Points]
    """Domain -> mean reward by step."""
    entropy: Points
    """Of the policy, in nats a token."""
    grad_norm: Points
    """Norm of the gradient by step, before clipping."""
    tokens_per_second: Points
    """Trained tokens by wall time between two steps; nothing where the learner fell back in between."""
    lag: Mapping[int, int]
    """Versions behind -> trained tokens."""
    held_out: Mapping[str, Mapping[str, Interval]]
    """Domain -> `before`, `after` -> pass@1."""


def gather(directory: Path, report: Mapping[str, Any] | None = None) -> Curves:
    """The curves of the run in `directory`. Without `report`, its own is taken if it is there. Raises LedgerError."""
    with Reader(directory) as reader:
        steps, run = reader.steps(), reader.run_id
    rewards = {step.step: mapping(step.stats.get("reward")) for step in steps}
    domains = in_order({domain for one in rewards.values() for domain in one})
    return Curves(
        run,
        steps[-1].step if steps else 0,
        {domain: _points((step, one.get(domain)) for step, one in rewards.items()) for domain in domains},
        _points((step.step, step.stats.get("entropy")) for step in steps),
        _points((step.step, step.stats.get("grad_norm")) for step in steps),
        _points((step.step, step.sampled_tokens / seconds) for step, seconds in spans(steps) if seconds > 0),
        lags(steps),
        held_out(directory, report),
    )


def held_out(directory: Path, report: Mapping[str, Any] | None = None) -> dict[str, dict[str, Interval]]:
    """Domain -> `before`, `after` -> pass@1, from the report, or else from the evaluations' own files."""
    report = read_object(directory / "report.json") if report is None else report
    found: dict[str, dict[str, Interval]] = {}
    for when in EVALUATIONS:
        summary = mapping(mapping(report.get("eval")).get(when))
        shares = _summarised(summary) or _sampled(directory / "eval" / f"{when}.jsonl")
        for domain, share in shares.items():
            found.setdefault(domain, {})[when] = share
    return {domain: found[domain] for domain in in_order(found)}


def read_object(path: Path) -> Mapping[str, Any]:
    """A run's report.json or config.json; empty while there is none that can be read."""
    with suppress(OSError, ValueError):
        return mapping(json.loads(path.read_text(encoding="utf-8")))
    return {}


def in_order(domains: Iterable[str]) -> list[str]:
    """The usual ones first, then the others by name."""
    return sorted(domains, key=lambda domain: (USUAL.index(domain) if domain in USUAL else len(USUAL), domain))


def _summarised(summary: Mapping[str, Any]) -> dict[str, Interval]:
    return {
        domain: Interval(
            float(one["pass@1"]), float(one.get("low", one["pass@1"])), float(one.get("high", one["pass@1"]))
        )
        for domain, one in summary.items()
        if isinstance(one, Mapping) and "pass@1" in one
    }


def _sampled(path: Path) -> dict[str, Interval]:
    """From an evaluation's own file; empty if there is none, or while it is being written."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return _summarised(evaluate.summarise(evaluate.read(path)))
    return {}


def spans(steps: Sequence[Step]) -> Iterator[tuple[Step, float]]:
    """Every step with the seconds since the one before; none of the first, or where the learner fell back between."""
    for before, after in pairwise(steps):
        if after.lineage == before.lineage:
            yield after, after.at - before.at


def lags(steps: Iterable[Step]) -> dict[int, int]:
    """Versions behind -> trained tokens."""
    found: Counter[int] = Counter()
    for step in steps:
        for lag, tokens in mapping(step.stats.get("lag_by_token")).items():
            found[int(lag)] += int(tokens)
    return {lag: found[lag] for lag in sorted(found)}


def _points(values: Iterable[tuple[int, object]]) -> Points:
    """Without what is missing or not finite: the ledger stores that as null."""
    return tuple((step, float(one)) for step, one in values if isinstance(one, int | float) and math.isfinite(one))


def mapping(value: object) -> Mapping[str, Any]:
    """What a row or a report holds, which may be anything, where a mapping is expected; else an empty one."""
    return value if isinstance(value, Mapping) else {}
