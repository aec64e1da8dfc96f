"""The runs below a directory, found by name and asked through their ledgers. A Reader lives within one call."""

import math
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from rl.ledger import Counts, LedgerError, Reader, Record, State, Step
from rl.ledger.schema import FILE
from rl.series import mapping, read_object
from rl.service import models
from rollout_workers.trajectory import Episode, EpisodeKey

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""As `rl.config` has it."""
_FAULTS = 20


class NoSuchRun(Exception):
    """There is no run of that name."""


def find(root: Path, name: str) -> Path:
    """The directory of a run, one level below `root` and nowhere else. Raises NoSuchRun."""
    if _NAME.fullmatch(name):
        path = root.resolve() / name
        with suppress(OSError):
            if path.resolve() == path and (path / FILE).is_file() and not (path / FILE).is_symlink():
                return path
    raise NoSuchRun(name)


def listed(root: Path) -> Iterator[Path]:
    """All runs, the last one to be written first."""
    found = []
    for entry in root.iterdir():
        with suppress(NoSuchRun):
            found.append(find(root, entry.name))
    yield from sorted(found, key=lambda path: written_at(path) or 0.0, reverse=True)


def written_at(run: Path) -> float | None:
    """When the ledger last changed, Unix seconds. Its write-ahead log is where that happens first."""
    times = []
    for name in (FILE, f"{FILE}-wal"):
        with suppress(OSError):
            if (status := (run / name).stat()).st_size:
                times.append(status.st_mtime)
    return max(times, default=None)


def summary(run: Path) -> models.RunSummary:
    """A run in one line; also one whose ledger cannot be read."""
    try:
        with Reader(run) as reader:
            return models.RunSummary(**_summary(run, reader, reader.steps()))
    except (LedgerError, sqlite3.Error) as error:
        return models.RunSummary(name=run.name, state="unreadable", written_at=written_at(run), problem=str(error))


def detail(reader: Reader, steps: list[Step]) -> models.RunDetail:
    """A run as its page shows it."""
    run, counts = reader.path.parent, reader.counts()
    line = _summary(run, reader, steps)
    faults = [models.Fault(at=one.at, actor=one.actor, kind=one.kind, detail=one.detail) for one in reader.faults()]
    return models.RunDetail(
        **line,
        version=reader.version,
        dispatched=counts.dispatched,
        trained=counts.trained,
        pending={state.value: count for state, count in counts.pending.items()},
        dropped={reason.value: count for reason, count in counts.dropped.items()},
        balanced=counts.balanced,
        multi_version_fraction=reader.multi_version_fraction(),
        waiting=_waiting(counts) if line["state"] == "running" else "",
        faults=tuple(reversed(faults[-_FAULTS:])),
    )


def metrics(steps: Iterable[Step]) -> models.Metrics:
    """Every number that steps have, by name: `entropy`, `reward.math`, ..."""
    steps = list(steps)
    rows = [dict(_flat(step.stats)) | {"sampled_tokens": float(step.sampled_tokens)} for step in steps]
    names = sorted({name for row in rows for name in row})
    return models.Metrics(
        step=tuple(step.step for step in steps),
        at=tuple(step.at for step in steps),
        series={name: tuple(row.get(name) for row in rows) for name in names},
    )


def episodes(reader: Reader, query: models.EpisodeQuery) -> models.EpisodePage:
    """A page of episodes, newest first."""
    found = reader.newest(query.limit + 1, before=query.older_than, where=query.where)
    shown = found[: query.limit]
    return models.EpisodePage(
        episodes=tuple(models.EpisodeRow(**_row(record)) for record in shown),
        next=str(shown[-1].key) if len(found) > len(shown) else None,
    )


def group(reader: Reader, number: int) -> tuple[models.EpisodeRow, ...]:
    """The members of a group; its first hundred."""
    members = reader.episodes(group=number, payloads=False)
    return tuple(models.EpisodeRow(**_row(record)) for record in islice(members, 100))


def episode(reader: Reader, key: EpisodeKey) -> models.EpisodeWhole | None:
    """One episode turn by turn; None if it was never dispatched. Raises LedgerError if it is damaged."""
    try:
        record = reader.episode(key)
    except ValueError as error:
        raise LedgerError(f"episode {key} in {reader.path} is damaged: {error}") from error
    if record is None:
        return None
    return models.EpisodeWhole(**_row(record), sampled=_sampled(record.episode), verdict=_verdict(record))


def _summary(run: Path, reader: Reader, steps: list[Step]) -> dict[str, Any]:
    config = read_object(run / "config.json") or reader.config  # what the last resume left, else the beginning
    planned = mapping(config.get("run")).get("steps")
    reward = mapping(steps[-1].stats.get("reward")) if steps else {}
    return {
        "name": run.name,
        "state": _state(run, reader),
        "step": steps[-1].step if steps else 0,
        "steps": planned if isinstance(planned, int) else None,
        "reward": {domain: value for domain, value in reward.items() if _finite(value) is not None},
        "written_at": written_at(run),
    }


def _state(run: Path, reader: Reader) -> Literal["running", "finished", "stopped"]:
    if reader.is_written:
        return "running"
    return "finished" if (run / "report.json").is_file() else "stopped"


def _waiting(counts: Counts) -> str:
    words = {
        State.DISPATCHED: "being sampled",
        State.SAMPLED: "being graded",
        State.SCORED: "waiting for their group or for the learner",
    }
    return ", ".join(f"{counts.pending[state]} {what}" for state, what in words.items() if counts.pending[state])


def _row(record: Record) -> dict[str, Any]:
    verdict = record.verdict
    plain = ("task_id", "domain", "state", "detail", "step", "dispatched_at", "sampled_at", "scored_at", "ended_at")
    return {name: getattr(record, name) for name in plain} | {
        "key": str(record.key),
        "reason": record.reason.value if record.reason else None,
        "outcome": verdict.outcome.value if verdict else None,
        "reward": verdict.reward if verdict else None,
        "correct": verdict.correct if verdict else None,
    }


def _sampled(episode: Episode | None) -> models.Sampled | None:
    if episode is None:
        return None
    turns = episode.submission.turns
    said = [(turn.role, turn.content) for turn in turns] or [("assistant", episode.submission.reply)]
    return models.Sampled(
        messages=tuple(models.Message(role=role, content=content) for role, content in said),
        stop=episode.stop.value,
        sampled_tokens=episode.sampled_tokens,
        tokens=sum(map(len, episode.trajectories)),
        versions=episode.versions,
        seconds=dict(episode.seconds),
    )


def _verdict(record: Record) -> models.Verdict | None:
    if record.verdict is None:
        return None
    return models.Verdict(
        outcome=record.verdict.outcome.value,
        reward=record.verdict.reward,
        correct=record.verdict.correct,
        detail=record.verdict.detail,
        parts={name: _finite(value) for name, value in record.verdict.parts.items()},
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", _finite(value)


def _finite(value: object) -> float | None:
    """JSON has no word for the others."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
