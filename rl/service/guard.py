"""What every request passes first, and what every answer carries: the service shows what a model wrote."""

import asyncio
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rl.service.auth import COOKIE, Doorkeeper, Role

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
BODY_BYTES: Final = 1 << 16
BODY_SECONDS: Final = 10.0
RATE: Final = 50.0
"""Requests a second and client, in the long run."""
BURST: Final = 500.0
LOGINS: Final = 5.0
"""Wrong tokens a minute and client."""
_CLIENTS = 4096
_OPEN_TO_ALL = re.compile(r"/healthz|/readyz|/login|/static/[a-z.]+")


class Buckets:
    """A token bucket a client; the clients that were quiet longest are forgotten."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> bool:
        """Whether there was one left."""
        now = time.monotonic()
        left, at = self._held.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        enough = left >= 1
        self._held[client] = left - enough, now
        if len(self._held) > _CLIENTS:
            self._held.popitem(last=False)
        return enough


class Guard:
    """Refuses other names than the service's own (against DNS rebinding), other sites, strangers, and too much."""

    def __init__(self, app: ASGIApp, names: Collection[str], door: Doorkeeper) -> None:
        self._app, self._door = app, door
        self._names = {name.lower() for name in names}
        self._origins = {f"{scheme}://{name}" for scheme in ("http", "https") for name in self._names}
        self._buckets = Buckets(RATE, BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(8)
        sending = _with_headers(send, state["request_id"])
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        body = b""
        if refusal is None and scope["method"] == "POST":
            read = await _body(headers, receive)
            body, refusal = (read, None) if isinstance(read, bytes) else (b"", read)
        if refusal is not None:
            await refusal(scope, receive, sending)
            return
        await self._app(scope, _once(body, receive) if scope["method"] == "POST" else receive, sending)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if len(named := headers.getlist("host")) != 1 or named[0].lower() not in self._names:
            return _sentence(421, f"This service answers to {', '.join(sorted(self._names))} only.")
        if scope["method"] not in ("GET", "POST"):
            return _sentence(405, "GET and POST are all that this service takes.", Allow="GET, POST")
        client = (scope.get("client") or ("", 0))[0]
        if not self._buckets.take(client):
            return _sentence(429, "That were too many requests: wait a moment.", **{"Retry-After": "2"})
        if scope["method"] == "POST" and not self._same_site(headers):
            return _sentence(403, "This came from another site, or does not say from which.")
        return self._stranger(scope, headers)

    def _same_site(self, headers: Headers) -> bool:
        """A browser always says where a POST comes from; a script that shows a token need not."""
        origins = headers.getlist("origin")
        if not origins:
            return "authorization" in headers or (self._door.open and "sec-fetch-site" not in headers)
        return len(origins) == 1 and origins[0].lower() in self._origins

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuses who shows no token, and whose token is not good for it; leaves the role in the request's state."""
        path, role = scope["path"], Role.OPERATE if self._door.open else self._role(headers)
        scope["state"]["role"] = role
        if _OPEN_TO_ALL.fullmatch(path):
            return None
        if role is None:
            if path.startswith(("/api/", "/metrics")) or scope["method"] != "GET":
                bearer = {"WWW-Authenticate": "Bearer"}
                return _sentence(401, "Show a token: Authorization: Bearer TOKEN.", **bearer)
            return RedirectResponse("/login", 303)
        if scope["method"] == "POST" and role < Role.OPERATE and path != "/logout":
            return _sentence(403, "This token may only read: it takes one with the role operate.")
        return None

    def _role(self, headers: Headers) -> Role | None:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind:
            return self._door.role(token.strip()) if kind.lower() == "bearer" else None
        return self._door.session(session_of(headers))


def session_of(headers: Headers) -> str:
    """The session's secret that a browser sends, or nothing."""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return cookie.value if cookie else ""


async def _body(headers: Headers, receive: Receive) -> bytes | Response:
    """All of it, or why it is refused; a part of what is too long is never kept."""
    too_long = _sentence(413, f"That is longer than {BODY_BYTES} bytes.", Connection="close")
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > BODY_BYTES:
        return too_long
    read = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return _sentence(400, "The request broke off.")
                read += message.get("body", b"")
                if len(read) > BODY_BYTES:
                    return too_long
                if not message.get("more_body"):
                    return bytes(read)
    except TimeoutError:
        return _sentence(408, "The request took too long to come.", Connection="close")


def _once(body: bytes, receive: Receive) -> Receive:
    """What was read already, and then whatever comes."""
    told = False

    async def receiving() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def _sentence(status: int, text: str, **headers: str) -> Response:
    return JSONResponse({"detail": text}, status, headers)


def _with_headers(send: Send, request_id: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers["X-Request-ID"] = request_id
        await send(message)

    return sending
