"""Counts over a data set, and a view of which tokens of an example are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from transformers import PreTrainedTokenizerBase

from offbook.data.conversations import Conversation
from offbook.errors import printable
from offbook.tokens.encoding import INCOMPLETE
from offbook.tokens.examples import IGNORED, Example, Examples, label_runs

# How white space is shown in a token.
MARKS = {" ": "· a space", "\n": "⏎ a line break", "\t": "⇥ a tab"}
# Characters that end a line in some programs.
LINE_ENDS = {0x2028: "\\u2028", 0x2029: "\\u2029"}


@dataclass
class Census:
    """Counts over conversations, made while they are streamed to the tokenizer.

    Attributes:
        rows: how many conversations there are.
        replies: how many assistant turns they have.
        open_prompts: how many prompts have more than one reply.
        duplicates: the `file:line` of rows that are equal to an earlier one.
    """

    rows: int = 0
    replies: int = 0
    open_prompts: int = 0
    duplicates: list[str] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set, repr=False)
    _replies_of: dict[bytes, int] = field(default_factory=dict, repr=False)

    def counts(self) -> dict[str, int]:
        """The numbers by name."""
        return {
            "rows": self.rows,
            "replies": self.replies,
            "duplicates": len(self.duplicates),
            "open_prompts": self.open_prompts,
        }

    def watch(self, conversations: Iterable[Conversation]) -> Iterator[Conversation]:
        """Count the conversations while yielding them unchanged."""
        for conversation in conversations:
            self.rows += 1
            self.replies += len(conversation.replies)
            if conversation.key in self._seen:
                self.duplicates.append(conversation.source)
            else:
                self._seen.add(conversation.key)
                prompt = conversation.question_key
                self._replies_of[prompt] = self._replies_of.get(prompt, 0) + 1
                self.open_prompts += self._replies_of[prompt] == 2
            yield conversation


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens over a data set.

    Attributes:
        mean, median, longest: tokens of an example.
        longest_source: the `file:line` of the longest example.
        prompt_mean, reply_mean: tokens of an example that are not supervised, and that are.
        total, supervised: tokens of all examples.
    """

    mean: float
    median: float
    longest: int
    longest_source: str
    prompt_mean: float
    reply_mean: float
    total: int
    supervised: int


def measure(examples: Examples) -> Lengths:
    """Count the tokens of all examples."""
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
    """Consecutive tokens, as text, that are all trained on or all not."""

    trained: bool
    tokens: tuple[str, ...]


def token_view(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """An example as spans of tokens that are trained on and spans that are not.

    There is one text for each token, and together they are the decoded example. A character of
    several tokens is in the text of the last of them; a token that completes no character has an
    empty text.
    """
    texts = _texts(example.input_ids.tolist(), tokenizer)
    labels = example.labels
    return [
        Span(bool(labels[start] != IGNORED), tuple(texts[start:end]))
        for start, end in label_runs(labels)
    ]


def visible(token: str) -> str:
    """A token with its white space made visible, and its control characters escaped."""
    drawn = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")
    return printable(drawn).translate(LINE_ENDS)


def _texts(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    def decode(some: list[int]) -> str:
        return str(tokenizer.decode(some, clean_up_tokenization_spaces=False))

    whole, texts = decode(ids), []
    done = 0  # characters of `whole` that tokens have already
    # New tokens are decoded after those of the piece before them: some tokenizers write a space
    # only where something comes before it.
    previous: list[int] = []
    new: list[int] = []
    begin = 0  # of the new tokens in `whole`
    for index in ids:
        new.append(index)
        piece = decode(previous + new)[len(decode(previous)) :]
        # What half a character decodes to differs from `whole`, where it is complete.
        pairs = zip(piece, whole[begin : begin + len(piece)], strict=False)
        agreed = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        end = max(begin + agreed, done)
        texts.append(whole[done:end])
        done = end
        if piece and agreed == len(piece) and not piece.endswith(INCOMPLETE):
            previous, new, begin = new, [], end
    if texts:
        texts[-1] += whole[done:]
    return texts
