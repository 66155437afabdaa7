"""Teach a chat model a role from its lines.

The names below are the public interface; everything else may change. They are loaded when first
used, so that `import offbook` is instant.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offbook.chat import Chat
    from offbook.config import Config
    from offbook.data import Conversation, Message, read_conversations
    from offbook.errors import OffbookError
    from offbook.template import ChatTemplate
    from offbook.tokenizer import load_tokenizer
    from offbook.training import train

__version__ = "0.1.0"

# Where it is installed, PEFT imports it, and it complains of an optional kernel that is not needed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_HOMES = {
    "Chat": "offbook.chat",
    "ChatTemplate": "offbook.template",
    "Config": "offbook.config",
    "Conversation": "offbook.data",
    "Message": "offbook.data",
    "OffbookError": "offbook.errors",
    "load_tokenizer": "offbook.tokenizer",
    "read_conversations": "offbook.data",
    "train": "offbook.training",
}

__all__ = [
    "Chat",
    "ChatTemplate",
    "Config",
    "Conversation",
    "Message",
    "OffbookError",
    "load_tokenizer",
    "read_conversations",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
