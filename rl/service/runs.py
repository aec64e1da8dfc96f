"""The runs below a directory, found by name and asked through their ledgers. A Reader lives within one call."""

import math
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.driver import pulse
from rl.driver.pulse import Phase, Pulse
from rl.ledger import Counts, LedgerError, Reader, Record, State, Step
from rl.ledger.schema import FILE
from rl.reports.series import mapping, read_object
from rl.service import models
from rollout_workers.trajectory import Completion, Episode, EpisodeKey, Segment

DatabaseError = sqlite3.Error
_NAME = re.compile(models.RUN_NAME)
_FAULTS = 20
_MEMBERS = 100
_TREND = 60
_SEARCH_SECONDS = 0.03
_SEARCHED = 16


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


def state(run: Path, reader: Reader) -> models.RunState:
    """Where a run stands, by its ledger's lock and by what its driver told last."""
    return _state(run, reader, pulse.read(run))


def summary(run: Path) -> models.RunSummary:
    """A run in one line; also one whose ledger cannot be read."""
    try:
        with Reader(run) as reader:
            return models.RunSummary(**_summary(run, reader), trend=_trend(reader))
    except (LedgerError, DatabaseError) as error:
        return models.RunSummary(name=run.name, state="unreadable", written_at=written_at(run), problem=str(error))


def detail(reader: Reader, multi_version_fraction: float) -> models.RunDetail:
    """A run as its page shows it."""
    run, counts = reader.path.parent, reader.counts()
    line = _summary(run, reader)
    faults = [models.Fault(at=one.at, actor=one.actor, kind=one.kind, detail=one.detail) for one in reader.faults()]
    if line["state"] == "running" and not line["waiting"]:
        line["waiting"] = _pending(counts)
    return models.RunDetail(
        **line,
        trend=_trend(reader),
        version=reader.version,
        dispatched=counts.dispatched,
        trained=counts.trained,
        pending={state.value: count for state, count in counts.pending.items()},
        dropped={reason.value: count for reason, count in counts.dropped.items()},
        balanced=counts.balanced,
        multi_version_fraction=multi_version_fraction,
        checkpoints=tuple(step for step, _ in reader.checkpoints()),
        faults=tuple(reversed(faults[-_FAULTS:])),
    )


def fleet(reader: Reader) -> models.Fleet:
    """Who works for a run, as its driver told last."""
    run = reader.path.parent
    beat = pulse.read(run)
    standing = _state(run, reader, beat)
    alive = standing == "running"
    waits = beat.waits if beat and alive else ()
    return models.Fleet(
        state=standing,
        at=beat.at if beat else None,
        host=beat.host if beat else "",
        pid=beat.pid if beat and alive else None,
        phase=beat.phase.value if beat else "",
        version=reader.version,
        waits=tuple(models.Wait(name=one.name, since=one.since, until=one.until) for one in waits),
        actors=tuple(_actor(one, alive=alive) for one in (beat.actors if beat else ())),
    )


def checkpoints(reader: Reader) -> models.Checkpoints:
    """Checkpoints that no rollback abandoned, newest first."""
    found = (models.Checkpoint(step=step, path=str(path), there=path.is_dir()) for step, path in reader.checkpoints())
    return models.Checkpoints(checkpoints=tuple(found))


def metrics(steps: Sequence[tuple[Step, Mapping[str, float | None]]], points: int) -> dict[str, Any]:
    """Every number that steps have, by name: `entropy`, `reward.math`, ...; means of `points` parts at most.

    A part is named after its last step. In the form of `models.Metrics`, which would look at every number again, but
    with NaN, which msgspec writes as null, for what is missing.
    """
    size = max(1, -(-len(steps) // points))
    last = [steps[min(start + size, len(steps)) - 1][0] for start in range(0, len(steps), size)]
    names = sorted({name for _, row in steps for name in row})
    means = _means(np.array([[row.get(name) for name in names] for _, row in steps], dtype=float), size)
    return {
        "step": [step.step for step in last],
        "at": [step.at for step in last],
        "series": dict(zip(names, means.T.tolist(), strict=True)),
    }


def _means(rows: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Of every `size` rows, column by column, (parts, columns); without what is missing, NaN where all is."""
    there = ~np.isnan(rows)
    starts = np.arange(0, len(rows), size)
    sums, counts = (np.add.reduceat(one, starts, dtype=float) for one in (np.where(there, rows, 0), there))
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means


def flat_stats(step: Step) -> dict[str, float | None]:
    """What was logged of a step, by dotted name."""
    return dict(_flat(step.stats)) | {"sampled_tokens": float(step.sampled_tokens)}


def episodes(reader: Reader, query: models.EpisodeQuery) -> models.EpisodePage:
    """A page of episodes, newest first."""
    found, after = _searched(reader, query) if query.text else _filtered(reader, query)
    return models.EpisodePage(
        episodes=tuple(models.EpisodeRow(**_row(record)) for record in found), next=str(after) if after else None
    )


def group(reader: Reader, number: int, *, whole: bool = True) -> models.Group | None:
    """The members of a group; its first hundred. None if there is no such group."""
    members = list(islice(reader.episodes(group=number, payloads=whole), _MEMBERS))
    return models.Group(group=number, members=tuple(map(_whole, members))) if members else None


def episode(reader: Reader, key: EpisodeKey) -> models.EpisodeWhole | None:
    """One episode turn by turn; None if it was never dispatched."""
    record = reader.episode(key)
    return None if record is None else _whole(record)


def tokens(reader: Reader, key: EpisodeKey, texts: "Mapping[int, str]") -> models.Tokens | None:
    """One episode token by token; `texts` has what each decodes to. None if nothing was sampled.

    Raises LedgerError if it is damaged.
    """
    record = reader.episode(key)
    if record is None or record.episode is None:
        return None
    return models.Tokens(
        key=str(key),
        advantage=_advantage(reader, key),
        trajectories=tuple(
            tuple(_segment(one, texts) for one in trajectory.segments) for trajectory in record.episode.trajectories
        ),
    )


def _summary(run: Path, reader: Reader) -> dict[str, Any]:
    planned = mapping(_config(reader).get("run")).get("steps")
    beat = pulse.read(run)
    standing = _state(run, reader, beat)
    last = reader.steps(after=reader.step - 1)
    reward = mapping(last[-1].stats.get("reward")) if last else {}
    return {
        "name": run.name,
        "state": standing,
        "step": last[-1].step if last else 0,
        "steps": planned if isinstance(planned, int) else None,
        "reward": {domain: value for domain, value in reward.items() if _finite(value) is not None},
        "age": max(0.0, time.time() - reader.made_at),
        "waiting": _waiting(beat) if standing == "running" else "",
        "written_at": written_at(run),
        "problem": beat.detail if beat and standing == "failed" else "",
    }


def _config(reader: Reader) -> Mapping[str, Any]:
    """What the last resume left, else that of the beginning."""
    return read_object(reader.path.parent / "config.json") or reader.config


def _state(run: Path, reader: Reader, beat: Pulse | None) -> models.RunState:
    # A lock may not reach a driver on another host; its heartbeats do.
    elsewhere = beat is not None and not _told_end(beat) and time.time() - beat.at < pulse.FRESH_SECONDS
    if reader.is_written or (elsewhere and beat is not None and not _here(beat)):
        return "running"
    if beat is None:  # no driver has begun, or one of an older program
        return "finished" if (run / "report.json").is_file() else "stopped"
    match beat.phase:
        case Phase.FINISHED:
            return "finished"
        case Phase.FAILED:
            return "failed"
        case Phase.STOPPED | Phase.STOPPING:
            return "stopped"
    return "crashed"


def _told_end(beat: Pulse) -> bool:
    return beat.phase in (Phase.FINISHED, Phase.FAILED, Phase.STOPPED)


def _here(beat: Pulse) -> bool:
    return beat.host == pulse.host()


def _waiting(beat: Pulse | None) -> str:
    now = time.time()
    return ", ".join(f"{one.name} ({max(0, now - one.since):.0f} s)" for one in beat.waits) if beat else ""


def _pending(counts: Counts) -> str:
    words = {
        State.DISPATCHED: "being sampled",
        State.SAMPLED: "being graded",
        State.SCORED: "waiting for their group or for the learner",
    }
    found = ", ".join(f"{counts.pending[state]} {what}" for state, what in words.items() if counts.pending[state])
    return f"episodes ({found})" if found else ""


def _actor(one: pulse.Actor, *, alive: bool) -> models.Actor:
    plain = ("name", "seen", "version", "seconds")
    here: dict[str, Any] = {name: getattr(one, name) for name in plain}
    for name in ("acting", "slots", "grading", "sandboxes"):
        here[name] = getattr(one, name) if alive else 0
    return models.Actor(**here, state=one.state if alive else "gone", pid=one.pid if alive else None)


def _trend(reader: Reader) -> tuple[float, ...]:
    means = (_mean(map(_finite, one.values())) for one in reader.trend(_TREND))
    return tuple(round(one, 4) for one in means if one is not None)


def _filtered(reader: Reader, query: models.EpisodeQuery) -> tuple[list[Record], EpisodeKey | None]:
    """Records, and the key after which the next page begins."""
    found, floor = reader.newest(query.limit + 1, before=query.older_than, where=query.where)
    if len(found) <= query.limit:
        return found, floor
    return found[: query.limit], found[query.limit - 1].key


def _searched(reader: Reader, query: models.EpisodeQuery) -> tuple[list[Record], EpisodeKey | None]:
    """The same by text, which is looked for in whole episodes: as far as there is time."""
    text, until = (query.text or "").casefold(), time.monotonic() + _SEARCH_SECONDS
    found: list[Record] = []
    after = query.older_than
    while True:
        page, floor = reader.newest(_SEARCHED, before=after, where=query.where, payloads=True)
        for record in page:
            if text in _words(record).casefold():
                found.append(record)
                if len(found) == query.limit:
                    return found, record.key
        after = floor
        if after is None or time.monotonic() > until:
            return found, after


def _words(record: Record) -> str:
    """All that somebody may look for in an episode."""
    words = [record.task_id, record.detail, record.verdict.detail if record.verdict else ""]
    if record.episode is not None:
        words += [turn.content for turn in record.episode.submission.turns] or [record.episode.submission.reply]
    return "\n".join(words)


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


def _whole(record: Record) -> models.EpisodeWhole:
    return models.EpisodeWhole(**_row(record), sampled=_sampled(record.episode), verdict=_verdict(record))


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


def _segment(segment: Segment, texts: Mapping[int, str]) -> models.Segment:
    written = isinstance(segment, Completion)
    return models.Segment(
        sampled=written,
        version=segment.version if isinstance(segment, Completion) else None,
        tokens=segment.tokens,
        logprobs=tuple(map(_finite, segment.logprobs)) if isinstance(segment, Completion) else (),
        texts=tuple(texts.get(token, "") for token in segment.tokens) if texts else (),
    )


def _advantage(reader: Reader, key: EpisodeKey) -> float | None:
    """By the run's estimator, over the members of its group that are scored and were not dropped.

    None where it is not one of them, or the run deals rewards out by chance.
    """
    settings = mapping(_config(reader).get("algorithm"))
    members = reader.returns(key.group)
    if key not in members or settings.get("shuffle_rewards"):
        return None
    import torch  # here, since no other page needs it

    from rl.algorithm.advantages import ADVANTAGES

    estimator = ADVANTAGES.get(str(settings.get("advantage", "cwm")))
    rewards, lengths = zip(*members.values(), strict=True)
    if estimator is None:
        return None
    found = estimator(torch.tensor(rewards, dtype=torch.float32), torch.tensor(lengths))
    return _finite(found[list(members).index(key)].item())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", _finite(value)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _finite(value: object) -> float | None:
    """JSON has no word for the others."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
