"""The page's server: files that are named one by one, questions as JSON, and nothing for anybody but this page on this machine."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtgen.errors import UserError
from mtgen.explore.explorer import Explorer
from mtgen.explore.messages import (
    MAX_BODY_BYTES,
    InterpolateMessage,
    LayoutMessage,
    PredictMessage,
    SampleMessage,
    TranslateMessage,
    explained,
)
from mtgen.report.page import asset

HOSTS = ["127.0.0.1", "localhost"]
"""Names by which a browser on this machine reaches the page; another name that leads here (DNS rebinding) is refused."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
SCRIPTS = ("page.js", "wish.js", "sound.js", "layout.js", "pictures.js", "between.js", "read.js", "server.js")

M = TypeVar("M", bound=BaseModel)


class MessageTooLargeError(UserError):
    """A message that is larger than any that the page sends."""


class SameOriginMiddleware:
    """Refuses what another site's page sends, and gives every answer the headers that keep the page to itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app: ASGIApp = self.app
        if scope["type"] == "http" and _foreign(scope):
            app = JSONResponse({"error": "this page answers nobody but itself"}, 403)
        await app(scope, receive, with_headers)


def _foreign(scope: Scope) -> bool:
    """Whether a page of another origin asks: by `Origin`, which browsers send with every post, and by the site that they tell of."""
    headers = Headers(scope=scope)
    if headers.get("origin") not in (None, f"http://{headers.get('host')}"):
        return True
    return scope["path"].startswith("/api/") and headers.get("sec-fetch-site", "same-origin") not in (
        "same-origin",
        "none",
    )


def build_app(explorer: Explorer) -> Starlette:
    """The server around a run; one question is answered at a time, in a thread, so that the page stays awake."""
    thread, turn = ThreadPoolExecutor(1, "explorer"), asyncio.Lock()

    async def answer(request: Request, work: Callable[[], Any]) -> Response:
        async with turn:
            if await request.is_disconnected():  # the page has asked for something else since
                return Response(status_code=204)
            return JSONResponse(await asyncio.get_running_loop().run_in_executor(thread, work))

    def asking(kind: type[M], work: Callable[[M], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            message = kind.model_validate_json(await _body(request))
            return await answer(request, lambda: work(message))

        return endpoint

    async def about(request: Request) -> Response:
        return await answer(request, explorer.about)

    async def newer(request: Request) -> Response:
        return JSONResponse({"newer": explorer.newer_checkpoint()})

    async def newest(request: Request) -> Response:
        await _body(request)
        return await answer(request, explorer.reload)

    return Starlette(
        routes=[
            Route("/", _file("page.html", "text/html")),
            Route("/base.css", _text(asset("page.css"), "text/css")),
            Route("/base.js", _text(asset("base.js"), "text/javascript")),
            Route("/page.css", _file("page.css", "text/css")),
            Route("/icon.svg", _file("icon.svg", "image/svg+xml")),
            *[Route(f"/{name}", _file(name, "text/javascript")) for name in SCRIPTS],
            Route("/api/about", about),
            Route("/api/newer", newer),
            Route("/api/newest", newest, methods=["POST"]),
            Route("/api/draw", asking(SampleMessage, explorer.sample), methods=["POST"]),
            Route("/api/between", asking(InterpolateMessage, explorer.interpolate), methods=["POST"]),
            Route("/api/read", asking(PredictMessage, explorer.predict), methods=["POST"]),
            Route("/api/translate", asking(TranslateMessage, explorer.translate), methods=["POST"]),
            Route("/api/layout", asking(LayoutMessage, explorer.layout), methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
            Middleware(SameOriginMiddleware),
        ],
        exception_handlers={
            UserError: _user_error_response,
            ValidationError: _user_error_response,
            ModuleNotFoundError: _missing,
            Exception: _failed,
        },
    )


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    return _text((files("mtgen.explore") / "page" / name).read_text(encoding="utf-8"), kind)


def _text(text: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return Response(text, media_type=kind)

    return endpoint


async def _body(request: Request) -> bytes:
    """The message, which has to be JSON by its type: a form of another site cannot send that.

    Raises:
        TooLarge: it is; what is too much is read, so that the answer arrives, and not kept.
        UserError: it is not JSON by its type.
    """
    parts, total = [], 0
    async for part in request.stream():
        total += len(part)
        if total <= MAX_BODY_BYTES:
            parts.append(part)
    if total > MAX_BODY_BYTES:
        raise MessageTooLargeError(
            f"{total / 1e6:,.0f} MB are too much for a message; possible: {MAX_BODY_BYTES / 1e6:,.0f} MB"
        )
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise UserError("a message has to be application/json")
    return b"".join(parts)


async def _user_error_response(request: Request, error: Exception) -> Response:
    """An error of the user's in the page's words: the options of the command line are its fields."""
    if isinstance(error, ValidationError):
        return JSONResponse({"error": explained(error)}, 422)
    text = re.sub(r"--text\b", "caption", str(error))
    return JSONResponse(
        {"error": re.sub(r"--(?=[a-z])", "", text)}, 413 if isinstance(error, MessageTooLargeError) else 422
    )


async def _missing(request: Request, error: Exception) -> Response:
    name = getattr(error, "name", None)
    return JSONResponse({"error": f"{name} is not installed, which this needs: pip install 'mtgen[train]'"}, 501)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(
        {"error": f"{type(error).__name__}: this should not have happened; what did is in the terminal"}, 500
    )
