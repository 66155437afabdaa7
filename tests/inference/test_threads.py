"""A token is computed with as many threads as is faster, if it need not be the same each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from offbook.inference import threads as module
from offbook.inference.generate import Sampling, generate
from offbook.inference.threads import EVERY, TRIES, FasterThreads
from offbook.models.load import backbone
from support.engines import FAMILIES, make_model


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("slow", [1, 3])
def test_what_was_faster_is_taken_until_the_next_try(
    slow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock)
    faster, used = FasterThreads(), []
    for _ in range(2 * EVERY):
        with faster.token(1):
            used.append(torch.get_num_threads())
            clock += 2.0 if used[-1] == slow else 1.0
    tries = [3] * TRIES + [1] * TRIES
    assert used == 2 * (tries + [4 - slow] * (EVERY - 2 * TRIES))
    assert torch.get_num_threads() == 3


def test_the_prompt_has_all_threads() -> None:
    faster = FasterThreads()
    for number in range(TRIES + 1):
        with faster.token(number):
            used = torch.get_num_threads()
    assert used == 3, "the first is no try"


def test_an_error_leaves_all_threads() -> None:
    faster = FasterThreads()
    for _ in range(TRIES + 1):
        with pytest.raises(KeyboardInterrupt), faster.token(1):
            raise KeyboardInterrupt
    assert torch.get_num_threads() == 3


def test_a_reply_with_a_seed_has_all_threads() -> None:
    model = make_model(FAMILIES["qwen3"], torch.float32).eval()

    def threads_of(sampling: Sampling) -> set[int]:
        tokens = generate(model, [5, 6], {1}, sampling, torch.Generator())
        used: set[int] = set()
        hook = backbone(model).register_forward_pre_hook(
            lambda *_: used.add(torch.get_num_threads())
        )
        list(tokens)
        hook.remove()
        return used

    assert threads_of(Sampling(max_new_tokens=8)) == {1, 3}
    assert threads_of(Sampling(max_new_tokens=8, seed=3)) == {3}
