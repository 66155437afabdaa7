"""What a data set holds and what is odd in it, and which of its tokens are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from offbook.data.conversations import Conversation
from offbook.tokens.examples import IGNORED, Example, Examples

NAMED = 5  # places listed for each oddity


@dataclass
class Census:
    """Counts taken while conversations stream by on their way to the tokenizer.

    Attributes:
        rows: conversations seen.
        replies: assistant turns seen.
        duplicates: rows that repeat an earlier one to the letter.
        open_prompts: prompts with more than one reply.
        first_duplicates: where the first few duplicates stand.
    """

    rows: int = 0
    replies: int = 0
    duplicates: int = 0
    open_prompts: int = 0
    first_duplicates: list[str] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set, repr=False)
    _replies_of: dict[bytes, int] = field(default_factory=dict, repr=False)

    def counts(self) -> dict[str, int]:
        """The numbers alone."""
        names = ("rows", "replies", "duplicates", "open_prompts")
        return {name: getattr(self, name) for name in names}

    def watch(self, conversations: Iterable[Conversation]) -> Iterator[Conversation]:
        """Yield the conversations unchanged, counting."""
        for conversation in conversations:
            self.rows += 1
            self.replies += len(conversation.replies)
            if conversation.key in self._seen:
                self.duplicates += 1
                if len(self.first_duplicates) < NAMED:
                    self.first_duplicates.append(conversation.source)
            else:
                self._seen.add(conversation.key)
                prompt = conversation.prompt_key
                self._replies_of[prompt] = self._replies_of.get(prompt, 0) + 1
                self.open_prompts += self._replies_of[prompt] == 2
            yield conversation


@dataclass(frozen=True)
class Lengths:
    """Token counts over a data set."""

    mean: float
    median: float
    longest: int
    longest_source: str
    prompt_mean: float
    reply_mean: float
    total: int
    supervised: int


def measure(examples: Examples) -> Lengths:
    """Token counts of all examples."""
    lengths = examples.lengths
    longest = int(np.argmax(lengths))
    supervised = int(examples.supervised.sum())
    total = int(lengths.sum())
    return Lengths(
        mean=total / len(lengths),
        median=float(np.median(lengths)),
        longest=int(lengths[longest]),
        longest_source=examples[longest].source,
        prompt_mean=(total - supervised) / len(lengths),
        reply_mean=supervised / len(lengths),
        total=total,
        supervised=supervised,
    )


@dataclass(frozen=True)
class Span:
    """A run of tokens that are all trained on, or all not; `tokens` as a reader sees them."""

    trained: bool
    tokens: tuple[str, ...]


def token_view(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """An example as runs of trained and untrained tokens.

    A character that takes several tokens is shown once, at the last of them, and the others as
    empty text, so that there is one entry for each token.
    """
    on = example.labels != IGNORED
    edges = [0, *(np.flatnonzero(on[1:] != on[:-1]) + 1).tolist(), len(example)]
    ids = example.input_ids.tolist()
    return [
        Span(bool(on[start]), tuple(_texts(ids[start:end], tokenizer)))
        for start, end in pairwise(edges)
    ]


def _texts(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    held: list[int] = []
    for position, index in enumerate(ids):
        held.append(index)
        text = str(tokenizer.decode(held, clean_up_tokenization_spaces=False))
        if text.endswith("\N{REPLACEMENT CHARACTER}") and position < len(ids) - 1 and len(held) < 4:
            yield ""
        else:
            yield text
            held = []
