"""The pages. Each live one has a fragment of itself, which the browser fetches when something has changed."""

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path as Directory
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from rl.ledger import Fault, Reader, State, Step
from rl.reports import pages, series
from rl.service import charts, compare, models, runs
from rl.service.api import tokens_of
from rl.service.auth import COOKIE
from rl.service.guard import session_of
from rl.service.launch import LaunchRefused
from rl.service.parts import Asked, Number, Run, Service, SideName, TaskId, may_operate
from rollout_workers.trajectory import EpisodeKey
from verifiers.errors import UserError
from verifiers.verdict import Outcome

router = APIRouter(include_in_schema=False)
_HERE = Directory(__file__).parent
_STEPS = 20
_WHOLE = re.compile(r"[1-9][0-9]{0,8}")
_OVERLAYS = 3
_TOKENS = 20_000
"""Tokens that a page colours; a longer episode is in its download."""
_MARKED = 50
"""Faults in a picture, the last ones."""
_ENVIRONMENT = pages.environment(_HERE / "templates")
_ENVIRONMENT.globals |= {"spark": charts.spark, "bars": charts.bars, "heat": charts.heat}
_STATIC = {
    "style.css": (pages.TEMPLATES / "style.css", "text/css"),
    "status.css": (_HERE / "static/status.css", "text/css"),
    "live.js": (_HERE / "static/live.js", "text/javascript"),
    "charts.js": (_HERE / "static/charts.js", "text/javascript"),
    "icon.svg": (_HERE / "static/icon.svg", "image/svg+xml"),
}
OtherRuns = Annotated[list[str], Query(alias="with", max_length=_OVERLAYS)]


def render(template: str, request: Request, **values: Any) -> HTMLResponse:
    """A page."""
    shown = {"now": time.time(), "operate": may_operate(request), "closed": not request.app.state.parts.door.open}
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(shown | values))


@router.get("/")
def index(request: Request, service: Service) -> Response:
    """All runs."""
    return render("runs.html", request, configurations=service.launcher.configurations(), **_index(service))


@router.get("/live")
def index_live(request: Request, service: Service) -> Response:
    """The part of it that changes."""
    return render("runs_live.html", request, **_index(service))


@router.get("/runs/{run}")
def run_page(run: Run, request: Request, service: Service, others: OtherRuns = []) -> Response:  # noqa: B006 - read
    """One run, with curves of others laid over its own."""
    known = [one.name for one in runs.listed(service.root) if one != run]
    return render("run.html", request, known=known, **_run(run, service, others))


@router.get("/runs/{run}/live")
def run_live(run: Run, request: Request, service: Service, others: OtherRuns = []) -> Response:  # noqa: B006 - read
    """The part of it that changes."""
    return render("run_live.html", request, **_run(run, service, others))


@router.get("/runs/{run}/fleet")
def fleet(run: Run, request: Request) -> Response:
    """Who works for it, and what it waits for."""
    return render("fleet.html", request, **_fleet(run))


@router.get("/runs/{run}/fleet/live")
def fleet_live(run: Run, request: Request) -> Response:
    """The part of it that changes."""
    return render("fleet_live.html", request, **_fleet(run))


@router.get("/runs/{run}/episodes")
def episodes(run: Run, request: Request, asked: Asked) -> Response:
    """Its episodes, a page at a time."""
    with Reader(run) as reader:
        page, domains = runs.episodes(reader, asked), reader.domains()
    kept = asked.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    newest = urlencode({name: value for name, value in kept.items() if name != "before"})
    older = urlencode(kept | {"before": page.next}) if page.next else ""
    words = {"domains": domains, "states": list(State), "outcomes": list(Outcome)}
    return render("episodes.html", request, name=run.name, page=page, asked=asked, newest=newest, older=older, **words)


@router.get("/runs/{run}/episodes/{group}/{index}/{attempt}")
def episode(run: Run, group: Number, index: Number, attempt: Number, request: Request, service: Service) -> Response:
    """One episode, turn by turn and token by token."""
    key = EpisodeKey(group, index, attempt)
    with Reader(run) as reader:
        found = runs.episode(reader, key)
        members = runs.group(reader, group, whole=False)
    if found is None or members is None:
        raise HTTPException(404)
    seen = tokens_of(service, run, key) if found.sampled and found.sampled.tokens <= _TOKENS else None
    return render("episode.html", request, name=run.name, episode=found, members=members.members, tokens=seen)


@router.get("/runs/{run}/groups/{group}")
def group(run: Run, group: Number, request: Request) -> Response:
    """The members of a group side by side."""
    with Reader(run) as reader:
        found = runs.group(reader, group)
    if found is None:
        raise HTTPException(404)
    return render("group.html", request, name=run.name, group=found)


@router.get("/compare")
def compare_page(request: Request, service: Service, a: SideName | None = None, b: SideName | None = None) -> Response:
    """Two evaluations on the same tasks."""
    found, problem = None, ""
    if a and b:
        try:
            found = service.evaluations.compare(service.root, a, b)
        except compare.NothingToCompare as error:
            problem = str(error)
    sides = compare.sides(service.root)
    return render("compare.html", request, sides=sides, a=a, b=b, found=found, problem=problem)


@router.get("/compare/answers")
def answers_page(request: Request, service: Service, a: SideName, b: SideName, task: TaskId) -> Response:
    """What both answered to one task, side by side."""
    found = compare.answers(service.root, a, b, task)
    sides, query = ((a, found.a), (b, found.b)), urlencode({"a": a, "b": b})
    return render("answers.html", request, found=found, sides=sides, query=query)


@router.post("/runs")
async def start(request: Request, service: Service) -> Response:
    """From the form on the page of all runs."""
    fields = await _fields(request)
    name, steps = fields.get("run") or None, fields.get("steps", "")
    if steps and not _WHOLE.fullmatch(steps):
        return _refused(request, 409, "It was not started: steps are a whole number, 1 or more.")
    overrides = {"run.steps": int(steps)} if steps else {}
    try:
        wanted = models.Start(config=fields.get("config", ""), run=name, overrides=overrides)
        service.launcher.start(wanted)
    except (UserError, ValueError) as error:
        why = str(error) if isinstance(error, UserError) else "a run's name is letters, digits and . _ -"
        return _refused(request, 409, f"It was not started: {why}.")
    return RedirectResponse("/", 303)


@router.post("/runs/{run}/stop")
def stop(run: str, request: Request, service: Service) -> Response:
    """From the button on its page."""
    try:
        service.launcher.stop(run)
    except LaunchRefused as error:
        return _refused(request, 409, f"{error}.")
    return RedirectResponse(f"/runs/{run}", 303)


@router.get("/login")
def login_page(request: Request) -> Response:
    """Where a browser shows its token."""
    return render("login.html", request, problem="")


@router.post("/login")
async def login(request: Request, service: Service) -> Response:
    """A session for a token, which is in a form's body and in no address."""
    client = request.client.host if request.client else ""
    role = service.door.role((await _fields(request)).get("token", ""))
    if role is None:  # a right one gets in however many wrong ones came from behind the same proxy
        if not service.wrong_tokens.take(client):
            return _login_again(request, 429, "Too many wrong tokens came from there: wait some minutes.")
        return _login_again(request, 403, "That is no token of this service.")
    answer = RedirectResponse("/", 303)
    secure = request.headers.get("origin", "").startswith("https://")  # TLS ends at a proxy; the guard knows the origin
    answer.set_cookie(COOKIE, service.door.begin(role), httponly=True, samesite="strict", secure=secure)
    return answer


@router.post("/logout")
def logout(request: Request, service: Service) -> Response:
    """Log out."""
    service.door.end(session_of(request.headers))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@router.get("/static/{name}")
def static(name: str) -> Response:
    """The few files that pages refer to."""
    if name not in _STATIC:
        raise HTTPException(404)
    path, kind = _STATIC[name]
    return Response(path.read_bytes(), media_type=kind)


def _index(service: Service) -> dict[str, Any]:
    found = list(map(runs.summary, runs.listed(service.root)))
    pending = [one for one in service.launcher.launches() if one.state != "begun"]
    return {"runs": found, "root": str(service.root), "launches": pending}


def _run(run: Directory, service: Service, others: list[str]) -> dict[str, Any]:
    others = [name for name in others if name]  # as a form sends none
    with Reader(run) as reader:
        steps = service.histories.steps(reader)
        shown = runs.detail(reader, service.histories.multi_version_fraction(reader))
        actors = runs.fleet(reader).actors
        faults = reader.faults()
    laid = {name: _steps_of(service, name) for name in others}
    ends = [(one[-1].lineage, one[-1].step, one[-1].at) if one else None for one in (steps, *laid.values())]
    pictures = service.gallery.get(
        (run, *others, *ends, shown.checkpoints, len(faults)),
        lambda: _pictures(steps, laid, shown.checkpoints, faults),
    )
    lags = series.lags(steps)
    return {
        "run": shown,
        "pictures": pictures,
        "lags": [(str(lag), count) for lag, count in lags.items()],
        "actors": actors,
        "last": steps[: -_STEPS - 1 : -1],
        "domains": list(shown.reward),
        "others": others,
        "query": urlencode([("with", name) for name in others]),
        "resume": f"cwm-rl resume {shlex.quote(str(run))}",
    }


def _pictures(
    steps: Sequence[Step], others: Mapping[str, Sequence[Step]], checkpoints: Sequence[int], faults: Sequence[Fault]
) -> list[charts.Picture]:
    at = [step.at for step in steps]
    marks = [charts.Mark(step, "checkpoint") for step in checkpoints]
    marks += [charts.Mark(charts.between(at, fault.at, steps), "fault") for fault in faults[-_MARKED:]]
    panels = charts.panels(steps, others) if steps else []
    return [charts.Picture(panel, charts.draw(panel, marks)) for panel in panels]


def _steps_of(service: Service, name: str) -> Sequence[Step]:
    with Reader(runs.find(service.root, name)) as reader:
        return service.histories.steps(reader)


def _fleet(run: Directory) -> dict[str, Any]:
    with Reader(run) as reader:
        return {"name": run.name, "fleet": runs.fleet(reader)}


async def _fields(request: Request) -> dict[str, str]:
    """A form's fields; the guard has seen to the length. What is no form of ours has none."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return {}
    body = (await request.body()).decode("utf-8", "replace")
    try:
        return {name: values[0] for name, values in parse_qs(body, max_num_fields=20).items()}
    except ValueError:  # more fields
        return {}


def _login_again(request: Request, status: int, problem: str) -> Response:
    answer = render("login.html", request, problem=problem)
    answer.status_code = status
    return answer


def _refused(request: Request, status: int, text: str) -> Response:
    answer = render("error.html", request, text=text, status=status)
    answer.status_code = status
    return answer
