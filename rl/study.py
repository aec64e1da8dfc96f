"""`cwm-rl study-lag`: what old episodes cost, and what not waiting brings, by lag, correction and cache at a swap.

Seeds are the outer loop, so that a study that is ended early compares all of it on fewer of them.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl.config import Config, ConfigError, changed
from rl.ledger import Reader
from rl.ledger.schema import FILE
from rollout_workers.files import replacing

LAGS: Final = (0, 1, 2, 4, 8)
CORRECTIONS: Final = ("none", "decoupled")
CACHES: Final = ("keep", "recompute")
SEEDS: Final = (0, 1, 2)
_WINDOW: Final = 5
"""Steps of a running mean."""

Execute = Callable[[Config], tuple[Path, Mapping[str, Any]] | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """What the runs of one row have in common."""

    lag: int
    correction: str
    kv: str

    def settings(self, seed: int) -> list[str]:
        """Overrides of the configuration; the run is named by them."""
        return [
            f"algorithm.max_lag={self.lag}",
            f"algorithm.correction={self.correction}",
            f"rollout.engine.kv={self.kv}",
            f"run.seed={seed}",
            f"run.id=lag-{self.lag}-{self.correction}-{self.kv}-{seed}",
        ]


@dataclass(frozen=True, slots=True)
class Course:
    """One run: at each step the mean reward and the seconds since the first, and its evaluations."""

    rewards: Sequence[float]
    seconds: Sequence[float]
    before: float
    after: float
    stale: float
    """Share of the episodes that were dropped as too old."""


def run_study(
    config: Config,
    execute: Execute,
    *,
    lags: Sequence[int] = LAGS,
    corrections: Sequence[str] = CORRECTIONS,
    caches: Sequence[str] = CACHES,
    seeds: Sequence[int] = SEEDS,
) -> str | None:
    """Take every run that is not in the directory's `study-lag.json` yet; write table and picture beside it.

    Returns the table, or None where a run was interrupted: what is finished is kept. Raises ConfigError where nothing
    is evaluated, and where what is there was taken of another configuration.
    """
    if config.eval is None:
        raise ConfigError("the study compares evaluations, and the configuration has no [eval]: add one")
    folder = config.run.directory
    known, taken_of = folder / "study-lag.json", _digest(config)
    study: dict[str, Any] = json.loads(known.read_text()) if known.exists() else {"of": taken_of, "runs": {}}
    if study.get("of") != taken_of:
        raise ConfigError(f"{known} was taken of another configuration: set another run.directory, or remove it")
    courses, found = study["runs"], dict[Kind, list[Course]]()
    planned = [
        (kind, changed(config, kind.settings(seed)))  # all of them first: a word that is none is found at once
        for seed, kind in product(seeds, _kinds(lags, corrections, caches))
    ]
    for kind, settings in planned:
        name = str(settings.run.id)
        if name not in courses:
            if not (folder / name / "report.json").exists():  # else it ended, and we before we wrote it down
                _clear(folder / name)
                if execute(settings) is None:
                    return None
            courses[name] = asdict(course(folder / name))
            with replacing(known) as whole:
                whole.write_text(json.dumps(study))
        found.setdefault(kind, []).append(Course(**courses[name]))
    table = "\n".join(lines(found))
    with replacing(folder / "study-lag.md") as whole:
        whole.write_text(f"{table}\n")
    figure(found).savefig(folder / "study-lag.png", dpi=200)
    return table


def _digest(config: Config) -> str:
    """Of what a configuration says, but for where its runs and models lie."""
    said = config.model_dump(mode="json", exclude_unset=True)
    said.get("run", {}).pop("directory", None)
    (said.get("warm_start") or {}).pop("directory", None)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _kinds(lags: Sequence[int], corrections: Sequence[str], caches: Sequence[str]) -> list[Kind]:
    """Without lag nothing runs at a swap, and nothing is to be corrected: that is one kind."""
    every = dict.fromkeys(
        Kind(lag, *((correction, cache) if lag else (corrections[0], caches[0])))
        for lag, correction, cache in product(lags, corrections, caches)
    )
    return list(every)


def _clear(directory: Path) -> None:
    """Remove what an interrupted run left; it is taken again, for a resumed one has a pause among its seconds.

    Raises ConfigError where it still runs.
    """
    if (directory / FILE).exists():
        with Reader(directory) as reader:
            if reader.is_written:
                raise ConfigError(f"another process writes {directory}: wait for it, or end it with `cwm-rl stop`")
    if directory.exists():
        shutil.rmtree(directory)


def course(directory: Path) -> Course:
    """Rewards, times and evaluations of a finished run."""
    report = json.loads((directory / "report.json").read_text())
    with Reader(directory) as reader:
        steps = reader.steps()
    rewards = [round(fmean(_rewards(step.stats).values()), 4) for step in steps]
    before, after = (fmean(one["pass@1"] for one in report["eval"][when].values()) for when in ("before", "after"))
    stale = report["dropped"]["stale"] / max(1, report["ledger"]["dispatched"])
    return Course(rewards, [round(step.at - steps[0].at, 2) for step in steps], before, after, stale)


def _rewards(stats: Mapping[str, object]) -> Mapping[str, float]:
    found = stats["reward"]
    assert isinstance(found, dict)  # noqa: S101 - as `report.batch_stats` writes it
    return found


def lines(found: Mapping[Kind, Sequence[Course]]) -> Iterator[str]:
    """A table in Markdown, a row a kind: means over seeds, and the range of what was gained."""
    yield "| lag | correction | cache | held out, before → after | gain, least to most | seconds a step | stale |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for kind, courses in found.items():
        gains = [one.after - one.before for one in courses]
        pace = fmean(one.seconds[-1] / max(1, len(one.seconds) - 1) for one in courses)
        yield (
            f"| {kind.lag} | {kind.correction} | {kind.kv} | {fmean(one.before for one in courses):.2f} → "
            f"{fmean(one.after for one in courses):.2f} | {min(gains):+.2f} to {max(gains):+.2f} | {pace:.1f} | "
            f"{fmean(one.stale for one in courses):.1%} |"
        )


def figure(found: Mapping[Kind, Sequence[Course]]) -> Figure:
    """Reward against steps, above, and time: a column for each correction and cache, a line for each lag.

    The run without lag, which knows neither, stands in all of them.
    """
    columns = list(dict.fromkeys((kind.correction, kind.kv) for kind in found if kind.lag)) or [("none", "keep")]
    whole = Figure(figsize=(1.5 + 2.7 * len(columns), 5.6), layout="constrained")
    panels = whole.subplots(2, len(columns), sharey=True, sharex="row", squeeze=False)
    for column, (correction, kv) in enumerate(columns):
        by_step, by_time = panels[:, column]
        for kind, courses in found.items():
            if kind.lag and (kind.correction, kind.kv) != (correction, kv):
                continue
            steps = min(len(one.rewards) for one in courses)
            rewards = _smoothed([fmean(one.rewards[at] for one in courses) for at in range(steps)])
            seconds = [fmean(one.seconds[at] for one in courses) for at in range(steps)]
            colour = f"C{LAGS.index(kind.lag)}" if kind.lag in LAGS else None
            style: dict[str, Any] = {"color": colour, "linestyle": "-" if kind.lag else ":", "label": f"lag {kind.lag}"}
            by_step.plot(range(1, steps + 1), rewards, **style)
            by_time.plot(seconds, rewards, **style)
        by_step.set_title(f"correction {correction}, kv {kv}", fontsize=9)
        _named(by_step, "optimiser step")
        _named(by_time, "seconds since the first step")
    for row in panels:
        row[0].set_ylabel(f"mean reward (of {_WINDOW} steps)")
    panels[0][-1].legend(fontsize=8)
    return whole


def _named(axes: Axes, x: str) -> None:
    axes.set_xlabel(x)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _smoothed(values: Sequence[float]) -> list[float]:
    return [fmean(values[max(0, at - _WINDOW + 1) : at + 1]) for at in range(len(values))]
