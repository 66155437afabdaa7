"""Micro-batches of a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offbook.engine.batching import make_step, shared_prefix
from offbook.tokens.examples import IGNORED, Example, Examples, tokenize
from offbook.tokens.template import ChatTemplate
from support.templates import numbered

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples(template: ChatTemplate) -> Examples:
    return tokenize(numbered(20, 20), template)


def test_sequences_are_packed_and_targets_are_the_tokens_that_follow(examples: Examples) -> None:
    (batch,) = make_step([examples[0], examples[11]], 10**6, CPU).micro_batches
    rows = sorted((examples[0], examples[11]), key=len, reverse=True)
    first, second = (len(row) - 1 for row in rows)  # the last token is a target alone
    assert batch.lengths == (first, second)
    assert batch.input_ids.tolist() == [int(i) for row in rows for i in row.input_ids[:-1]]
    assert batch.targets.tolist() == [int(i) for row in rows for i in row.labels[1:]]
    padded = batch.padded(batch.targets, IGNORED)
    assert padded.shape == (2, first)
    assert padded[1, :second].tolist() == rows[1].labels[1:].tolist()
    assert (padded[1, second:] == IGNORED).all()


def test_nothing_after_the_last_supervised_token_is_computed() -> None:
    (batch,) = make_step([row("abcdefgh", "-x--xx--")], 10**6, CPU).micro_batches
    assert batch.input_ids.tolist() == [ord(letter) for letter in "abcde"]
    assert batch.targets.tolist() == [ord("b"), IGNORED, IGNORED, ord("e"), ord("f")]


def test_a_short_row_fills_what_long_ones_leave() -> None:
    examples = [row("a" * n, "-" * (n - 1) + "x") for n in (8, 7, 5, 3)]
    batches = make_step(examples, 11, CPU, min_shared_tokens=10**6).micro_batches
    assert [batch.lengths for batch in batches] == [(7, 4), (6, 2)]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 60, 100, 10**6])
def test_micro_batches_hold_every_row_within_the_budget(
    examples: Examples, max_tokens: int, padded: bool
) -> None:
    step = make_step(list(examples), max_tokens, CPU, packed=not padded, min_shared_tokens=10**9)
    assert sum(len(b.lengths) for b in step.micro_batches) == len(examples)
    for batch in step.micro_batches:
        size = len(batch.lengths) * max(batch.lengths) if padded else sum(batch.lengths)
        assert size <= max_tokens or len(batch.lengths) == 1
    assert step.supervised == sum(int((e.labels >= 0).sum()) for e in examples)
    assert step.tokens == sum(len(e) - 1 for e in examples)


def row(ids: str, supervised: str) -> Example:
    """A row of one-letter tokens, of which those marked with x are supervised."""
    input_ids = np.array([ord(letter) for letter in ids], dtype=np.int32)
    trained = np.array([mark == "x" for mark in supervised])
    return Example(input_ids, np.where(trained, input_ids, IGNORED).astype(np.int32), ids, False)


def letters(word: str) -> list[int]:
    return [ord(letter) for letter in word]


@pytest.mark.parametrize(
    ("rows", "prefix"),
    [
        ([("abcdef", "----xx"), ("abcxyz", "-----x")], "abc"),
        ([("abcdef", "---xxx"), ("abcxyz", "---xxx")], "ab"),  # c predicts a supervised token
        ([("abc", "--x"), ("abc", "--x")], "a"),
        ([("ab", "-x"), ("ab", "-x")], ""),
        ([("abcd", "----"), ("abxx", "---x")], "ab"),
        ([("xbcd", "---x"), ("abcd", "---x")], ""),
        ([("abcdef", "-x--xx"), ("abcdxx", "-x--xx")], ""),  # several turns, the first the same
        ([("abcdef", "-----x")], "abcd"),
    ],
)
def test_the_shared_prefix_predicts_nothing_supervised(
    rows: list[tuple[str, str]], prefix: str
) -> None:
    examples = [row(*parts) for parts in rows]
    assert shared_prefix(examples) == len(prefix)


def test_a_prefix_is_shared_where_that_saves_enough() -> None:
    examples = [row("abcdef", "----xx"), row("abcxyz", "-----x"), row("abcd", "---x")]
    step = make_step(examples, 6, CPU, min_shared_tokens=4)
    assert step.prefix.tolist() == letters("ab")
    one, other = step.micro_batches
    assert (one.offset, one.lengths, one.supervised) == (2, (3, 1), 3)
    assert (other.offset, other.lengths, other.supervised) == (2, (3,), 1)
    assert one.input_ids.tolist() == letters("cdec")
    assert other.input_ids.tolist() == letters("cxy")
    assert not one.holds_prefix
    assert step.tokens == 9
    assert not len(make_step(examples, 6, CPU, min_shared_tokens=5).prefix)
    assert not len(make_step(examples, 6, CPU, packed=False, min_shared_tokens=4).prefix)


def test_a_single_micro_batch_holds_the_prefix() -> None:
    examples = [row("abcdef", "----xx"), row("abcxyz", "-----x"), row("abcd", "---x")]
    step = make_step(examples, 9, CPU, min_shared_tokens=4)
    assert not len(step.prefix)
    (batch,) = step.micro_batches
    assert batch.holds_prefix
    assert (batch.offset, batch.lengths, batch.supervised) == (2, (3, 3, 1), 4)
    assert batch.input_ids.tolist() == letters("abcdecxyc")
    assert [t for t in batch.targets.tolist() if t != IGNORED] == letters("efzd")
    assert step.tokens == 9


def test_a_row_with_nothing_supervised_is_not_computed() -> None:
    step = make_step([row("abc", "--x"), row("def", "---"), row("xyz", "x--")], 10**6, CPU)
    assert [batch.lengths for batch in step.micro_batches] == [(2,)]
    assert make_step([row("def", "---")], 10**6, CPU, min_shared_tokens=0).micro_batches == []
