"""JSON below /api/v1, and /healthz. Every route is synchronous: a Reader is opened and used by one thread."""

from pathlib import Path as Directory
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request

from rl.ledger import Reader
from rl.service import models, runs
from rollout_workers.trajectory import EpisodeKey

router = APIRouter()


def root(request: Request) -> Directory:
    """Where the runs are."""
    directory: Directory = request.app.state.runs
    return directory


Root = Annotated[Directory, Depends(root)]


def _found(root: Root, run: str) -> Directory:
    return runs.find(root, run)


Run = Annotated[Directory, Depends(_found)]
"""The directory of the run that a path names."""
Asked = Annotated[models.EpisodeQuery, Query()]
Number = Annotated[int, Path(ge=0, le=10**15)]


@router.get("/healthz")
def healthz() -> dict[str, bool]:
    """It answers."""
    return {"ok": True}


@router.get("/api/v1/runs")
def all_runs(root: Root) -> models.Runs:
    """All runs, the last one to be written first."""
    return models.Runs(runs=tuple(map(runs.summary, runs.listed(root))))


@router.get("/api/v1/runs/{run}")
def one_run(run: Run) -> models.RunDetail:
    """A run's state, counts and faults."""
    with Reader(run) as reader:
        return runs.detail(reader, reader.steps())


@router.get("/api/v1/runs/{run}/metrics")
def metrics(run: Run, after: Annotated[int, Query(ge=0, le=2**31)] = 0) -> models.Metrics:
    """All series of a run, from the step after `after` on."""
    with Reader(run) as reader:
        return runs.metrics(step for step in reader.steps() if step.step > after)


@router.get("/api/v1/runs/{run}/episodes")
def episodes(run: Run, asked: Asked) -> models.EpisodePage:
    """Episodes, newest first."""
    with Reader(run) as reader:
        return runs.episodes(reader, asked)


@router.get("/api/v1/runs/{run}/episodes/{group}/{index}/{attempt}")
def episode(run: Run, group: Number, index: Number, attempt: Number) -> models.EpisodeWhole:
    """One episode with its messages and its verdict."""
    with Reader(run) as reader:
        found = runs.episode(reader, EpisodeKey(group, index, attempt))
    if found is None:
        raise HTTPException(404)
    return found
