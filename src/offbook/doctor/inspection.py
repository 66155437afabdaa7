"""What of the rows becomes tokens: their number, what is cut, and which are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from transformers import PreTrainedTokenizerBase

from offbook.doctor.findings import Finding, Hit
from offbook.errors import printable
from offbook.tokens.encoding import INCOMPLETE
from offbook.tokens.examples import IGNORED, Example, Examples, label_runs
from offbook.tokens.language import unknown_language

# How white space is shown in a token.
MARKS = {" ": "· a space", "\n": "⏎ a line break", "\t": "⇥ a tab"}
# Characters that end a line in some programs.
LINE_ENDS = {0x2028: "\\u2028", 0x2029: "\\u2029"}


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


def token_findings(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, limit: int | None, keep: str
) -> Iterator[Finding]:
    """What is lost of the rows, and whether the base knows their language.

    Args:
        examples: of all rows.
        tokenizer: that made them.
        limit: most tokens of an example; None for no limit.
        keep: how rows that are longer are kept whole.
    """
    for kind in ("dropped", "truncated", "divided"):
        if places := getattr(examples, kind):
            hits = [Hit(-1, place) for place in places]
            yield Finding.of(kind, hits, limit=f"{limit:,}", keep=keep)
    if examples.trimmed:
        yield Finding("trimmed", examples.trimmed)
    if finding := language_finding(examples, tokenizer):
        yield finding


def language_finding(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> Finding | None:
    """That the base hardly knows the language of the replies, if so."""
    ratio = unknown_language(examples, tokenizer)
    return Finding("unknown_language", 0, (), {"ratio": f"{ratio:.1f}"}) if ratio else None


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
