"""The paths of the server: OpenAI's API, the page, rows, and what watches over it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from offbook.errors import shorten
from offbook.serve.access import Access
from offbook.serve.answers import Answers
from offbook.serve.api import ApiError, ChatRequest, to_json, validated
from offbook.serve.engine import Engine, Role
from offbook.serve.metrics import Metrics
from offbook.serve.rows import add_row, read_row
from offbook.serve.streams import EventStream, until_gone

MAX_BODY = 2**20  # bytes of a request
PAGE = {"/": "index.html", "/page.css": "page.css", "/icon.svg": "icon.svg"}
PAGE |= {f"/{name}.js": f"{name}.js" for name in ("page", "words", "talk", "store")}
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEALTH = "/health"
GONE = Response(status_code=499)  # nobody receives it


class App:
    """The server around an engine; `make_app` makes what uvicorn runs.

    Args:
        engine: that writes replies.
        rows: the file to which corrected replies of each role are added.
        log: receives a line for each request, without its texts.
        metrics: where requests are counted.
    """

    def __init__(
        self,
        engine: Engine,
        rows: Mapping[str, Path],
        log: Callable[[str], None],
        metrics: Metrics,
    ) -> None:
        self._engine, self._rows, self._log, self._metrics = engine, rows, log, metrics
        self._answers = Answers(engine, metrics, log)
        self._started = int(time.time())

    def routes(self) -> list[Route]:
        """What is answered."""
        page = files("offbook.serve") / "page"
        return [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name}", self._model),
            Route("/rows", self._add_row, methods=["POST"]),
            Route("/metrics", self._tell_metrics),
            Route(HEALTH, self._health),
            *(
                Route(path, partial(_send_file, (page / name).read_bytes(), Path(name).suffix))
                for path, name in PAGE.items()
            ),
        ]

    def refuse(self, request: Request, error: Exception) -> Response:
        """The answer to a request that cannot be answered."""
        if isinstance(error, HTTPException):
            error = ApiError(error.detail, error.status_code)
        assert isinstance(error, ApiError)
        self._metrics.add("refusals", status=str(error.status))
        self._log(f"{request.method} {shorten(request.url.path)} {error.status}")
        return _json(error.body(), error.status)

    # OpenAI's API.

    async def _chat(self, request: Request) -> Response:
        asked = validated(ChatRequest, await _body(request))
        job = self._answers.job(self._role(asked.model), asked)
        if asked.stream:
            return EventStream(self._answers.events(job, asked.with_usage))
        whole = await until_gone(request.receive, self._answers.whole(job))
        return GONE if whole is None else _json(whole)

    def _role(self, name: str) -> Role:
        if name not in self._engine.roles:
            there = ", ".join(self._engine.roles)
            raise ApiError(
                f"there is no model {shorten(name)!r}; there are {there}",
                404,
                "model_not_found",
                "model",
            )
        return self._engine.roles[name]

    def _described(self, role: Role) -> dict[str, Any]:
        rows = self._rows.get(role.name)
        return {
            "id": role.name,
            "object": "model",
            "created": self._started,
            "owned_by": "offbook",
            # Ours, for the page:
            "tuned": role.adapter is not None,
            "system": role.system or "",
            "context": self._engine.context,
            "rows": str(rows) if rows else None,
        }

    async def _models(self, request: Request) -> Response:
        roles = [self._described(role) for role in self._engine.roles.values()]
        return _json({"object": "list", "data": roles})

    async def _model(self, request: Request) -> Response:
        return _json(self._described(self._role(request.path_params["name"])))

    # Rows, and what watches over the server.

    async def _add_row(self, request: Request) -> Response:
        name, messages = read_row(await _body(request))
        path = self._rows.get(self._role(name).name)
        if path is None:
            raise ApiError("the base learns no rows", param="model")
        add_row(path, messages, self._role(name).template)
        self._log(f"{name}: a row was added to {path}")
        return _json({"rows": str(path)})

    async def _tell_metrics(self, request: Request) -> Response:
        slots = self._answers.slots
        text = self._metrics.render(slots.running, slots.waiting)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})


def make_app(
    engine: Engine,
    rows: Mapping[str, Path],
    key: str | None = None,
    name: str | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Access:
    """The server as an ASGI application.

    Args:
        engine: that writes replies.
        rows: the file to which corrected replies of each role are added.
        key: that requests need.
        name: by which the server may be found besides the local names; None where only they may.
        log: receives a line for each request, without its texts.
    """
    metrics = Metrics()
    app = App(engine, rows, log, metrics)
    handlers: dict[Any, Callable[[Request, Exception], Response | Awaitable[Response]]] = {
        ApiError: app.refuse,
        HTTPException: app.refuse,
        ClientDisconnect: lambda request, error: GONE,
    }
    starlette = Starlette(routes=app.routes(), exception_handlers=handlers)
    return Access(starlette, frozenset({*PAGE, HEALTH}), key, name, log, metrics)


async def _body(request: Request) -> bytes:
    """The body of a request of JSON.

    Raises:
        ApiError: when it is too long, or something else. Other pages cannot send JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError("the content type must be application/json", 415)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise ApiError(f"a request may have {MAX_BODY:,} bytes", 413)
    return bytes(body)


async def _send_file(content: bytes, suffix: str, request: Request) -> Response:
    return Response(content, media_type=TYPES[suffix])


def _json(data: object, status: int = 200) -> Response:
    return Response(to_json(data), status, media_type="application/json")
