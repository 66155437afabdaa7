"""Where rows lie in a packed micro-batch, and which of them are computed together.

Letters: T packed tokens, N heads, K key heads, D head width; B rows of a group, L their padded
length, P the shared prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

# Elements of one block's scores over all heads: about what fits the caches of two cores.
BLOCK_SCORES = 1_200_000
# Rows of a group are at least this share of its longest.
LIKE_LENGTH = 0.85


@dataclass(frozen=True)
class Group:
    """Neighbouring rows of like length, to be padded to the longest.

    Attributes:
        start, stop: their packed tokens.
        rows, length: B and L.
        index: packed token of each padded place [B * L]; None where no row is padded.
        places: padded place of each packed token [stop - start].
    """

    start: int
    stop: int
    rows: int
    length: int
    index: torch.Tensor | None
    places: torch.Tensor | None

    def pad(self, x_TND: torch.Tensor) -> torch.Tensor:
        """[T, N, D] -> [B, L, N, D]; what stands at padding is never used."""
        x = x_TND[self.start : self.stop]
        if self.index is not None:
            x = x.index_select(0, self.index)
        return x.reshape(self.rows, self.length, *x.shape[1:])

    def unpad(self, x_BLND: torch.Tensor) -> torch.Tensor:
        """The inverse of `pad`."""
        x = x_BLND.reshape(self.rows * self.length, *x_BLND.shape[2:])
        return x if self.places is None else x.index_select(0, self.places)

    def pad_gradient(self, x_TND: torch.Tensor) -> torch.Tensor:
        """As `pad`, with zeros at padding."""
        if self.places is None:
            return self.pad(x_TND)
        x = x_TND.new_zeros(self.rows * self.length, *x_TND.shape[1:])
        x[self.places] = x_TND[self.start : self.stop]
        return x.view(self.rows, self.length, *x_TND.shape[1:])


@dataclass
class Rows:
    """Where the rows of a packed micro-batch are, and what they share.

    Attributes:
        lengths: tokens of each row.
        offset: position of each row's first token: the length of the shared prefix.
        wanted: int64; the packed tokens whose last hidden states are asked for.
        holds_prefix: whether the tokens of the prefix come before those of the rows.
        prefix: keys and values [P, K, D] of a prefix that was computed before, for every layer.
        record: where layers leave their own keys and values, while the prefix is computed.
    """

    lengths: Sequence[int]
    offset: int
    wanted: torch.Tensor
    holds_prefix: bool = False
    prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None
    record: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None
    _groups: dict[int, list[Group]] = field(default_factory=dict, repr=False)
    _masks: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def positions(self) -> torch.Tensor:
        """int64 [T]: each token's place in its row, the prefix counted."""
        if self.holds_prefix:
            return torch.cat([part.positions for part in self.parts])
        ends = torch.tensor(self.lengths).cumsum(0)
        starts = (ends - torch.tensor(self.lengths)).repeat_interleave(torch.tensor(self.lengths))
        return (torch.arange(int(ends[-1])) - starts + self.offset).to(self.wanted.device)

    @cached_property
    def parts(self) -> tuple[Rows, Rows]:
        """The prefix that it holds as a row of its own, and the rows that follow."""
        return Rows([self.offset], 0, self.wanted), Rows(self.lengths, self.offset, self.wanted)

    def groups(self, heads: int) -> list[Group]:
        """The rows in groups that keep the scores of `heads` heads small."""
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
                and LIKE_LENGTH * length <= self.lengths[last] <= length
                and (last + 1 - first) * area <= BLOCK_SCORES
            ):
                last += 1
            groups.append(self._group(first, last))
            first = last
        return groups

    def _group(self, first: int, last: int) -> Group:
        lengths = self.lengths[first:last]
        start, longest = sum(self.lengths[:first]), max(lengths)
        stop, rows = start + sum(lengths), last - first
        if min(lengths) == longest:
            return Group(start, stop, rows, longest, None, None)
        at = torch.arange(longest)
        size = torch.tensor(lengths)[:, None]
        begin = size.cumsum(0) - size
        index = (begin + at.minimum(size - 1)).flatten()
        places = (at < size).flatten().nonzero()[:, 0]
        return Group(
            start, stop, rows, longest, index.to(self.wanted.device), places.to(self.wanted.device)
        )

    def mask(
        self, first: int, last: int, heads: int, window: int | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """What to add to the scores of queries `first:last`: 0 or minus infinity.

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
            self._masks[key] = mask.repeat(heads, 1).to(self.wanted.device)
        return self._masks[key]
