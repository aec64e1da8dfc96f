"""The application: pages for people, JSON below /api/v1, and one sentence for every mistake."""

import sqlite3
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from rl.ledger import LedgerError
from rl.service import api, html
from rl.service.guard import Guard
from rl.service.pictures import Pictures
from rl.service.runs import NoSuchRun


def create_app(runs: Path, port: int) -> ASGIApp:
    """The service over the runs below `runs`; it answers to this machine's own names with `port`, and no others."""
    app = FastAPI(
        title="cwm-rl", docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json", redirect_slashes=False
    )
    app.state.runs, app.state.pictures = runs, Pictures()
    app.include_router(api.router)
    app.include_router(html.router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(NoSuchRun, _unknown)
    for kind in (LedgerError, sqlite3.Error):
        app.add_exception_handler(kind, _unreadable)
    return Guard(app, port)


async def _refused(request: Request, error: Any) -> Response:
    text = "There is nothing at this address." if error.status_code == 404 else str(error.detail)
    return _sentence(request, error.status_code, text)


async def _unknown(request: Request, error: Any) -> Response:
    return _sentence(request, 404, "There is no run of that name here.")


async def _invalid(request: Request, error: Any) -> Response:
    found = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()[:3])
    return _sentence(request, 422, f"This cannot be asked: {found}.")


async def _unreadable(request: Request, error: Any) -> Response:
    return _sentence(request, 503, f"This run cannot be read now: {error}.")


def _sentence(request: Request, status: int, text: str) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": text}, status)
    return HTMLResponse(html.render("error.html", text=text, status=status), status)
