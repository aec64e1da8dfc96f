"""The pages. Each live one has a fragment of itself, which the browser fetches again and again."""

import shlex
import time
from pathlib import Path as Directory
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response

from rl import pages
from rl.ledger import Reader, State
from rl.service import models, runs
from rl.service.api import Asked, Number, Root, Run
from rl.service.pictures import Pictures
from rollout_workers.trajectory import EpisodeKey

router = APIRouter(include_in_schema=False)
_HERE = Directory(__file__).parent
_STEPS = 20
_ENVIRONMENT = pages.environment(_HERE / "templates")
_STATIC = {
    "style.css": (pages.TEMPLATES / "style.css", "text/css"),
    "status.css": (_HERE / "static/status.css", "text/css"),
    "live.js": (_HERE / "static/live.js", "text/javascript"),
    "icon.svg": (_HERE / "static/icon.svg", "image/svg+xml"),
}
_PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
"""matplotlib's SVG has its styles in it. It may load nothing, and as an image it changes no page."""


def render(template: str, **values: Any) -> str:
    """A page."""
    return _ENVIRONMENT.get_template(template).render(now=time.time(), **values)


@router.get("/")
def index(root: Root) -> Response:
    """All runs."""
    return HTMLResponse(render("runs.html", runs=list(map(runs.summary, runs.listed(root))), root=str(root)))


@router.get("/live")
def index_live(root: Root) -> Response:
    """The part of it that changes."""
    return HTMLResponse(render("runs_live.html", runs=list(map(runs.summary, runs.listed(root))), root=str(root)))


@router.get("/runs/{run}")
def run_page(run: Run, request: Request) -> Response:
    """One run."""
    return HTMLResponse(render("run.html", **_run(run, request)))


@router.get("/runs/{run}/live")
def run_live(run: Run, request: Request) -> Response:
    """The part of it that changes."""
    return HTMLResponse(render("run_live.html", **_run(run, request)))


@router.get("/runs/{run}/curves.svg")
def picture(
    run: Run,
    request: Request,
    shape: Literal["wide", "narrow"] = "wide",
    edition: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Its curves; `edition` only makes a new picture a new address."""
    drawn = _pictures(request).svg(run, narrow=shape == "narrow")
    return Response(drawn, media_type="image/svg+xml", headers={"Content-Security-Policy": _PICTURE_POLICY})


@router.get("/runs/{run}/episodes")
def episodes(run: Run, asked: Asked) -> Response:
    """Its episodes, a page at a time."""
    with Reader(run) as reader:
        page, domains = runs.episodes(reader, asked), reader.domains()
    kept = asked.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    newest = urlencode({name: value for name, value in kept.items() if name != "before"})
    older = urlencode(kept | {"before": page.next}) if page.next else ""
    values = {"name": run.name, "page": page, "asked": asked, "domains": domains, "states": list(State)}
    return HTMLResponse(render("episodes.html", newest=newest, older=older, **values))


@router.get("/runs/{run}/episodes/{group}/{index}/{attempt}")
def episode(run: Run, group: Number, index: Number, attempt: Number) -> Response:
    """One episode, turn by turn."""
    with Reader(run) as reader:
        found = runs.episode(reader, EpisodeKey(group, index, attempt))
        if found is None:
            raise HTTPException(404)
        members = runs.group(reader, group)
    return HTMLResponse(render("episode.html", name=run.name, episode=found, members=members))


@router.get("/static/{name}")
def static(name: str) -> Response:
    """The few files that pages refer to."""
    if name not in _STATIC:
        raise HTTPException(404)
    path, kind = _STATIC[name]
    return Response(path.read_bytes(), media_type=kind)


def _run(run: Directory, request: Request) -> dict[str, Any]:
    with Reader(run) as reader:
        steps = reader.steps()
        shown: models.RunDetail = runs.detail(reader, steps)
    return {
        "run": shown,
        "edition": _pictures(request).edition(run),
        "drawable": bool(steps),
        "last": steps[: -_STEPS - 1 : -1],
        "domains": list(shown.reward),
        "resume": f"cwm-rl resume {shlex.quote(str(run))}",
    }


def _pictures(request: Request) -> Pictures:
    found: Pictures = request.app.state.pictures
    return found
