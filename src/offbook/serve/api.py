"""What a request of OpenAI's chat API says, and the answers in its form.

What such a request may say and we do not do is refused by name, unless it has its neutral value,
which some clients always send.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from offbook.data.conversations import ROLES
from offbook.data.messages import Message
from offbook.errors import first_line, shorten
from offbook.inference.generate import Sampling

MAX_STOPS = 4


def _without_nulls(value: Any) -> Any:
    """An object without keys whose value is null, which mean the same as no key."""
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return value


class Record(BaseModel):
    """What a body says: no other keys, and no value in place of another kind."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Record):
    """A part of a message; pictures and sound are refused."""

    type: Literal["text"]
    text: str


class Turn(Record):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] = ""

    def message(self) -> Message:
        """The message as our own code knows it."""
        content = self.content
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        return Message(ROLES[self.role], content)


class StreamOptions(Record):
    """What a stream has besides the reply."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class TextFormat(Record):
    """The only format of a reply."""

    type: Literal["text"]


R = TypeVar("R", bound=Record)
Zero = Annotated[float, Field(ge=0, le=0)]


class ChatRequest(Record):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[Annotated[Turn, BeforeValidator(_without_nulls)]] = Field(min_length=1)
    stream: bool = False
    stream_options: Annotated[StreamOptions, BeforeValidator(_without_nulls)] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=Sampling().temperature, ge=0, le=10)
    top_p: float = Field(default=Sampling().top_p, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    stop: str | list[str] = []
    # Ours:
    strength: float | None = Field(default=None, ge=0, le=4)
    top_k: int = Field(default=Sampling().top_k, ge=0, lt=2**31)
    repetition_penalty: float = Field(default=Sampling().repetition_penalty, ge=1, le=10)
    # Accepted, since they change nothing in a reply:
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    store: bool = False
    # Accepted with their neutral values only:
    n: Annotated[int, Field(ge=1, le=1)] = 1
    frequency_penalty: Zero = 0.0
    presence_penalty: Zero = 0.0
    logprobs: Literal[False] = False
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, most: int) -> Sampling:
        """How tokens are chosen, at most so many."""
        wanted = self.max_completion_tokens or self.max_tokens or Sampling().max_new_tokens
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=min(wanted, most),
            seed=self.seed,
        )

    def conversation(self, system: str | None) -> list[Message]:
        """The messages, which a role's own system text precedes where they have none.

        Raises:
            ApiError: when user and assistant do not take turns.
        """
        messages = [turn.message() for turn in self.messages]
        if messages[0].role != "system" and system:
            messages.insert(0, Message("system", system))
        if messages[0].role == "system" and not messages[0].content:
            messages.pop(0)  # none is wanted
        turns = messages[1:] if messages and messages[0].role == "system" else messages
        wanted = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
        if [m.role for m in turns] != wanted or len(turns) % 2 == 0:
            raise ApiError(
                "after one system message at most, user and assistant take turns, and the user is "
                "first and last",
                param="messages",
            )
        if empty := [i for i, m in enumerate(turns) if m.role == "user" and not m.content.strip()]:
            raise ApiError(f"message {empty[0] + 1} of the turns is empty", param="messages")
        return messages

    def stops(self) -> list[str]:
        """The texts that end a reply.

        Raises:
            ApiError: when there are too many, or one is empty.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        if len(stops) > MAX_STOPS or "" in stops:
            raise ApiError(f"up to {MAX_STOPS} texts, none of them empty", param="stop")
        return stops


class ApiError(Exception):
    """A request that cannot be answered, in OpenAI's form.

    Args:
        message: what is wrong.
        status: of HTTP.
        code: a word that programs know.
        param: the key that is wrong.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param

    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def validated(kind: type[R], body: bytes) -> R:
    """What is in a body of JSON.

    Raises:
        ApiError: naming what is wrong first.
    """
    try:
        # It refuses half a character and deep nesting, which json.loads lets through.
        return kind.model_validate(_without_nulls(from_json(body)))
    except ValidationError as error:
        raise _named(error) from None
    except ValueError as error:
        raise ApiError(f"the body is not JSON: {first_line(error)}") from None


def _named(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = shorten(".".join(map(str, first["loc"]))) or None
    if first["type"] == "extra_forbidden":
        return ApiError(f"unknown key {place!r}", code="unknown_parameter", param=place)
    return ApiError(f"{place or 'the body'}: {first['msg']}", param=place)


@dataclass
class Answer:
    """The answers to one request.

    Attributes:
        model: the name that answers.
        prompt_tokens: of the prompt.
        id, created: of the answer.
    """

    model: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, finish_reason: str, tokens: int) -> dict[str, Any]:
        """The answer that is sent at once."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
        head = self._head("chat.completion")
        return {**head, "choices": [choice], "usage": self.usage(tokens)}

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """A part of a stream."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def last(self, tokens: int) -> dict[str, Any]:
        """The part of a stream that says what it took."""
        head = self._head("chat.completion.chunk")
        return {**head, "choices": [], "usage": self.usage(tokens)}

    def usage(self, tokens: int) -> dict[str, int]:
        """What a reply of so many tokens took."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(data: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + to_json(data) + b"\n\n"


def to_json(data: object) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
