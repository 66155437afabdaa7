"""Random masks for LoRA dropout.

A mask is an integer of the element's size. All its bits are one where the element is kept, and zero
where it is dropped, so that one bitwise "and" applies it.
"""

from __future__ import annotations

from functools import lru_cache

import torch

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
LEVELS = 2**15  # probabilities are multiples of 1/32768
MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # of SplitMix64, as signed words


def drop_probability(p: float) -> float:
    """The probability with which `keep_mask` drops: the nearest multiple of 2**-15 to `p`."""
    return round(p * LEVELS) / LEVELS


def keep_mask(like: torch.Tensor, p: float) -> torch.Tensor:
    """Independent masks for every element of `like`, each zero with `drop_probability(p)`.

    The seed is drawn from PyTorch's own generator, so that `torch.manual_seed` fixes the masks, and
    a checkpointed layer gets the same masks when it is computed again.

    Returns:
        An integer tensor of the shape and element size of `like`.
    """
    count = like.numel()
    bits = _random_words(-(-count // 4), like.device).view(torch.int16)[:count].view(like.shape)
    # 15 random bits minus the threshold are negative with the wanted probability; the arithmetic
    # shift copies the sign to all bits.
    bits.bitwise_and_(LEVELS - 1).sub_(LEVELS - round(p * LEVELS)).bitwise_right_shift_(15)
    return bits.to(INTEGERS[like.element_size()])


def _random_words(count: int, device: torch.device) -> torch.Tensor:
    """Random int64 words, with a new seed for each call.

    A fixed table of random words is mixed with the seed by two odd multiplications and a shift, as
    in Steele, Lea and Flood's SplitMix (2014). Unlike a sequential generator, this uses all cores.
    """
    seed = int(torch.randint(-(2**63), 2**63 - 1, ()))
    words = _table(2 ** max(count - 1, 1).bit_length(), device)[:count] ^ seed
    words.mul_(MULTIPLIERS[0])
    words.bitwise_xor_(words >> 32)
    return words.mul_(MULTIPLIERS[1])


@lru_cache(maxsize=2)
def _table(size: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.empty(size, dtype=torch.int64).random_(-(2**63), None, generator=generator).to(device)
    )


def drop(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`x` with zeros for dropped elements; the others are not scaled."""
    return torch.bitwise_and(x.view(mask.dtype), mask).view(x.dtype)


def drop_(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As `drop`, in place."""
    x.view(mask.dtype).bitwise_and_(mask)
    return x
