"""A cache with room holds what transformers' own holds, and copies less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import Cache, DynamicCache

from offbook.inference.cache import ROOM, make_cache


def append(cache: Cache, tokens: int, batch: int, seed: int) -> torch.Tensor:
    """Let two layers append tokens; returns the keys of the second."""
    draw = torch.Generator().manual_seed(seed)
    for layer in range(2):
        keys, values = torch.randn(2, batch, 2, tokens, 3, generator=draw)
        found = cache.update(keys, values, layer)
    return found[0]


CHANGES: dict[str, tuple[Callable[[Cache], None], int]] = {
    "none": (lambda cache: None, 2),
    "crop": (lambda cache: cache.crop(-3), 2),
    "repeat": (lambda cache: cache.batch_repeat_interleave(3), 6),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([1])), 1),
    "reset": (lambda cache: cache.reset(), 2),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("tokens", [1, ROOM - 1, ROOM, ROOM + 1])
def test_it_holds_what_was_appended(change: str, tokens: int) -> None:
    found, expected = make_cache(), DynamicCache()
    do, batch = CHANGES[change]
    for cache in (found, expected):
        append(cache, 5, 2, 0)
        append(cache, 1, 2, 1)
        do(cache)
        append(cache, tokens, batch, 2)
        append(cache, 1, batch, 3)
    assert found.get_seq_length() == expected.get_seq_length()
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)


def test_a_token_copies_nothing_of_those_before() -> None:
    cache = make_cache()
    first = append(cache, 4, 1, 0)
    places = {append(cache, 1, 1, 1 + n).data_ptr() for n in range(ROOM)}
    assert places == {first.data_ptr()}
    assert append(cache, 1, 1, 99).data_ptr() != first.data_ptr()


def test_what_is_cropped_is_not_changed_by_what_comes_after() -> None:
    cache = make_cache()
    append(cache, 4, 1, 0)
    before = append(cache, 1, 1, 1)
    held = before.clone()
    cache.crop(-2)
    append(cache, 2, 1, 2)
    assert torch.equal(before, held)
