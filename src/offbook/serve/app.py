"""The paths of the server: OpenAI's API, the page, rows, and what watches over it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from offbook.errors import DataError, ModelError, shorten
from offbook.inference.generate import Sampling
from offbook.serve.access import Access
from offbook.serve.api import ApiError, ChatRequest, Completion, event, to_json, validated
from offbook.serve.engine import Engine, Role
from offbook.serve.metrics import Metrics
from offbook.serve.rows import add_row, read_row
from offbook.serve.slots import BusyError, Slots
from offbook.serve.streams import EventStream, pieces, until_gone

MAX_BODY = 2**20  # bytes of a request
MAX_WAITING = 128  # requests
PAGE = {"/": "index.html", "/page.css": "page.css", "/icon.svg": "icon.svg"}
PAGE |= {f"/{name}.js": f"{name}.js" for name in ("page", "words", "talk", "store")}
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEALTH = "/health"


@dataclass(frozen=True)
class Job:
    """A request that can be answered.

    Attributes:
        role: that answers.
        prompt: its ids.
        sampling, strengths, stops: how.
        begun: when it came.
    """

    role: Role
    prompt: list[int]
    sampling: Sampling
    strengths: tuple[float, ...]
    stops: list[str]
    begun: float


@dataclass
class End:
    """How a reply ended.

    Attributes:
        reason: OpenAI's `finish_reason`; or `gone`, when the client left, and `error`.
        tokens: of the reply.
    """

    reason: str = "gone"
    tokens: int = 0


class App:
    """The server around an engine; `make_app` makes what uvicorn runs.

    Args:
        engine: that writes replies.
        rows: the file to which corrected replies of each role are added.
        log: receives a line for each request, without its texts.
    """

    def __init__(
        self, engine: Engine, rows: Mapping[str, Path], log: Callable[[str], None]
    ) -> None:
        self._engine, self._rows, self._log = engine, rows, log
        self._slots, self._metrics = Slots(engine.slots, MAX_WAITING), Metrics()
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
        begun = time.perf_counter()
        asked = validated(ChatRequest, await _body(request))
        job = self._job(asked, begun)
        if self._slots.waiting >= MAX_WAITING:
            raise ApiError("too many requests are waiting", 503, "overloaded")
        answer = Completion(job.role.name, len(job.prompt))
        if asked.stream:
            options = asked.stream_options
            with_usage = options is not None and options.include_usage
            return EventStream(self._events(job, answer, with_usage))
        whole = await until_gone(request.receive, self._whole(job, answer))
        return Response(status_code=499) if whole is None else _json(whole)

    def _job(self, asked: ChatRequest, begun: float) -> Job:
        """What a request asks for.

        Raises:
            ApiError: when it cannot be answered.
        """
        role = self._role(asked.model)
        if role.adapter is None and asked.strength:
            raise ApiError("the base has no adapter, and so no strength", param="strength")
        strength = 1.0 if asked.strength is None else asked.strength
        try:
            prompt = role.template.build_prompt(asked.conversation(role.system))
        except DataError as error:
            raise ApiError(str(error), param="messages") from None
        if any(index >= self._engine.vocabulary for index in prompt):
            raise ApiError("the base has no embedding for one of the tokens", param="messages")
        room = self._engine.context - len(prompt)
        if room < 1:
            raise ApiError(
                f"the prompt has {len(prompt):,} tokens; prompt and reply together may have "
                f"{self._engine.context:,}",
                code="context_length_exceeded",
                param="messages",
            )
        strengths = self._engine.strengths(role, strength)
        return Job(role, prompt, asked.sampling(room), strengths, asked.stops(), begun)

    async def _texts(self, job: Job, end: End) -> AsyncGenerator[str, None]:
        """The text of a reply, when it is its turn; then `end` says how it ended."""
        slot = await self._slots.take(job.strengths, job.prompt)
        reply = self._engine.reply(
            job.role, job.prompt, job.sampling, job.strengths, job.stops, slot.number
        )
        first = 0.0
        try:
            async with aclosing(pieces(reply, partial(self._slots.free, slot))) as texts:
                async for text in texts:
                    first = first or time.perf_counter() - job.begun
                    yield text
            end.reason = "stop" if reply.stopped else "length"
        except ModelError:
            end.reason = "error"
            raise
        finally:
            end.tokens = reply.tokens
            self._note(job, end, first)

    async def _whole(self, job: Job, answer: Completion) -> dict[str, Any]:
        end = End()
        try:
            async with aclosing(self._texts(job, end)) as texts:
                text = "".join([piece async for piece in texts])
        except BusyError:
            raise ApiError("too many requests are waiting", 503, "overloaded") from None
        except ModelError as error:
            raise ApiError(str(error), 500) from None
        return answer.whole(text, end.reason, end.tokens)

    async def _events(
        self, job: Job, answer: Completion, with_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        end = End()
        yield event(answer.chunk({"role": "assistant", "content": ""}))
        try:
            async with aclosing(self._texts(job, end)) as texts:
                async for text in texts:
                    yield event(answer.chunk({"content": text}))
        except (BusyError, ModelError) as error:
            what = str(error) or "too many requests are waiting"
            yield event(ApiError(what, 500).body())
            return
        yield event(answer.chunk({}, end.reason))
        if with_usage:
            yield event(answer.last(end.tokens))
        yield b"data: [DONE]\n\n"

    def _note(self, job: Job, end: End, first: float) -> None:
        seconds = time.perf_counter() - job.begun
        self._metrics.add("requests", model=job.role.name, finish_reason=end.reason)
        self._metrics.add("prompt_tokens", len(job.prompt))
        self._metrics.add("reply_tokens", end.tokens)
        self._metrics.observe("seconds", seconds)
        if first:
            self._metrics.observe("first_token_seconds", first)
        self._log(
            f"{job.role.name}: {len(job.prompt)} tokens of prompt, {end.tokens} of reply, first "
            f"after {first:.2f} s, {end.reason} after {seconds:.2f} s"
        )

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
        text = self._metrics.render(self._slots.running, self._slots.waiting)
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
    app = App(engine, rows, log)
    handlers: dict[Any, Callable[[Request, Exception], Response | Awaitable[Response]]] = {
        ApiError: app.refuse,
        HTTPException: app.refuse,
    }
    starlette = Starlette(routes=app.routes(), exception_handlers=handlers)
    return Access(starlette, frozenset({*PAGE, HEALTH}), key, name, log)


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
