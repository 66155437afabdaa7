"""Micro-batches of several adapters on one base, end to end, so that they are computed at once.

The classes stand in the places of those for one adapter. Norms, rotary positions, products with
frozen weights, and the loss do not ask whose a token is, and are computed for all of them. What
belongs to one adapter is computed for its own tokens: attention, as sequences do not see each
other anyway, the products with its matrices, and its dropout, by the numbers and seeds that its
tokens have alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import nn

from offbook.engine.batching import MicroBatch
from offbook.engine.dropout import Masks
from offbook.engine.layout import Layout
from offbook.engine.projection import Part, Projection


@dataclass(frozen=True)
class JointBatch(MicroBatch):
    """Micro-batches end to end.

    Attributes:
        each: of an adapter; a prefix is in them.
    """

    each: tuple[MicroBatch, ...] = ()

    @classmethod
    def of(cls, each: Sequence[MicroBatch]) -> JointBatch:
        """These micro-batches, in their order."""
        return cls(
            input_ids=torch.cat([batch.input_ids for batch in each]),
            targets=torch.cat([batch.targets for batch in each]),
            wanted=_joined([batch.wanted for batch in each], [len(b.input_ids) for b in each]),
            numbers=torch.cat([batch.numbers for batch in each]),
            lengths=tuple(length for batch in each for length in batch.lengths),
            offset=0,
            each=tuple(each),
        )

    def layout(self, padding: int) -> JointLayout:
        """As for one; the dummy sequence comes after the last."""
        *others, last = self.each
        each = (*(batch.layout(0) for batch in others), last.layout(padding))
        return JointLayout(self.lengths, 0, self.wanted, each=each)


@dataclass(frozen=True)
class JointLayout(Layout):
    """Where the sequences of several micro-batches lie.

    Attributes:
        each: of a micro-batch, by itself.
    """

    each: tuple[Layout, ...] = ()

    @cached_property
    def positions(self) -> torch.Tensor:
        """int64 [T]: as for one."""
        return torch.cat([layout.positions for layout in self.each])

    def to(self, device: torch.device) -> JointLayout:
        """The same with its tensors on another device."""
        each = tuple(layout.to(device) for layout in self.each)
        return JointLayout(self.lengths, 0, self.wanted.to(device), each=each)

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each micro-batch, its prefix and its dummy sequence included."""
        return [len(layout.positions) for layout in self.each]


@dataclass(frozen=True)
class JointMasks(Masks):
    """The masks of the tokens of several adapters, and the layers in which these are.

    Attributes:
        each: the masks of an adapter's tokens.
        layers: for each adapter, its layer for every linear layer of the model that computes.
        batch: that the tokens are of.
    """

    each: tuple[Masks, ...]
    layers: tuple[Mapping[nn.Module, nn.Module], ...]
    batch: JointBatch

    def of(self, numbers: torch.Tensor) -> JointMasks:
        """The masks of tokens with these numbers: those of the batch, and of a dummy sequence."""
        sizes = [len(batch.input_ids) for batch in self.batch.each]
        sizes[-1] += len(numbers) - sum(sizes)
        parts = numbers.split(sizes)
        each = tuple(masks.of(part) for masks, part in zip(self.each, parts, strict=True))
        return replace(self, numbers=numbers, each=each)

    def to(self, device: torch.device) -> JointMasks:
        """The same with its tensors on another device."""
        each = tuple(masks.to(device) for masks in self.each)
        return replace(self, numbers=self.numbers.to(device), each=each)

    def some(self, tokens_N: torch.Tensor) -> JointMasks:
        """The masks of the tokens that the batch wants: these are `tokens_N`."""
        wanted = (batch.wanted.to(self.numbers.device) for batch in self.batch.each)
        each = tuple(masks.some(part) for masks, part in zip(self.each, wanted, strict=True))
        return replace(self, numbers=self.numbers.index_select(0, tokens_N), each=each)

    def parts(self, layers: Sequence[nn.Module]) -> list[Part]:
        """The tokens of each adapter, and its projections in the place of these layers."""
        ends = list(accumulate(len(masks.numbers) for masks in self.each))
        parts = []
        for start, end, masks, own in zip([0, *ends], ends, self.each, self.layers, strict=False):
            projections = [p for p in (Projection.of(own[layer]) for layer in layers) if p]
            assert len(projections) == len(layers)
            parts.append(Part(slice(start, end), projections, masks))
        return parts


def _joined(indices: Sequence[torch.Tensor], sizes: Sequence[int]) -> torch.Tensor:
    """Indices into tensors of these sizes, as indices into the tensors end to end."""
    starts = accumulate(sizes, initial=0)
    return torch.cat([index + start for index, start in zip(indices, starts, strict=False)])
