"""The supervised loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from offbook.batching import collate, micro_batches
from offbook.engine.loss import mean_loss, supervised_loss
from offbook.examples import Examples, tokenize
from offbook.model import head, load_base
from offbook.template import ChatTemplate
from test_examples import numbered

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples(template: ChatTemplate) -> Examples:
    return tokenize(numbered(12, 12), template)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> torch.nn.Module:
    return load_base(tiny_base, torch.float32, CPU)


def test_it_is_the_models_own_loss(base: torch.nn.Module, examples: Examples) -> None:
    batch = collate([examples[0]], CPU)
    own = base(input_ids=batch.input_ids, labels=batch.labels).loss * batch.supervised
    torch.testing.assert_close(supervised_loss(base, batch), own)


def test_padding_changes_nothing(base: torch.nn.Module, examples: Examples) -> None:
    together = supervised_loss(base, collate(list(examples), CPU))
    apart = sum(supervised_loss(base, collate([e], CPU)) for e in examples)
    torch.testing.assert_close(together, apart)


def test_an_example_does_not_touch_the_others(base: torch.nn.Module, examples: Examples) -> None:
    losses = [supervised_loss(base, collate([e], CPU)) for e in examples[:3]]
    changed = collate([examples[0], examples[5], examples[2]], CPU)
    expected = losses[0] + losses[2] + supervised_loss(base, collate([examples[5]], CPU))
    torch.testing.assert_close(supervised_loss(base, changed), expected)


def test_the_head_sees_supervised_positions_only(base: torch.nn.Module, examples: Examples) -> None:
    seen: list[int] = []
    handle = head(base).register_forward_hook(
        lambda module, args, output: seen.append(output.numel() // output.shape[-1])
    )
    batch = collate(list(examples[:4]), CPU)
    supervised_loss(base, batch)
    handle.remove()
    assert seen == [batch.supervised]
    assert batch.supervised < batch.input_ids.numel()


def test_the_mean_is_over_tokens_not_batches(base: torch.nn.Module, examples: Examples) -> None:
    total = sum(supervised_loss(base, collate([e], CPU)).item() for e in examples)
    tokens = sum(collate([e], CPU).supervised for e in examples)
    for budget in (1, 90, 10**6):
        mean = mean_loss(base, micro_batches(list(examples), budget, CPU))
        assert mean == pytest.approx(total / tokens, rel=1e-5)


def test_the_mean_can_be_interrupted(base: torch.nn.Module, examples: Examples) -> None:
    assert mean_loss(base, micro_batches(list(examples), 1, CPU), lambda: True) is None


def test_the_mean_is_taken_without_dropout(base: torch.nn.Module, examples: Examples) -> None:
    base.train()
    batches = micro_batches(list(examples), 100, CPU)
    assert mean_loss(base, batches) == mean_loss(base, batches)
    assert base.training
    base.eval()


def test_cross_entropy_is_in_nats(base: torch.nn.Module, examples: Examples) -> None:
    batch = collate([examples[3]], CPU)
    logits = base(batch.input_ids).logits[0, :-1]
    picked = F.log_softmax(logits, -1)[torch.arange(len(logits)), batch.labels[0, 1:].clamp(min=0)]
    expected = -picked[batch.labels[0, 1:] >= 0].sum()
    torch.testing.assert_close(supervised_loss(base, batch), expected)
