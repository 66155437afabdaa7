"""Which examples an optimizer step sees, and how they are cut into micro-batches.

The order is a pure function of the seed and the step, so there is no position to save: a resumed
run asks for the next step and gets the rows it would have got.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from offbook.tokens.examples import IGNORED, Example

# A prefix is shared when that spares at least this many tokens of a step.
MIN_SHARED_TOKENS = 128


@dataclass(frozen=True)
class MicroBatch:
    """Rows laid end to end, longest first, without padding; each up to what its last supervised
    token is predicted from. The prefix that they share may come before them.

    Attributes:
        input_ids: int64 [tokens].
        targets: int64 [tokens]; the id that follows each token in its row where that is
            supervised, -100 elsewhere.
        lengths: tokens of each row.
        offset: position of each row's first token, which is the length of the prefix it shares.
        supervised: tokens that are predicted and trained on.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    lengths: tuple[int, ...]
    offset: int
    supervised: int

    @property
    def holds_prefix(self) -> bool:
        """Whether the tokens of the prefix come before those of the rows."""
        return len(self.input_ids) > sum(self.lengths)

    def padded(self, packed: torch.Tensor, value: int) -> torch.Tensor:
        """A packed tensor [tokens] as rows padded on the right [rows, longest]."""
        return torch.nn.utils.rnn.pad_sequence(
            list(packed.split(self.lengths)), batch_first=True, padding_value=value
        )


@dataclass(frozen=True)
class Step:
    """Examples cut into micro-batches, and the tokens they all begin with.

    Attributes:
        prefix: int64 [tokens], to be computed before the micro-batches. It is empty where there is
            none, and where a single micro-batch holds it. Nothing in it is supervised.
        micro_batches: what follows the prefix in each example.
    """

    prefix: torch.Tensor
    micro_batches: list[MicroBatch]

    @property
    def supervised(self) -> int:
        return sum(batch.supervised for batch in self.micro_batches)

    @property
    def tokens(self) -> int:
        """Tokens that are computed, the prefix once."""
        return len(self.prefix) + sum(len(batch.input_ids) for batch in self.micro_batches)


def make_step(
    examples: Sequence[Example],
    max_tokens: int,
    device: torch.device,
    *,
    packed: bool = True,
    min_shared_tokens: int = MIN_SHARED_TOKENS,
) -> Step:
    """Cut examples into micro-batches, the longest rows first, each into the first with room.

    Args:
        examples: those with nothing supervised are left out.
        max_tokens: most tokens of a micro-batch; a longer row stands alone.
        device: where the tensors go.
        packed: whether rows go without padding; else tokens are counted as if rows were padded
            to the longest, and no prefix is shared.
        min_shared_tokens: take out the tokens that all examples begin with, where that spares at
            least so many.
    """
    examples = [_needed(e) for e in examples if (e.labels[1:] != IGNORED).any()]
    start = shared_prefix(examples) if packed and examples else 0
    if start * (len(examples) - 1) < min_shared_tokens:
        start = 0
    budget = max_tokens - start  # the prefix stays in memory through all micro-batches
    groups: list[list[Example]] = []
    sizes: list[int] = []
    for example in sorted(examples, key=len, reverse=True):
        length = len(example) - 1 - start
        # Padded, a row is as long as the first of its group.
        grown = [
            size + (length if packed else len(group[0]) - 1)
            for size, group in zip(sizes, groups, strict=True)
        ]
        fits = next((k for k, size in enumerate(grown) if size <= budget), None)
        if fits is None:
            groups.append([example])
            sizes.append(length)
        else:
            groups[fits].append(example)
            sizes[fits] = grown[fits]
    held = start if len(groups) == 1 else 0
    prefix = examples[0].input_ids[held:start] if examples else np.empty(0)
    return Step(
        torch.from_numpy(prefix.astype(np.int64)).to(device),
        [_pack(group, start, held, device) for group in groups],
    )


def shared_prefix(examples: Sequence[Example]) -> int:
    """How many tokens all examples begin with, short of the first that predicts a supervised one.

    Every example keeps at least one token of its own.
    """
    shortest = min(map(len, examples))
    first = examples[0].input_ids[:shortest]
    common = shortest - 1
    for example in examples:
        differs = np.flatnonzero(example.input_ids[:common] != first[:common])
        common = int(differs[0]) if len(differs) else common
        # Token s is predicted at s - 1, which must stay in the row.
        supervised = np.flatnonzero(example.labels[: common + 1] != IGNORED)
        common = min(common, max(int(supervised[0]) - 1, 0)) if len(supervised) else common
    return common


def _needed(example: Example) -> Example:
    """An example up to its last supervised token: nothing that follows has a part in the loss."""
    stop = int(np.flatnonzero(example.labels != IGNORED)[-1]) + 1
    return replace(example, input_ids=example.input_ids[:stop], labels=example.labels[:stop])


def _pack(examples: Sequence[Example], start: int, held: int, device: torch.device) -> MicroBatch:
    """The inputs and targets of needed examples: the last token is a target alone.

    Of the `start` tokens that they share, `held` come before the rows.
    """
    prefix = examples[0].input_ids[:held]
    input_ids = np.concatenate([prefix, *(e.input_ids[start:-1] for e in examples)])
    targets = np.concatenate([[IGNORED] * held, *(e.labels[start + 1 :] for e in examples)])
    return MicroBatch(
        torch.from_numpy(input_ids.astype(np.int64)).to(device),
        torch.from_numpy(targets.astype(np.int64)).to(device),
        tuple(len(e) - 1 - start for e in examples),
        start,
        int((targets != IGNORED).sum()),
    )
