"""Replies that begin with a block of reasoning, `<think>...</think>`.

Reasoning models write such a block before their answer. Their templates drop it from earlier turns,
write an empty one before a reply without reasoning, or end the prompt with `<think>`.
"""

from __future__ import annotations

import re
from dataclasses import replace

from offbook.data.messages import Message

OPEN, CLOSE = "<think>", "</think>"
TAGS = (OPEN, CLOSE)
BLOCK = re.compile(rf"\s*{OPEN}(.*?){CLOSE}", re.DOTALL)
OPENING = re.compile(rf"{OPEN}\s*\Z")
AROUND_TAGS = re.compile(rf"\s*({OPEN}|{CLOSE})\s*")


def has_reasoning(message: Message) -> bool:
    """Whether a message is a reply that begins with a block of reasoning."""
    return message.role == "assistant" and BLOCK.match(message.content) is not None


def same_words(one: str, other: str) -> bool:
    """Whether texts differ at most in white space at their ends and around tags of reasoning."""
    return _trimmed(one) == _trimmed(other)


def _trimmed(text: str) -> str:
    return AROUND_TAGS.sub(r"\1", text).strip()


def after_opening(reply: str, opening: str) -> str:
    """What is left to write of a reply with reasoning, after a prompt that ends with `opening`."""
    if reply.startswith(opening):
        return reply[len(opening) :]
    return reply.lstrip().removeprefix(OPEN).lstrip("\n")


def without_text(message: Message) -> Message:
    """A message of the same kind without text of its own."""
    block = BLOCK.match(message.content) if has_reasoning(message) else None
    if block is None:
        return replace(message, content="x")
    return replace(message, content=f"{OPEN}\n{'x' * bool(block[1].strip())}\n{CLOSE}\n\nx")
