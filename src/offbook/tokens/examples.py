"""A whole data set as token ids, in a few flat arrays, and its split for validation.

As Python objects, a million short rows would take gigabytes; here, a token takes 8 bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import NDArray

from offbook.data.messages import Conversation
from offbook.errors import DataError, first_few

if TYPE_CHECKING:
    from offbook.tokens.template import ChatTemplate

BATCH_ROWS = 1024  # conversations tokenized at a time
IGNORED = -100  # the label of a position that is not supervised; PyTorch's ignore_index


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as token ids and labels.

    Attributes:
        input_ids: int32 [tokens].
        labels: int32 [tokens]; `input_ids` where supervised, else -100. Not shifted.
        source: the `file:line` of its row.
        truncated: whether the beginning of its prompt was removed so that it fits.
        reply: which supervised reply of the row its first one is, from 1.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    source: str = ""
    truncated: bool = False
    reply: int = 1

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass
class RowExamples:
    """What became of a row.

    Attributes:
        examples: they supervise each of its replies once, except those in `dropped`.
        dropped: the place of each reply that is too long by itself.
        trimmed: how many replies the template writes without their outer white space.
        divided: whether it was cut because it is too long, so that replies lack earlier turns.
    """

    examples: list[Example] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    trimmed: int = 0
    divided: bool = False


def joined_row(parts: Iterable[RowExamples]) -> RowExamples:
    """A row from its parts."""
    row = RowExamples()
    for part in parts:
        row.examples += part.examples
        row.dropped += part.dropped
        row.trimmed += part.trimmed
        row.divided |= part.divided
    return row


def label_runs(labels: NDArray[np.int32]) -> list[tuple[int, int]]:
    """The [start, end) of each run of positions that are all supervised, or all not."""
    supervised = labels != IGNORED
    edges = (np.flatnonzero(supervised[1:] != supervised[:-1]) + 1).tolist()
    return list(pairwise([0, *edges, len(labels)]))


def supervised_spans(labels: NDArray[np.int32]) -> list[tuple[int, int]]:
    """The [start, end) of each run of supervised positions."""
    return [(start, end) for start, end in label_runs(labels) if labels[start] != IGNORED]


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """A read-only sequence of `Example`; a subset shares the arrays of the whole.

    Attributes:
        rows: int64 [examples]; the index of each example in the arrays below.
        input_ids, labels: int32 [all tokens]; one example after the other.
        offsets: int64 [all examples + 1]; where each begins in `input_ids`.
        prompt_keys: uint64 [all examples]; equal where the prompt is the same.
        sources: the `file:line` of each.
        conversations: int64 [all examples]; the number of its conversation in the data set.
        first_replies: int64 [all examples]; `Example.reply` of each.
        divided: the `file:line` of rows that were cut, so that replies lack earlier turns.
        truncated: the `file:line` of rows that lost the beginning of their prompt.
        dropped: the place of each reply left out because it alone is too long.
        trimmed: how many replies the template writes without their outer white space.
    """

    rows: NDArray[np.int64]
    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    offsets: NDArray[np.int64]
    prompt_keys: NDArray[np.uint64]
    sources: tuple[str, ...]
    conversations: NDArray[np.int64]
    first_replies: NDArray[np.int64]
    divided: tuple[str, ...] = ()
    truncated: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    trimmed: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index])
        row = self.rows[index]
        span = slice(self.offsets[row], self.offsets[row + 1])
        return Example(
            self.input_ids[span],
            self.labels[span],
            self.sources[row],
            reply=int(self.first_replies[row]),
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each example."""
        return self.offsets[self.rows + 1] - self.offsets[self.rows]

    @property
    def supervised(self) -> NDArray[np.int64]:
        """The number of supervised tokens of each example."""
        return self._counts(self.labels != IGNORED)

    @property
    def complete(self) -> bool:
        """Whether no row was divided, truncated or dropped."""
        return not self.divided and not self.truncated and not self.dropped

    @property
    def replies(self) -> int:
        """How many replies are supervised."""
        supervised = self.labels != IGNORED
        begins = supervised & ~np.concatenate(([False], supervised[:-1]))
        return int(self._counts(begins).sum())

    def _counts(self, marked: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many positions are marked in each example, of all in the arrays."""
        # None is empty, which reduceat could not tell from a single position.
        return np.add.reduceat(marked, self.offsets[:-1], dtype=np.int64)[self.rows]

    def notices(self, max_length: int | None, keep: str = "") -> list[str]:
        """A line about each thing that was done to rows, with the first places.

        Args:
            max_length: the limit that they exceed.
            keep: how they are kept whole, for a last line.
        """
        lines = []
        for places, one, many, what in (
            (
                self.divided,
                "1 row is",
                "{:,} rows are",
                f"cut to fit in {max_length} tokens; each reply that fits is trained on once, with "
                "as much of what came before as fits",
            ),
            (
                self.truncated,
                "1 row",
                "{:,} rows",
                f"longer than {max_length} tokens; the prompt is truncated",
            ),
            (
                self.dropped,
                "1 reply",
                "{:,} replies",
                f"left out because longer than {max_length} tokens alone",
            ),
        ):
            if places:
                count = one if len(places) == 1 else many.format(len(places))
                lines.append(f"{count} {what}: {first_few(places, 5)}")
        if lines and keep:
            lines.append(f"to keep all of them whole, {keep}")
        if self.trimmed:
            replies = "1 reply" if self.trimmed == 1 else f"{self.trimmed:,} replies"
            lines.append(f"the chat template removes outer white space from {replies}")
        return lines

    def split(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """Training and validation examples; examples with the same prompt are on one side.

        Prompts are sorted by key and shuffled, and the first are held out until they make up
        `share` of the examples. So the split depends on the seed and on the prompts, but not on
        their order in the file.

        Raises:
            DataError: when all examples have the same prompt.
        """
        if share == 0:
            return self, replace(self, rows=self.rows[:0])
        keys = self.prompt_keys[self.rows]
        prompts, counts = np.unique(keys, return_counts=True)
        if len(prompts) < 2:
            raise DataError(
                "all rows have the same prompt, so none can be held out",
                fix="set data.validation=0, or name a file to validate on",
            )
        shuffled = np.random.default_rng(seed).permutation(len(prompts))
        before = np.cumsum(counts[shuffled]) - counts[shuffled]
        enough = max(int(np.sum(before < share * len(keys))), 1)
        held = np.isin(keys, prompts[shuffled[: min(enough, len(prompts) - 1)]])
        return replace(self, rows=self.rows[~held]), replace(self, rows=self.rows[held])


def setting_that_keeps(max_length: int | Literal["auto"]) -> str:
    """What keeps rows whole that are too long for this `data.max_length`."""
    if max_length == "auto":
        return "set data.max_length to a larger number, beyond the context of this base"
    return "set data.max_length=auto, which truncates only what the base or the memory cannot hold"


def beyond_context(
    max_length: int | Literal["auto"], context: int | None, lengths: np.ndarray
) -> str | None:
    """What to say where this `data.max_length` is more than a base's context.

    Args:
        max_length: the setting.
        context: tokens; None where the base does not say.
        lengths: of all examples.
    """
    if max_length == "auto" or context is None or max_length <= context:
        return None
    start = f"data.max_length is {max_length:,}, and the base was made for {context:,} tokens"
    if count := int((lengths > context).sum()):
        has = "example has" if count == 1 else "examples have"
        return f"{start}: {count:,} {has} more; data.max_length={context} truncates"
    return f"{start}; no example has more"


def tokenize(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    max_length: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Examples:
    """Tokenize a data set, a batch of rows at a time.

    Args:
        conversations: read once, as a stream.
        template: turns them into examples.
        max_length: largest number of tokens of an example; see `ChatTemplate.build_examples`.
        progress: called with the number of rows done so far.

    Raises:
        DataError: when a row cannot be used, or none is left.
    """
    input_ids, labels = array("i"), array("i")
    offsets, prompt_keys = array("q", [0]), array("Q")
    sources: list[str] = []
    numbers, first_replies = array("q"), array("q")
    divided: list[str] = []
    truncated: list[str] = []
    dropped: list[str] = []
    rows = trimmed = 0
    stream = iter(conversations)
    while batch := list(islice(stream, BATCH_ROWS)):
        built = template.build_examples(batch, max_length)
        for number, (conversation, row) in enumerate(zip(batch, built, strict=True), rows):
            for example in row.examples:
                input_ids.frombytes(example.input_ids.tobytes())
                labels.frombytes(example.labels.tobytes())
                offsets.append(len(input_ids))
                prompt_keys.frombytes(conversation.prompt_key)
                sources.append(example.source)
                numbers.append(number)
                first_replies.append(example.reply)
            source = conversation.source
            divided += [source] * row.divided
            truncated += [source] * any(example.truncated for example in row.examples)
            dropped += row.dropped
            trimmed += row.trimmed
        rows += len(batch)
        progress(rows)
    if not sources:
        raise DataError(
            "no row fits" if dropped else "no rows",
            where=dropped[0] if dropped else None,
            fix=f"raise data.max_length (now {max_length})" if dropped else None,
        )
    return Examples(
        rows=np.arange(len(sources)),
        input_ids=np.frombuffer(input_ids, dtype=np.int32),
        labels=np.frombuffer(labels, dtype=np.int32),
        offsets=np.frombuffer(offsets, dtype=np.int64),
        prompt_keys=np.frombuffer(prompt_keys, dtype=np.uint64),
        sources=tuple(sources),
        conversations=np.frombuffer(numbers, dtype=np.int64),
        first_replies=np.frombuffer(first_replies, dtype=np.int64),
        divided=tuple(divided),
        truncated=tuple(truncated),
        dropped=tuple(dropped),
        trimmed=trimmed,
    )
