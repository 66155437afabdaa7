"""Random masks for LoRA dropout, made of cheap random bits.

A mask is an integer of the element's width, all ones where the element is kept and all zeros
where it is dropped, so that one bitwise "and" applies it: a tenth of the time of multiplying by a
Bernoulli sample.
"""

from __future__ import annotations

import numpy as np
import torch

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
LEVELS = 2**15  # probabilities are multiples of 1/32768


def drop_probability(p: float) -> float:
    """The probability with which `keep_mask` really drops: within 2**-16 of `p`."""
    return round(p * LEVELS) / LEVELS


def keep_mask(like: torch.Tensor, p: float) -> torch.Tensor:
    """Independent masks for every element of `like`, each zero with `drop_probability(p)`.

    The bits come from a generator (Steele and Vigna's SFC64 of NumPy) that is seeded from PyTorch's
    own, so that `torch.manual_seed` fixes them and a checkpointed layer draws them again alike.

    Returns:
        An integer tensor of the shape and element width of `like`.
    """
    if like.device.type == "cpu":
        seed = int(torch.randint(2**63 - 1, ()))
        words = np.random.Generator(np.random.SFC64(seed)).integers(
            0, 2**64 - 1, -(-like.numel() // 4), np.uint64, endpoint=True
        )
        bits = torch.from_numpy(words.view(np.int16))[: like.numel()].view(like.shape)
    else:
        bits = torch.empty(like.shape, dtype=torch.int16, device=like.device)
        bits.random_(-(2**15), 2**15)
    # 15 random bits, less the threshold, are negative with the wanted probability; the arithmetic
    # shift spreads the sign over the word.
    bits.bitwise_and_(LEVELS - 1).sub_(LEVELS - round(p * LEVELS)).bitwise_right_shift_(15)
    return bits.to(INTEGERS[like.element_size()])


def drop(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`x` with its dropped elements zero; the others are not scaled."""
    return torch.bitwise_and(x.view(mask.dtype), mask).view(x.dtype)
