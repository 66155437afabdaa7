"""Where the sequences of a packed micro-batch lie, and which are computed together in attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from offbook.engine.transfer import on_device

# Scores of a group of several sequences over all heads, at most: what fits the caches of two cores.
GROUP_SCORES = 1_200_000
# A sequence joins a group if it has at least this share of its longest sequence's tokens.
SIMILAR_LENGTH = 0.85


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences of similar length, which can be padded to the longest.

    Attributes:
        start, stop: their tokens in the micro-batch.
        sequences, length: B, and T with padding.
        index: packed token for each padded position [B * T]; None where nothing is padded.
        places: padded position of each packed token [stop - start].
    """

    start: int
    stop: int
    sequences: int
    length: int
    index: torch.Tensor | None
    places: torch.Tensor | None

    def pad(self, x_THC: torch.Tensor) -> torch.Tensor:
        """[T, H, C] -> [B, T, H, C]; the values at padding have no meaning."""
        x = x_THC[self.start : self.stop]
        if self.index is not None:
            x = x.index_select(0, self.index)
        return x.reshape(self.sequences, self.length, *x.shape[1:])

    def unpad(self, x_BTHC: torch.Tensor) -> torch.Tensor:
        """The inverse of `pad`."""
        x = x_BTHC.reshape(self.sequences * self.length, *x_BTHC.shape[2:])
        return x if self.places is None else x.index_select(0, self.places)

    def pad_gradient(self, x_THC: torch.Tensor) -> torch.Tensor:
        """As `pad`, with zeros at padding."""
        if self.places is None:
            return self.pad(x_THC)
        x = x_THC.new_zeros(self.sequences * self.length, *x_THC.shape[1:])
        x[self.places] = x_THC[self.start : self.stop]
        return x.view(self.sequences, self.length, *x_THC.shape[1:])


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a packed micro-batch lie.

    Attributes:
        lengths: tokens of each sequence.
        offset: position of each sequence's first token: the length of the shared prefix.
        wanted: int64 [N]; the packed tokens whose last hidden states are needed.
        holds_prefix: whether the tokens of the prefix come before those of the sequences.
    """

    lengths: Sequence[int]
    offset: int
    wanted: torch.Tensor
    holds_prefix: bool = False
    _groups: dict[int, list[Group]] = field(default_factory=dict, repr=False)
    _masks: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def positions(self) -> torch.Tensor:
        """int64 [T]: each token's position in its sequence, the prefix included."""
        if self.holds_prefix:
            return torch.cat([part.positions for part in self.parts])
        ends = torch.tensor(self.lengths).cumsum(0)
        starts = (ends - torch.tensor(self.lengths)).repeat_interleave(torch.tensor(self.lengths))
        return on_device(torch.arange(int(ends[-1])) - starts + self.offset, self.device)

    @property
    def device(self) -> torch.device:
        return self.wanted.device

    def to(self, device: torch.device) -> Layout:
        """The same with its tensors on another device."""
        if device == self.device:
            return self
        return Layout(self.lengths, self.offset, self.wanted.to(device), self.holds_prefix)

    @cached_property
    def starts(self) -> torch.Tensor:
        """int32 [B + 1]: the first token of each sequence, and the end of the last."""
        ends = torch.tensor([0, *self.lengths]).cumsum(0)
        return on_device(ends.int(), self.device)

    @cached_property
    def starts_of_one(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As `starts`, of all sequences as one, and of the prefix."""
        ends = torch.tensor([[0, sum(self.lengths)], [0, self.offset]]).int()
        queries, keys = on_device(ends, self.device)
        return queries, keys

    @cached_property
    def parts(self) -> tuple[Layout, Layout]:
        """The prefix that it holds, as a sequence, and the sequences that follow."""
        return Layout([self.offset], 0, self.wanted), Layout(self.lengths, self.offset, self.wanted)

    def groups(self, heads: int) -> list[Group]:
        """The sequences in groups, small enough for the scores of `heads` heads."""
        if heads not in self._groups:
            self._groups[heads] = self._make_groups(heads)
        return self._groups[heads]

    def _make_groups(self, heads: int) -> list[Group]:
        groups, first = [], 0
        while first < len(self.lengths):
            length, last = self.lengths[first], first + 1
            area = heads * length * (length + self.offset)
            while (
                last < len(self.lengths)
                and SIMILAR_LENGTH * length <= self.lengths[last] <= length
                and (last + 1 - first) * area <= GROUP_SCORES
            ):
                last += 1
            groups.append(self._group(first, last))
            first = last
        return groups

    def _group(self, first: int, last: int) -> Group:
        lengths = self.lengths[first:last]
        start, longest = sum(self.lengths[:first]), max(lengths)
        stop, sequences = start + sum(lengths), last - first
        if min(lengths) == longest:
            return Group(start, stop, sequences, longest, None, None)
        at = torch.arange(longest)
        size = torch.tensor(lengths)[:, None]
        begin = size.cumsum(0) - size
        index = on_device((begin + at.minimum(size - 1)).flatten(), self.device)
        places = on_device((at < size).flatten().nonzero()[:, 0], self.device)
        return Group(start, stop, sequences, longest, index, places)

    def mask(
        self, first: int, last: int, heads: int, window: int | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """What to add to the scores of queries `first:last`: 0, or minus infinity where hidden.

        Returns:
            [heads * n, P + last], the same for every head.
        """
        key = (first, last, heads, window, dtype)
        if key not in self._masks:
            query = torch.arange(first, last)[:, None] + self.offset
            seen = torch.arange(self.offset + last)
            hidden = seen > query
            if window is not None:
                hidden |= seen <= query - window
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
            self._masks[key] = on_device(mask.repeat(heads, 1), self.device)
        return self._masks[key]
