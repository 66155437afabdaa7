"""Dropout made of random bits."""

from __future__ import annotations

import pytest
import torch

from offbook.engine.dropout import drop, drop_probability, keep_mask


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_elements_are_dropped_with_the_probability_asked_for(dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, dtype=dtype)
    y = drop(x, keep_mask(x, p))
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert abs(drop_probability(p) - p) <= 2**-16
    dropped, deviation = (y == 0).double().mean().item(), (p * (1 - p) / x.numel()) ** 0.5
    assert abs(dropped - p) < 5 * deviation


def test_neighbours_rows_and_calls_are_independent() -> None:
    torch.manual_seed(0)
    x = torch.ones(500, 1000, dtype=torch.bfloat16)
    first, second = ((keep_mask(x, 0.5) == 0).double() - 0.5 for _ in range(2))
    for a, b in (
        (first, second),
        (first[:, 1:], first[:, :-1]),
        (first[:, 4:], first[:, :-4]),  # the next word of 64 bits
        (first[1:], first[:-1]),
    ):
        assert abs((a * b).mean().item()) < 5 * 0.25 / a.numel() ** 0.5


def test_the_seed_fixes_the_masks() -> None:
    x = torch.ones(7, 9)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(keep_mask(x, 0.5))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_kept_values_are_untouched() -> None:
    x = torch.tensor([0.0, -1.5, float("inf"), 3.25])
    mask = torch.tensor([-1, 0, -1, -1], dtype=torch.int32)
    assert drop(x, mask).tolist() == [0.0, 0.0, float("inf"), 3.25]
