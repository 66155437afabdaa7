"""A corrected reply, as the page sends it, and where it becomes a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from offbook.data.messages import Conversation, Message, check_order
from offbook.data.saved import append_row
from offbook.errors import ConfigError, DataError
from offbook.serve.api import ApiError, Record, validated
from offbook.tokens.template import ChatTemplate

CORRECTIONS = "corrections.jsonl"  # in the run


class RowTurn(Record):
    """A message of a row."""

    role: Literal["system", "user", "assistant"]
    content: str
    weight: Literal[0, 1] = 1


class RowRequest(Record):
    """The body of `POST /rows`.

    Attributes:
        model: the role that learns it.
        messages: a conversation, which ends with the corrected reply.
    """

    model: str
    messages: list[RowTurn] = Field(min_length=2)


def read_row(body: bytes) -> tuple[str, list[Message]]:
    """The role and the conversation in a body.

    Raises:
        ApiError: naming what is wrong.
    """
    row = validated(RowRequest, body)
    return row.model, [Message(m.role, m.content, bool(m.weight)) for m in row.messages]


def add_row(path: Path, messages: Sequence[Message], template: ChatTemplate) -> None:
    """Add a row to a file, if `train` can use it.

    Raises:
        ApiError: when it cannot, or nothing can be added to the file.
    """
    try:
        check_order(messages, None)
        if not messages[-1].trained:
            raise ApiError("the last reply has weight 0, so nothing is learned", param="messages")
        template.build_examples([Conversation(tuple(messages))])
        append_row(path, messages)
    except (ConfigError, DataError) as error:
        raise ApiError(str(error)) from None
