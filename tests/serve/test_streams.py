"""Replies on their way to clients: slow ones, and ones that leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from offbook.errors import ModelError
from offbook.serve.answers import Answers
from offbook.serve.api import ChatRequest
from offbook.serve.metrics import Metrics
from offbook.serve.streams import pieces, until_gone
from offbook.tokens.template import ChatTemplate
from support.serving import ASK, ScriptedEngine, ScriptedReply, client


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it has not happened")


def test_a_slow_client_keeps_no_slot() -> None:
    async def run() -> None:
        ended = list[bool]()
        reply = ScriptedReply(["a"] * 1000, 1000, None)
        texts = pieces(reply, lambda: ended.append(True))
        assert await anext(texts) == "a"
        await until(lambda: bool(ended))  # although nothing more is read
        assert len([text async for text in texts]) == 999
        assert ended == [True]

    asyncio.run(run())


def test_a_reply_that_is_not_read_to_its_end_is_given_up() -> None:
    async def run() -> None:
        ended, go_on = list[bool](), threading.Event()
        reply = ScriptedReply(["a"], 1, go_on)
        texts = pieces(reply, lambda: ended.append(True))
        reading = asyncio.create_task(anext(texts))
        await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await until(lambda: bool(ended))
        assert reply.given_up.is_set()

    asyncio.run(run())


def test_a_client_that_leaves_cancels_its_work() -> None:
    async def run() -> None:
        leave = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await leave.wait()
            return {"type": "http.disconnect"}

        async def work(seconds: float) -> str:
            try:
                await asyncio.sleep(seconds)
            finally:
                cleaned.append(seconds)
            return "done"

        cleaned = list[float]()
        assert await until_gone(receive, work(0)) == "done"
        asyncio.get_running_loop().call_later(0.01, leave.set)
        assert await until_gone(receive, work(100)) is None
        assert cleaned == [0, 100]

    asyncio.run(run())


def test_an_engine_that_fails_is_an_error(
    template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ScriptedReply) -> Any:
        yield "Aye"
        raise ModelError("llama.cpp has ended: nobody knows why")

    monkeypatch.setattr(ScriptedReply, "__iter__", fail)
    server = client(ScriptedEngine(template))
    answer = server.post("/v1/chat/completions", json=ASK)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    stream = server.post("/v1/chat/completions", json=ASK | {"stream": True})
    assert "llama.cpp has ended" in stream.text.split("\n\n")[-2]
    assert "[DONE]" not in stream.text
    assert "offbook_running 0" in server.get("/metrics").text


@pytest.mark.parametrize("failing", ["reply", "thread"])
def test_a_reply_that_cannot_begin_keeps_no_slot(
    template: ChatTemplate, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError("too many open files")

    async def run() -> None:
        engine = ScriptedEngine(template, slots=1)
        answers = Answers(engine, Metrics(), print)  # type: ignore[arg-type]
        job = answers.job(engine.roles["captain"], ChatRequest.model_validate(ASK))
        with monkeypatch.context() as patch:
            if failing == "reply":
                patch.setattr(engine, "reply", fail)
            else:
                patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(OSError, match="too many open files"):
                await answers.whole(job)
        assert answers.slots.running == 0
        assert (await answers.whole(job))["choices"][0]["finish_reason"] == "stop"

    asyncio.run(run())


def test_too_many_waiting_requests_are_refused(
    template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offbook.serve.answers.MAX_WAITING", 0)
    answer = client(ScriptedEngine(template)).post("/v1/chat/completions", json=ASK)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "overloaded"
