"""A conversation: messages of a user and of the role, in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from unicodedata import category

from offbook.errors import DataError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: who says it.
        content: what is said.
        trained: whether a reply is supervised, and not only context for later ones.
    """

    role: Role
    content: str
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row as messages: system text, if any, then alternating user and assistant turns.

    It ends with a reply that is trained on. `source` is the `file:line` of the row, or that of the
    script which the row says it was made from.
    """

    messages: tuple[Message, ...]
    source: str = ""

    @property
    def replies(self) -> tuple[int, ...]:
        """The positions of the assistant's messages that are trained on."""
        return tuple(k for k, m in enumerate(self.messages) if m.role == "assistant" and m.trained)

    @property
    def prompt_key(self) -> bytes:
        """8 bytes, equal for conversations that begin with the same system and user text.

        White space and case make no difference: "Hello" and "hello " are the same prompt.
        """
        opening = [m.content for m in self.messages[:2] if m.role != "assistant"]
        return _digest(" ".join(part.split()).casefold() for part in opening)

    @property
    def question_key(self) -> bytes:
        """8 bytes, equal for conversations that are the same up to their last reply.

        White space and case make no difference.
        """
        before = self.messages[: self.replies[-1]]
        return _digest(" ".join(m.content.split()).casefold() for m in before)

    @property
    def key(self) -> bytes:
        """8 bytes, equal for conversations whose texts are exactly equal, and trained on alike."""
        return _digest(m.content + "\0context" * (not m.trained) for m in self.messages)


def check_order(turns: Sequence[Message], where: str | None, has_system: bool = False) -> None:
    """Refuse turns that are no conversation.

    Args:
        turns: of a row, the first of which may be system text.
        where: the row's `file:line`.
        has_system: whether it has system text before them, under a key of its own.

    Raises:
        DataError: when user and assistant do not take turns, one says nothing, or the last message
            is no reply.
    """
    begins = bool(turns) and turns[0].role == "system" and not has_system
    for number, message in enumerate(turns[begins:], 1 + begins):
        expected = "user" if (number - begins) % 2 else "assistant"
        if message.role != expected:
            what = f'turn {number} has the role "{message.role}", not "{expected}"'
            fix = "user and assistant take turns, the user first; system text goes before them"
            if message.role == "system" and number == 1 + begins and (begins or has_system):
                other = "turn 1" if begins else 'the key "system"'
                what = f"turn {number} is system text, as is {other}"
                fix = "join the two"
            raise DataError(what, where=where, fix=fix)
        if not any(map(_is_visible, message.content)):
            name = "reply" if message.role == "assistant" else "prompt"
            turn = f" of turn {number}" if len(turns) - begins > 2 else ""
            raise DataError(f"the {name}{turn} is empty", where=where, fix="fill or remove the row")
    if not turns or turns[-1].role != "assistant":
        raise DataError("no reply at the end", where=where, fix="end with the assistant's turn")


def _is_visible(char: str) -> bool:
    """Not white space, nor a character such as U+200B, which has no width."""
    return not char.isspace() and category(char) not in ("Cc", "Cf")


def _digest(parts: Iterator[str]) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
