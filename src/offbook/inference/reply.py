"""What writes replies: the interface of the engines, PyTorch and llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from offbook.inference.generate import Sampling
from offbook.tokens.template import ChatTemplate


class Reply(Protocol):
    """A reply that is being written. It is iterated over once, which gives its text in pieces.

    Attributes:
        tokens: how many it has so far, without the stop token.
        stopped: whether the model has ended it, rather than the limit.
    """

    @property
    def tokens(self) -> int: ...

    @property
    def stopped(self) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...


class ReplyEngine(Protocol):
    """A loaded model.

    Attributes:
        template: its chat template.
        context: most tokens of prompt and reply together; None where the base does not say.
        vocabulary: the number of tokens that it has embeddings for.
        has_adapter: whether there is a base without it to compare with.
        strength: what the adapter adds to its base is multiplied by it.
    """

    template: ChatTemplate
    context: int | None
    vocabulary: int
    has_adapter: bool
    strength: float

    def set_strength(self, strength: float) -> None:
        """Change the strength of the adapter, for the replies that begin after this.

        Raises:
            ConfigError: when the adapter has no other strength than 1.
        """

    def reply(self, prompt: Sequence[int], sampling: Sampling, base: bool = False) -> Reply:
        """Begin a reply to a prompt's ids, with the adapter or, if `base`, without it."""
