"""JSON below /api/v1, and what probes ask for. Reading routes are synchronous: one thread opens and uses a Reader."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, HTTPException, Query
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from rl.ledger import Reader
from rl.service import compare, models, prometheus, runs
from rl.service.live import EventStream
from rl.service.parts import Asked, Number, Run, Service, SideName, TaskId
from rollout_workers.trajectory import EpisodeKey

router = APIRouter()
_JSON = "application/json"


def _refusals(words: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": models.Refusal, "description": text, "content": {_JSON: {"example": {"detail": text}}}}
        for status, text in words.items()
    }


_FAILS = _refusals(
    {
        401: "Show a token: Authorization: Bearer TOKEN.",
        404: "There is nothing at this address.",
        421: "This service answers to 127.0.0.1:8400 only.",
        422: "This cannot be asked: points: Input should be less than or equal to 2000.",
        429: "That were too many requests: wait a moment.",
        503: "This run cannot be read now.",
    }
)
_CHANGES = _FAILS | _refusals(
    {
        400: "The request broke off.",
        403: "This came from another site, or does not say from which.",
        408: "The request took too long to come.",
        409: "It cannot be done now, and why.",
        413: "That is longer than 65536 bytes.",
    }
)
v1 = APIRouter(prefix="/api/v1", responses=_FAILS)


@router.get("/healthz")
def healthz() -> dict[str, bool]:
    """Liveness: the process answers."""
    return {"ok": True}


@router.get("/readyz", responses=_refusals({503: "The directory of the runs cannot be read."}))
def readyz(service: Service) -> dict[str, bool]:
    """Readiness: it answers, and the runs can be listed."""
    try:
        next(service.root.iterdir(), None)
    except OSError as error:
        raise HTTPException(503, f"the runs cannot be listed: {error.strerror}") from error
    return {"ready": True}


@router.get("/metrics", response_class=PlainTextResponse)
def prometheus_metrics(service: Service) -> PlainTextResponse:
    """Metrics of the service and its runs, in Prometheus's text format."""
    kind = "text/plain; version=0.0.4; charset=utf-8"
    return PlainTextResponse(prometheus.text(service.root, service.hub), media_type=kind)


@v1.get("/runs")
def all_runs(service: Service) -> models.Runs:
    """All runs, the last one to be written first."""
    return models.Runs(runs=tuple(map(runs.summary, runs.listed(service.root))))


@v1.post("/runs", status_code=202, responses=_CHANGES)
def start(service: Service, wanted: models.Start) -> models.Accepted:
    """Start a run from one of the listed configurations."""
    name = service.launcher.start(wanted)
    return models.Accepted(run=name, url=f"/runs/{name}")


@v1.get("/configurations")
def configurations(service: Service) -> models.Configurations:
    """What may be started, and what may be set then."""
    return models.Configurations(configurations=service.launcher.configurations())


@v1.get("/launches")
def launches(service: Service) -> models.Launches:
    """What this service was asked to start, and how far that is."""
    return models.Launches(launches=service.launcher.launches())


@v1.get("/compare", responses=_refusals({409: "They have nothing in common."}))
def comparison(service: Service, a: SideName, b: SideName) -> models.Comparison:
    """Two evaluations on the tasks that both have: `RUN:before`, `RUN:after`, or `RUN` for its last one."""
    return service.evaluations.compare(service.root, a, b)


@v1.get("/compare/answers", responses=_refusals({409: "They do not both have the task."}))
def answers(service: Service, a: SideName, b: SideName, task: TaskId) -> models.Answers:
    """What both answered to one task."""
    return compare.answers(service.root, a, b, task)


@v1.get("/runs/{run}")
def one_run(run: Run, service: Service) -> models.RunDetail:
    """A run's state, counts and faults."""
    with Reader(run) as reader:
        return runs.detail(reader, service.histories.multi_version_fraction(reader))


@v1.post("/runs/{run}/stop", status_code=202, responses=_CHANGES)
def stop(run: str, service: Service) -> models.Accepted:
    """End a run in good order; it can be resumed."""
    service.launcher.stop(run)
    return models.Accepted(run=run, url=f"/runs/{run}")


@v1.get("/runs/{run}/events", response_class=Response, responses={200: {"content": {"text/event-stream": {}}}})
async def events(run: Run, service: Service, last_event_id: Annotated[str, Header(max_length=64)] = "") -> Response:
    """What happens, as it happens: `state`, `pulse`, `step`, `fault`, `change`.

    A client that shows the id of the last event it saw gets the steps and faults since.
    """
    if service.hub.full:
        raise HTTPException(503, "as many clients watch as may: try again later")
    return EventStream(service.hub, run, last_event_id)


@v1.get("/runs/{run}/metrics", response_model=models.Metrics)
def metrics(
    run: Run,
    service: Service,
    after: Annotated[int, Query(ge=0, le=2**31)] = 0,
    points: Annotated[int, Query(ge=1, le=2000, description="Means of so many parts, at most.")] = 500,
) -> Response:
    """All series of a run, from the step after `after` on."""
    with Reader(run) as reader:
        rows = service.histories.rows(reader)
    found = runs.metrics([row for row in rows if row[0].step > after], points)
    return Response(msgspec.json.encode(found), media_type="application/json")


@v1.get("/runs/{run}/fleet")
def fleet(run: Run) -> models.Fleet:
    """Actors with their heartbeats, and what is waited for until when."""
    with Reader(run) as reader:
        return runs.fleet(reader)


@v1.get("/runs/{run}/checkpoints")
def checkpoints(run: Run) -> models.Checkpoints:
    """Saved states of the learner."""
    with Reader(run) as reader:
        return runs.checkpoints(reader)


@v1.get("/runs/{run}/groups/{group}")
def group(run: Run, group: Number) -> models.Group:
    """The members of a group, whole."""
    with Reader(run) as reader:
        found = runs.group(reader, group)
    if found is None:
        raise HTTPException(404)
    return found


@v1.get("/runs/{run}/episodes")
def episodes(run: Run, asked: Asked) -> models.EpisodePage:
    """Episodes, newest first."""
    with Reader(run) as reader:
        return runs.episodes(reader, asked)


@v1.get("/runs/{run}/episodes/{group}/{index}/{attempt}")
def episode(run: Run, group: Number, index: Number, attempt: Number) -> models.EpisodeWhole:
    """One episode with its messages and its verdict."""
    with Reader(run) as reader:
        found = runs.episode(reader, EpisodeKey(group, index, attempt))
    if found is None:
        raise HTTPException(404)
    return found


@v1.get("/runs/{run}/episodes/{group}/{index}/{attempt}/tokens")
def tokens(run: Run, group: Number, index: Number, attempt: Number, service: Service) -> models.Tokens:
    """One episode token by token: text, log-probability, version."""
    found = tokens_of(service, run, EpisodeKey(group, index, attempt))
    if found is None:
        raise HTTPException(404)
    return found


@v1.get("/runs/{run}/episodes/{group}/{index}/{attempt}/download")
def download(run: Run, group: Number, index: Number, attempt: Number, service: Service) -> JSONResponse:
    """An episode and its tokens as a file."""
    key = EpisodeKey(group, index, attempt)
    with Reader(run) as reader:
        found = runs.episode(reader, key)
    if found is None:
        raise HTTPException(404)
    seen = tokens_of(service, run, key)
    whole = {"run": run.name, "episode": found.model_dump(mode="json"), "tokens": seen and seen.model_dump(mode="json")}
    name = f"{run.name}-{group}-{index}-{attempt}.json"
    return JSONResponse(whole, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def tokens_of(service: Service, run: Path, key: EpisodeKey) -> models.Tokens | None:
    """With texts, where the run's tokenizer is at hand. Raises LedgerError."""
    with Reader(run) as reader:
        record = reader.episode(key)
        if record is None or record.episode is None:
            return None
        ids = {token for trajectory in record.episode.trajectories for token in trajectory.tokens}
        return runs.tokens(reader, key, service.vocabulary.texts(run, ids))


router.include_router(v1)
