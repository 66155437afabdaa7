"""Dropout masks: random, and a function of the token and nothing else."""

from __future__ import annotations

import pytest
import torch

from offbook.engine.dropout import Masks, TokenDropout, drop_probability
from offbook.errors import EngineError
from support.engines import CPU


def draw(seed: int = 0, tokens: int = 500) -> Masks:
    return Masks.draw([seed], 2, CPU).of(torch.arange(tokens))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("width", [1001, 31])
def test_elements_are_dropped_with_the_probability_asked_for(p: float, width: int) -> None:
    kept = draw(tokens=20_000).keep(0, width, p)
    assert kept.shape == (20_000, width)
    assert abs(drop_probability(p) - p) <= 2**-16
    dropped, deviation = (~kept).double().mean().item(), (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(dropped - p) < 5 * deviation


def test_neighbours_tokens_projections_and_steps_are_independent() -> None:
    masks = draw()
    first, second, other = (
        m.keep(k, 992, 0.5).double() - 0.5 for m, k in ((masks, 0), (masks, 1), (draw(1), 0))
    )
    for a, b in (
        *((first, second), (first, other)),
        (first[:, 1:], first[:, :-1]),
        (first[:, 16:], first[:, :-16]),  # the other half of a word
        (first[:, 32:], first[:, :-32]),
        (first[1:], first[:-1]),
    ):
        assert abs((a * b).mean().item()) < 5 * 0.25 / a.numel() ** 0.5


def test_a_mask_depends_on_seed_projection_and_token_alone() -> None:
    masks, tokens = draw(7), torch.tensor([400, 3, 3, 77])
    whole = masks.keep(1, 96, 0.1)
    assert torch.equal(masks.some(tokens).keep(1, 96, 0.1), whole[tokens])
    assert torch.equal(draw(7).keep(1, 96, 0.1), whole)
    assert torch.equal(draw(7, 40_000).keep(1, 96, 0.1)[:500], whole)  # in several chunks
    assert not torch.equal(draw(8).keep(1, 96, 0.1), whole)


def test_the_masks_are_those_of_the_formula() -> None:
    """Which later versions need, too, to resume runs."""
    seeds, numbers = (2**63 - 5, -7), (0, 1, 70_000)
    masks = Masks(seeds, torch.empty(0), torch.tensor(numbers))
    for projection, seed in enumerate(seeds):
        expected = [
            [bits(seed, number, column, width=40) >= 0.25 * 2**16 for column in range(40)]
            for number in numbers
        ]
        assert masks.keep(projection, 40, 0.25).tolist() == expected


def bits(seed: int, number: int, column: int, width: int) -> int:
    """The 16 random bits of an element."""
    block, place = divmod(column, 32)
    word = (number * -(-width // 32) + block) * 16 + place % 16
    word = (word ^ seed) % 2**32
    word = (word ^ word >> 16) * 0x7FEB352D % 2**32
    word = (word ^ word >> 15 ^ seed >> 32) % 2**32 * 0x846CA68B % 2**32
    word ^= word >> 16
    return word >> 16 if place >= 16 else word % 2**16


def test_peft_gets_the_same_masks() -> None:
    dropout, masks = TokenDropout(0.3, 1), draw()
    x = torch.randn(5, 100, 64, requires_grad=True)
    dropout.masks = masks
    kept = masks.keep(1, 64, 0.3).view(x.shape)
    assert torch.equal(dropout(x), torch.where(kept, x, 0) / (1 - drop_probability(0.3)))
    x.detach()[0, 0, 0] = torch.inf  # not a number, were it multiplied by zero
    assert torch.equal(dropout(x).isfinite().all(), ~kept[0, 0, 0] | x[0, 0, 0].isfinite())
    assert torch.equal(dropout.eval()(x), x)


def test_masks_of_other_tokens_are_refused() -> None:
    dropout = TokenDropout(0.3, 0)
    for masks in (None, draw(tokens=7)):
        dropout.masks = masks
        with pytest.raises(EngineError, match=r"which tokens .* set lora.lora_dropout=0"):
            dropout(torch.ones(2, 3, 64))
