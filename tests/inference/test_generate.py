"""Generation against transformers' own."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from offbook.errors import ConfigError
from offbook.inference.generate import Remembered, Sampling, generate, make_sampling
from offbook.models.load import load_base

PROMPT = [1, 20, 30, 40]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> torch.nn.Module:
    return load_base(tiny_base, torch.float32, torch.device("cpu"))


def reply(
    base: torch.nn.Module, seed: int = 0, stop: tuple[int, ...] = (), **options: float
) -> list[int]:
    sampling = make_sampling({"max_new_tokens": 12, **options})
    return list(generate(base, PROMPT, stop, sampling, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_are_those_of_transformers(base: torch.nn.Module, penalty: float) -> None:
    theirs = base.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, 4, dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=None,
        pad_token_id=0,
    )
    ours = reply(base, temperature=0, repetition_penalty=penalty)
    assert ours == theirs[0, 4:].tolist()


def test_it_stops_before_a_stop_token(base: torch.nn.Module) -> None:
    whole = reply(base, temperature=0)
    stop = whole[3]
    assert reply(base, temperature=0, stop=(stop,)) == whole[: whole.index(stop)]


def test_a_seed_repeats_a_reply(base: torch.nn.Module) -> None:
    assert reply(base, seed=5, temperature=2.0) == reply(base, seed=5, temperature=2.0)
    assert reply(base, seed=5, temperature=2.0) != reply(base, seed=6, temperature=2.0)


def test_a_small_top_k_or_top_p_leaves_the_likeliest(base: torch.nn.Module) -> None:
    greedy = reply(base, temperature=0)
    assert reply(base, temperature=1.0, top_k=1) == greedy
    assert reply(base, temperature=1.0, top_p=1e-6) == greedy


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        make_sampling({"temperature": -1, "top_p": 2, "seed": 2**32})
    assert str(caught.value) == (
        "temperature: Input should be greater than or equal to 0\n"
        "top_p: Input should be less than or equal to 1\n"
        "seed: Input should be less than 4294967296"
    )


def test_a_temperature_may_be_as_small_as_a_number_can_be(base: torch.nn.Module) -> None:
    greedy = reply(base, temperature=0)
    for temperature in (5e-324, 1e-40, 1e-6):
        assert reply(base, temperature=temperature) == greedy


def test_defaults_are_a_sampling() -> None:
    assert make_sampling({}) == Sampling()


def test_what_is_remembered_of_a_conversation_changes_no_token(base: torch.nn.Module) -> None:
    greedy, remembered = Sampling(temperature=0, max_new_tokens=9), Remembered()

    def tokens(prompt: list[int], remembered: Remembered | None = None, most: int = 9) -> list[int]:
        ids = generate(base, prompt, (), greedy, torch.Generator(), remembered)
        return list(itertools.islice(ids, most))

    answer = tokens(PROMPT, remembered)
    for prompt in (
        [*PROMPT, *answer, 50, 60],  # goes on
        [*PROMPT, *answer[:3], 70],  # another message
        PROMPT,  # all of it is known
        [9, 8, 7],  # another conversation
    ):
        assert tokens(prompt, remembered, most=4) == tokens(prompt, most=4)
        assert tokens(prompt, remembered) == tokens(prompt), "after one that was stopped"
    # Two replies that are written by turns do not share what is remembered.
    one, other = (
        generate(base, [*PROMPT, 5, n], (), greedy, torch.Generator(), remembered) for n in (6, 7)
    )
    pairs = list(zip(one, other, strict=True))
    assert [list(ids) for ids in zip(*pairs, strict=True)] == [
        tokens([*PROMPT, 5, n]) for n in (6, 7)
    ]
