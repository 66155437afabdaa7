"""Replies that are written together are those that are written one by one."""

from __future__ import annotations

import random

import pytest
import torch

from offbook.inference import batch
from offbook.inference.batch import greedy_replies
from offbook.inference.generate import Sampling, generate
from support.engines import FAMILIES, make_model

GREEDY = Sampling(temperature=0, max_new_tokens=20)


def one_by_one(model: torch.nn.Module, prompts: list[list[int]], stop: set[int]) -> list[list[int]]:
    generator = torch.Generator()
    return [list(generate(model, prompt, stop, GREEDY, generator)) for prompt in prompts]


def some_prompts(count: int, vocabulary: int) -> list[list[int]]:
    draw = random.Random(0)
    return [
        [draw.randrange(vocabulary) for _ in range(draw.choice((1, 2, 5, 9, 30)))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("family", ["llama-gqa", "mistral-window", "qwen3"])
def test_ids_are_those_of_one_by_one(
    family: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_REPLIES", size)
    model = make_model(FAMILIES[family], torch.float32).eval()
    prompts, stop = some_prompts(11, 97), set(range(5))  # replies of many lengths
    expected = one_by_one(model, prompts, stop)
    assert len({len(reply) for reply in expected}) > 3
    assert greedy_replies(model, prompts, stop, 20) == expected


@pytest.mark.parametrize("family", ["llama-gqa", "mistral-window", "qwen3"])
def test_what_all_prompts_begin_with_changes_nothing(family: str) -> None:
    model = make_model(FAMILIES[family], torch.float32).eval()
    start, stop = list(range(5, 45)), set(range(5))
    prompts = [start + prompt for prompt in some_prompts(9, 97)]
    expected = one_by_one(model, prompts, stop)
    assert greedy_replies(model, prompts, stop, 20) == expected
    # One prompt may be all that the others begin with.
    prompts.append(start)
    assert greedy_replies(model, prompts, stop, 20) == [
        *expected,
        *one_by_one(model, [start], stop),
    ]


def test_progress_counts_replies() -> None:
    model, done = make_model(FAMILIES["llama-gqa"], torch.float32).eval(), []
    greedy_replies(model, some_prompts(40, 97), {1}, 2, done.append)
    assert done[-1] == 40
    assert done == sorted(done)


def test_no_prompt_and_no_token() -> None:
    model = make_model(FAMILIES["llama-gqa"], torch.float32).eval()
    assert greedy_replies(model, [], {1}, 20) == []
    assert greedy_replies(model, [[1, 2], [3]], set(range(97)), 20) == [[], []]
