"""The application: pages for people, JSON below /api/v1, and one sentence for every mistake."""

import sqlite3
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from rl.config import ConfigError
from rl.ledger import LedgerError
from rl.service import api, html
from rl.service.auth import Doorkeeper
from rl.service.compare import NothingToCompare
from rl.service.guard import Guard
from rl.service.launch import Launcher, LaunchRefused, LaunchUnfit
from rl.service.parts import Parts
from rl.service.runs import NoSuchRun


def create_app(
    runs: Path, names: Collection[str], door: Doorkeeper | None = None, configs: Path | None = None
) -> ASGIApp:
    """The service over the runs below `runs`. It answers to `names` (HOST:PORT), and to no others."""
    door, launcher = door or Doorkeeper(), Launcher(runs, configs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with closing(launcher):
            yield

    app = FastAPI(
        title="cwm-rl",
        version="1",
        description="Runs, watched and steered. With tokens: `Authorization: Bearer TOKEN`.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.parts = Parts(runs, door, launcher)
    app.include_router(api.router)
    app.include_router(html.router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(NoSuchRun, _unknown)
    app.add_exception_handler(NothingToCompare, _conflict)
    app.add_exception_handler(LaunchRefused, _conflict)
    app.add_exception_handler(LaunchUnfit, _unfit)
    app.add_exception_handler(ConfigError, _unfit)
    app.add_exception_handler(LedgerError, _unreadable)
    app.add_exception_handler(sqlite3.Error, _unreadable)
    return Guard(app, names, door)


async def _refused(request: Request, error: Any) -> Response:
    text = "There is nothing at this address." if error.status_code == 404 else str(error.detail)
    return _sentence(request, error.status_code, text)


async def _unknown(request: Request, error: Any) -> Response:
    return _sentence(request, 404, "There is no run of that name here.")


async def _invalid(request: Request, error: Any) -> Response:
    found = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()[:3])
    return _sentence(request, 422, f"This cannot be asked: {found}.")


async def _unfit(request: Request, error: Any) -> Response:
    return _sentence(request, 422, f"This cannot be asked: {error}.")


async def _conflict(request: Request, error: Any) -> Response:
    return _sentence(request, 409, f"{error}.")


async def _unreadable(request: Request, error: Any) -> Response:
    return _sentence(request, 503, f"This run cannot be read now: {error}.")


def _sentence(request: Request, status: int, text: str) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": text}, status)
    answer = html.render("error.html", request, text=text, status=status)
    answer.status_code = status
    return answer
