"""Dropout masks: which elements of an adapter's input are dropped.

A mask is a function of four things: the seed of its projection, which is drawn for each step, the
number of the token in its step, the column, and the probability. So it does not depend on how a
step is divided into micro-batches or over processes, nor on which backend computes it: this file,
`native/lora.h` and `cuda_kernels.py` compute the same bits.

Every 32 columns of a token have 16 words. A word is a 32-bit counter, mixed as in Wellons's
lowbias32 (2018), with a half of the seed before each of the two multiplications. The low half of
word k decides on column k of the 32, the high half on column k + 16: the element is dropped where
the 16 bits are less than 65,536 times the probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from offbook.engine.transfer import on_device
from offbook.errors import EngineError

LEVELS = 2**15  # probabilities are multiples of 1/32768
WORDS = 16  # for 32 columns
MULTIPLIERS = 0x7FEB352D, 0x846CA68B - 2**32  # of lowbias32, as signed words
# Words that are mixed at a time on a processor, so that they stay in its cache.
CHUNK = 2**16


def drop_probability(p: float) -> float:
    """The probability with which elements are dropped: the nearest multiple of 2**-15 to `p`."""
    return round(p * LEVELS) / LEVELS


@dataclass(frozen=True)
class Masks:
    """What the masks of some tokens are computed from.

    Attributes:
        seeds: of each projection with an adapter, in the order of the model's modules; 64 bits.
        seeds_on_device: the same, int64, where the tokens are.
        numbers: int64 [T]; the number of each token in its step.
    """

    seeds: tuple[int, ...]
    seeds_on_device: torch.Tensor
    numbers: torch.Tensor

    @classmethod
    def draw(cls, seed: Sequence[int], projections: int, device: torch.device) -> Masks:
        """The masks of a step, for no tokens yet.

        Args:
            seed: of the run and the step. PyTorch's own generator has it afterwards, too.
            projections: how many there are with an adapter.
            device: of the tokens.
        """
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        seeds = torch.randint(-(2**63), 2**63 - 1, (projections,))
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return cls(tuple(seeds.tolist()), on_device(seeds, device), nothing)

    def of(self, numbers: torch.Tensor) -> Masks:
        """The masks of tokens with these numbers."""
        return replace(self, numbers=numbers)

    def to(self, device: torch.device) -> Masks:
        """The same with its tensors on another device."""
        seeds, numbers = (x.to(device) for x in (self.seeds_on_device, self.numbers))
        return replace(self, seeds_on_device=seeds, numbers=numbers)

    def some(self, tokens_N: torch.Tensor) -> Masks:
        """The masks of some of the tokens, by index."""
        return self.of(self.numbers.index_select(0, tokens_N))

    def keep(self, projection: int, width: int, p: float) -> torch.Tensor:
        """Which elements of a projection's input are kept.

        Args:
            projection: its place among those with an adapter.
            width: I, of the input.
            p: the probability with which an element is dropped.

        Returns:
            bool [T, I].
        """
        blocks, device = -(-width // (2 * WORDS)), self.numbers.device
        words = blocks * WORDS
        # Products with two's complement wrap around, as those of unsigned words do.
        first_T = (self.numbers * words).to(torch.int32)
        place = torch.arange(words, dtype=torch.int32, device=device)
        kept = torch.empty(len(first_T), blocks, 2, WORDS, dtype=torch.bool, device=device)
        rows = max(CHUNK // words, 1) if device.type == "cpu" else max(len(first_T), 1)
        threshold = round(drop_probability(p) * 2**16) - 2**15
        for out, first in zip(kept.split(rows), first_T.split(rows), strict=True):
            bits = _mix(first[:, None] + place, self.seeds[projection]).view(torch.int16)
            # As unsigned numbers, less 2**15 on both sides.
            bits = bits.bitwise_xor_(-(2**15)).view(-1, blocks, WORDS, 2)
            torch.ge(bits, threshold, out=out.transpose(2, 3))
        return kept.view(len(first_T), 2 * words)[:, :width]


def _mix(words: torch.Tensor, seed: int) -> torch.Tensor:
    """The random words of int32 counters, in place."""
    low, high = np.array([seed % 2**64], np.uint64).view(np.int32).tolist()
    words.bitwise_xor_(low)
    words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF)).mul_(MULTIPLIERS[0])
    words.bitwise_xor_((words >> 15).bitwise_and_(0x1FFFF)).bitwise_xor_(high)
    words.mul_(MULTIPLIERS[1])
    return words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF))


class TokenDropout(nn.Dropout):
    """In the place of PEFT's dropout: draws the masks that the engine's own layers draw.

    Attributes:
        projection: the place of its layer among those with an adapter.
        masks: of the tokens that are computed now; the engine sets it while PEFT's layers compute.
    """

    def __init__(self, p: float, projection: int) -> None:
        super().__init__(p)
        self.projection = projection
        self.masks: Masks | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., I] -> [..., I].

        Raises:
            EngineError: when these are not the tokens that the masks are for.
        """
        if not self.training or not self.p:
            return input
        tokens, width = input.shape[:-1].numel(), input.shape[-1]
        if self.masks is None or len(self.masks.numbers) != tokens:
            raise EngineError(
                "dropout does not know which tokens the input of a layer consists of",
                fix="set lora.lora_dropout=0, or other lora.target_modules",
            )
        masks = self.masks.to(input.device)
        kept = masks.keep(self.projection, width, self.p).view(input.shape)
        return torch.where(kept, input, 0) / (1 - drop_probability(self.p))
