"""Replies to requests of OpenAI's chat API, one by one or as streams, with what they took."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from offbook.errors import DataError, ModelError
from offbook.inference.generate import Sampling
from offbook.serve.api import Answer, ApiError, ChatRequest, event
from offbook.serve.engine import Engine, Role
from offbook.serve.metrics import Metrics
from offbook.serve.slots import Slots
from offbook.serve.streams import pieces

MAX_WAITING = 128  # requests


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


class Answers:
    """Answers requests with an engine, in turn.

    Args:
        engine: that writes replies.
        metrics: where they are counted.
        log: receives a line for each reply, without its text.
    """

    def __init__(self, engine: Engine, metrics: Metrics, log: Callable[[str], None]) -> None:
        self.slots = Slots(engine.slots)
        self._engine, self._metrics, self._log = engine, metrics, log

    def job(self, role: Role, asked: ChatRequest) -> Job:
        """What a request asks of a role.

        Raises:
            ApiError: when it cannot be answered.
        """
        begun = time.perf_counter()
        if self.slots.waiting >= MAX_WAITING:
            raise ApiError("too many requests are waiting", 503, "overloaded")
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
        slot = await self.slots.take(job.strengths, job.prompt)
        try:
            reply = self._engine.reply(
                job.role, job.prompt, job.sampling, job.strengths, job.stops, slot.number
            )
        except BaseException:  # too many files are open, for example
            self.slots.free(slot)
            raise
        first = 0.0
        try:
            async with aclosing(pieces(reply, partial(self.slots.free, slot))) as texts:
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

    async def whole(self, job: Job) -> dict[str, Any]:
        """An answer that is sent at once.

        Raises:
            ApiError: when the engine fails.
        """
        end = End()
        try:
            async with aclosing(self._texts(job, end)) as texts:
                text = "".join([piece async for piece in texts])
        except ModelError as error:
            raise ApiError(str(error), 500) from None
        return Answer(job.role.name, len(job.prompt)).whole(text, end.reason, end.tokens)

    async def events(self, job: Job, with_usage: bool) -> AsyncGenerator[bytes, None]:
        """An answer as a stream of events."""
        answer, end = Answer(job.role.name, len(job.prompt)), End()
        yield event(answer.chunk({"role": "assistant", "content": ""}))
        try:
            async with aclosing(self._texts(job, end)) as texts:
                async for text in texts:
                    yield event(answer.chunk({"content": text}))
        except ModelError as error:
            yield event(ApiError(str(error), 500).body())
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
