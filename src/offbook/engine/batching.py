"""How the examples of an optimizer step become packed micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from offbook.engine.layout import Layout
from offbook.engine.transfer import on_device
from offbook.tokens.examples import IGNORED, Example

# A prefix is shared when that saves at least this many tokens of a step.
MIN_SHARED_TOKENS = 128


@dataclass(frozen=True)
class MicroBatch:
    """Sequences packed end to end, longest first, without padding.

    A sequence ends with the token that predicts its last supervised token. The prefix that the
    sequences share may come before them.

    Attributes:
        input_ids: int64 [T].
        targets: int64 [T]; the id that follows each token in its sequence if that is supervised,
            else -100.
        wanted: int64 [N]; the tokens with a target.
        numbers: int64 [T]; the number of each token in the step: of those of the prefix first, then
            of the examples in their order. It does not depend on the micro-batches.
        lengths: tokens of each sequence.
        offset: position of each sequence's first token: the length of the shared prefix.
        rows: the number of each sequence's example among those of the step.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    wanted: torch.Tensor
    numbers: torch.Tensor
    lengths: tuple[int, ...]
    offset: int
    rows: tuple[int, ...] = ()

    @property
    def supervised(self) -> int:
        """Tokens that are predicted and trained on."""
        return len(self.wanted)

    @property
    def holds_prefix(self) -> bool:
        """Whether the tokens of the prefix come before those of the sequences."""
        return len(self.input_ids) > sum(self.lengths)

    @property
    def row_of_wanted(self) -> NDArray[np.int64]:
        """The row [N] of each wanted token."""
        before = len(self.input_ids) - sum(self.lengths)
        ends = before + np.cumsum(self.lengths)
        sequences = np.searchsorted(ends, self.wanted.numpy(force=True), side="right")
        return np.array(self.rows, dtype=np.int64)[sequences]

    def layout(self, padding: int) -> Layout:
        """Where the sequences lie, with a dummy sequence of so many tokens after them."""
        lengths = (*self.lengths, padding) if padding else self.lengths
        return Layout(lengths, self.offset, self.wanted, holds_prefix=self.holds_prefix)

    def padded(self, x_T: torch.Tensor, value: int) -> torch.Tensor:
        """A packed tensor [T] as sequences padded on the right [B, T]."""
        return torch.nn.utils.rnn.pad_sequence(
            list(x_T.split(self.lengths)), batch_first=True, padding_value=value
        )


@dataclass(frozen=True)
class Step:
    """Examples as micro-batches, and the tokens that all of them begin with.

    Attributes:
        prefix: int64 [P], to be computed before the micro-batches. It is empty if there is none, or
            if a single micro-batch holds it. Nothing in it is supervised.
        micro_batches: what follows the prefix in each example.
        supervised: tokens that are predicted and trained on in the whole step, in the
            micro-batches of other processes too.
    """

    prefix: torch.Tensor
    micro_batches: list[MicroBatch]
    supervised: int

    def filled(self, count: int) -> Step:
        """The same with so many micro-batches: further ones are a dummy sequence, which counts not.

        Processes that share a base have to compute as many.
        """
        ids = torch.zeros(1, dtype=torch.int64, device=self.prefix.device)
        ignored, nothing = torch.full_like(ids, IGNORED), ids[:0]
        dummy = MicroBatch(ids, ignored, nothing, ids, (1,), len(self.prefix))
        more = [dummy] * (count - len(self.micro_batches))
        return replace(self, micro_batches=[*self.micro_batches, *more])

    @property
    def tokens(self) -> int:
        """Tokens that are computed; the prefix counts once."""
        return len(self.prefix) + sum(len(batch.input_ids) for batch in self.micro_batches)


def make_step(
    examples: Sequence[Example],
    max_tokens: int,
    device: torch.device,
    *,
    packed: bool = True,
    min_shared_tokens: int = MIN_SHARED_TOKENS,
    mine: Sequence[int] | None = None,
    apart: bool = False,
) -> Step:
    """Pack examples into micro-batches: longest first, each into the first that has room.

    Args:
        examples: of the whole step; those with nothing supervised are left out.
        max_tokens: most tokens of a micro-batch; a longer sequence gets one of its own.
        device: of the tensors.
        packed: whether sequences are computed without padding; if not, tokens are counted as if
            sequences were padded to the longest, and no prefix is shared.
        min_shared_tokens: share the tokens that all examples begin with if that saves at least
            this many tokens.
        mine: indices of the examples that this process computes; by default, all of them.
        apart: whether the prefix comes before the micro-batches even if there is one, or none:
            processes that share a base have to compute it alike.
    """
    rows = [k for k, e in enumerate(examples) if (e.labels[1:] != IGNORED).any()]
    before = np.cumsum([0, *map(len, examples)])  # tokens of the examples before each
    examples = [_needed(examples[k]) for k in rows]
    start = shared_prefix(examples) if examples else 0
    if start * (len(examples) - 1) < min_shared_tokens:
        start = 0
    # Those of the prefix are the same in all examples, whether it is computed once or not.
    numbers = [_numbers(len(e), start, before[row]) for row, e in zip(rows, examples, strict=True)]
    start = start if packed else 0
    own = set(rows if mine is None else mine)
    lengths = {k: len(examples[k]) - 1 - start for k, row in enumerate(rows) if row in own}
    # The prefix stays in memory through all micro-batches.
    groups = _groups(lengths, max_tokens - start, packed=packed)
    held = start if len(groups) == 1 and not apart else 0
    prefix = examples[0].input_ids[held:start] if groups or (apart and start) else np.empty(0)
    return Step(
        on_device(prefix.astype(np.int64), device),
        [
            _pack(
                [examples[k] for k in group],
                [numbers[k] for k in group],
                [rows[k] for k in group],
                *(start, held),
                device=device,
            )
            for group in groups
        ],
        sum(int((e.labels[1:] != IGNORED).sum()) for e in examples),
    )


def _groups(lengths: Mapping[int, int], budget: int, *, packed: bool) -> list[list[int]]:
    """The examples of each micro-batch, by index, from the length of each."""
    groups: list[list[int]] = []
    sizes: list[int] = []
    for index in sorted(lengths, key=lambda k: lengths[k], reverse=True):
        length = lengths[index]
        # Padded, a sequence is as long as the first of its group.
        grown = [
            size + (length if packed else lengths[group[0]])
            for size, group in zip(sizes, groups, strict=True)
        ]
        fits = next((k for k, size in enumerate(grown) if size <= budget), None)
        if fits is None:
            groups.append([index])
            sizes.append(length)
        else:
            groups[fits].append(index)
            sizes[fits] = grown[fits]
    return groups


def shared_prefix(examples: Sequence[Example]) -> int:
    """How many tokens all examples begin with, up to the first that predicts a supervised token.

    Every example keeps at least one token of its own.
    """
    shortest = min(map(len, examples))
    first = examples[0].input_ids[:shortest]
    common = shortest - 1
    for example in examples:
        differs = np.flatnonzero(example.input_ids[:common] != first[:common])
        common = int(differs[0]) if len(differs) else common
        # Token s is predicted at s - 1, which must not be in the prefix.
        supervised = np.flatnonzero(example.labels[: common + 1] != IGNORED)
        common = min(common, max(int(supervised[0]) - 1, 0)) if len(supervised) else common
    return common


def _needed(example: Example) -> Example:
    """An example up to its last supervised token: the loss does not depend on what follows."""
    stop = int(np.flatnonzero(example.labels != IGNORED)[-1]) + 1
    return replace(example, input_ids=example.input_ids[:stop], labels=example.labels[:stop])


def _numbers(length: int, prefix: int, before: int) -> NDArray[np.int64]:
    """The number of each token of an example; `before` tokens of the step come first."""
    place = np.arange(length)
    return np.where(place < prefix, place, place + before)


def _pack(
    examples: Sequence[Example],
    numbers: Sequence[NDArray[np.int64]],
    rows: Sequence[int],
    start: int,
    held: int,
    *,
    device: torch.device,
) -> MicroBatch:
    """Examples as a micro-batch; the last token of each is only a target.

    They share their first `start` tokens. The first `held` of these come before the sequences: all
    or none.
    """
    prefix = examples[0].input_ids[:held]
    input_ids = np.concatenate([prefix, *(e.input_ids[start:-1] for e in examples)])
    packed_numbers = np.concatenate([np.arange(held), *(n[start:-1] for n in numbers)])
    targets = np.concatenate([[IGNORED] * held, *(e.labels[start + 1 :] for e in examples)])
    return MicroBatch(
        on_device(input_ids.astype(np.int64), device),
        on_device(targets.astype(np.int64), device),
        on_device(np.flatnonzero(targets != IGNORED), device),
        on_device(packed_numbers, device),
        tuple(len(e) - 1 - start for e in examples),
        start,
        tuple(rows),
    )
