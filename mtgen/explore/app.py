"""The page's server: a fixed list of files and a JSON API, for this page on this machine only."""

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
    first_problem,
)
from mtgen.report.page import asset

HOSTS = ["127.0.0.1", "localhost"]
"""Host names that requests may use; any other name that resolves to this machine (DNS rebinding) is rejected."""

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
SCRIPTS = (
    "page.js",
    "controls.js",
    "prompt.js",
    "sound.js",
    "layout.js",
    "pictures.js",
    "interpolate.js",
    "predict.js",
    "server.js",
)

M = TypeVar("M", bound=BaseModel)


class MessageTooLargeError(UserError):
    """A message that is larger than the page ever sends."""


class SameOriginMiddleware:
    """Rejects requests from other sites' pages, and adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app: ASGIApp = self.app
        if scope["type"] == "http" and _is_cross_origin(scope):
            app = JSONResponse({"error": "requests from other sites are not accepted"}, 403)
        await app(scope, receive, with_headers)


def _is_cross_origin(scope: Scope) -> bool:
    """Whether a request comes from a page of another origin.

    Browsers send `Origin` with every POST request, and `Sec-Fetch-Site` with every request.
    """
    headers = Headers(scope=scope)
    if headers.get("origin") not in (None, f"http://{headers.get('host')}"):
        return True
    return scope["path"].startswith("/api/") and headers.get("sec-fetch-site", "same-origin") not in (
        "same-origin",
        "none",
    )


def build_app(explorer: Explorer) -> Starlette:
    """The ASGI application for a run.

    Requests are answered one at a time, in a thread, so that the event loop is never blocked.
    """
    return Starlette(
        routes=[*_files(), *_api(explorer)],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
            Middleware(SameOriginMiddleware),
        ],
        exception_handlers={
            UserError: _user_error_response,
            ValidationError: _user_error_response,
            ModuleNotFoundError: _missing_module_response,
            Exception: _server_error_response,
        },
    )


def _files() -> list[Route]:
    return [
        Route("/", _file("page.html", "text/html")),
        Route("/base.css", _text(asset("page.css"), "text/css")),
        Route("/base.js", _text(asset("base.js"), "text/javascript")),
        Route("/page.css", _file("page.css", "text/css")),
        Route("/icon.svg", _file("icon.svg", "image/svg+xml")),
        *[Route(f"/{name}", _file(name, "text/javascript")) for name in SCRIPTS],
    ]


def _api(explorer: Explorer) -> list[Route]:
    thread, lock = ThreadPoolExecutor(1, "explorer"), asyncio.Lock()

    async def answer(request: Request, work: Callable[[], Any]) -> Response:
        async with lock:
            if await request.is_disconnected():  # the page has sent another request since
                return Response(status_code=204)
            return JSONResponse(await asyncio.get_running_loop().run_in_executor(thread, work))

    def post(path: str, kind: type[M], work: Callable[[M], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            message = kind.model_validate_json(await _body(request))
            return await answer(request, lambda: work(message))

        return Route(path, endpoint, methods=["POST"])

    async def about(request: Request) -> Response:
        return await answer(request, explorer.about)

    async def newer(request: Request) -> Response:
        return JSONResponse({"newer": explorer.newer_checkpoint()})

    async def reload(request: Request) -> Response:
        await _body(request)
        return await answer(request, explorer.reload)

    return [
        Route("/api/about", about),
        Route("/api/newer", newer),
        Route("/api/reload", reload, methods=["POST"]),
        post("/api/sample", SampleMessage, explorer.sample),
        post("/api/interpolate", InterpolateMessage, explorer.interpolate),
        post("/api/predict", PredictMessage, explorer.predict),
        post("/api/translate", TranslateMessage, explorer.translate),
        post("/api/layout", LayoutMessage, explorer.layout),
    ]


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    return _text((files("mtgen.explore") / "page" / name).read_text(encoding="utf-8"), kind)


def _text(text: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return Response(text, media_type=kind)

    return endpoint


async def _body(request: Request) -> bytes:
    """Body of a request, whose content type must be JSON: a form on another site cannot send that.

    Raises:
        MessageTooLargeError: the body is too large; it is read to its end, so that the error reaches the page.
        UserError: the content type is not JSON.
    """
    parts, total = [], 0
    async for part in request.stream():
        total += len(part)
        if total <= MAX_BODY_BYTES:
            parts.append(part)
    if total > MAX_BODY_BYTES:
        raise MessageTooLargeError(f"message: is {total / 1e6:,.0f} MB; possible: up to {MAX_BODY_BYTES / 1e6:,.0f} MB")
    if (kind := request.headers.get("content-type", "").partition(";")[0].strip()) != "application/json":
        raise UserError(f"content-type={kind}: is not accepted; send application/json")
    return b"".join(parts)


async def _user_error_response(request: Request, error: Exception) -> Response:
    """A user error, in which the command line's options are renamed to the page's fields."""
    if isinstance(error, ValidationError):
        return JSONResponse({"error": first_problem(error)}, 422)
    text = re.sub(r"--(?=[a-z])", "", re.sub(r"--text\b", "caption", str(error)))
    return JSONResponse({"error": text}, 413 if isinstance(error, MessageTooLargeError) else 422)


async def _missing_module_response(request: Request, error: Exception) -> Response:
    name = getattr(error, "name", None)
    return JSONResponse({"error": f"{name}: is not installed and is needed here; pip install 'mtgen[train]'"}, 501)


async def _server_error_response(request: Request, error: Exception) -> Response:
    return JSONResponse(
        {"error": f"internal error ({type(error).__name__}); the terminal in which mtgen runs shows the details"}, 500
    )
