"""Replies from their own threads to clients, until a client leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from offbook.serve.engine import EngineReply

T = TypeVar("T")


async def pieces(reply: EngineReply, ended: Callable[[], None]) -> AsyncGenerator[str, None]:
    """The text of a reply in pieces. To close the iterator ends the reply at once.

    The engine does not wait for a slow client: what it has not taken yet is kept, and `ended` is
    called when the reply is written, not when it is read.

    Args:
        reply: that has just begun.
        ended: called in this event loop, once, also where the reply cannot begin.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str | Exception | None] = asyncio.Queue()

    def call(function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(function, *arguments)

    def work() -> None:
        last = None
        try:
            for piece in reply:
                call(queue.put_nowait, piece)
        except Exception as error:  # noqa: BLE001  # raised where the reply is read
            last = error
        call(queue.put_nowait, last)
        call(ended)

    # Threads of this name do not keep chat templates from being rendered here; see `sandbox`.
    thread = threading.Thread(target=work, name="offbook reply", daemon=True)
    try:
        thread.start()
    except BaseException:  # there are too many, for example
        ended()
        raise
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        reply.stop()


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None when the client leaves before, which cancels it.

    Args:
        receive: of a request whose body has been read.
        work: what is done for it.
    """

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
    return None if working.cancelled() else working.result()


class EventStream(Response):
    """A stream of events, which is closed at once when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        await until_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async with aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
