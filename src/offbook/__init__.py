"""Teach a chat model a role from its lines.

The names below are the public interface; everything else may change. They are loaded when first
used, so that `import offbook` is instant.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offbook.data.conversations import read_conversations
    from offbook.data.messages import Conversation, Message
    from offbook.errors import OffbookError
    from offbook.inference.chat import Chat
    from offbook.runs.trained import open_run
    from offbook.settings.config import Config
    from offbook.tokens.template import ChatTemplate
    from offbook.tokens.tokenizer import load_tokenizer
    from offbook.training.train import train

__version__ = "0.1.0"

# If it is installed, PEFT imports it, and it warns about an optional kernel that is not needed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_HOMES = {
    "Chat": "offbook.inference.chat",
    "ChatTemplate": "offbook.tokens.template",
    "Config": "offbook.settings.config",
    "Conversation": "offbook.data.messages",
    "Message": "offbook.data.messages",
    "OffbookError": "offbook.errors",
    "load_tokenizer": "offbook.tokens.tokenizer",
    "open_run": "offbook.runs.trained",
    "read_conversations": "offbook.data.conversations",
    "train": "offbook.training.train",
}

__all__ = [
    "Chat",
    "ChatTemplate",
    "Config",
    "Conversation",
    "Message",
    "OffbookError",
    "load_tokenizer",
    "open_run",
    "read_conversations",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
