"""Losses and divergences are those of transformers and PEFT."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from offbook.engine.engine import Engine
from offbook.evaluation.losses import Meter
from offbook.models.adapter import set_strength
from offbook.tokens.examples import IGNORED, Example
from support.engines import FAMILIES, make_model


def make_examples(count: int, prefix: int) -> list[Example]:
    draw = random.Random(0)
    start = [draw.randrange(5, 97) for _ in range(prefix)]
    examples = []
    for _ in range(count):
        own = [draw.randrange(5, 97) for _ in range(draw.randrange(3, 30))]
        ids = np.array(start + own, dtype=np.int32)
        labels = ids.copy()
        labels[: prefix + draw.randrange(1, len(own))] = IGNORED
        examples.append(Example(ids, labels))
    return examples


def reference(model: torch.nn.Module, example: Example) -> torch.Tensor:
    """The log-probabilities [N, V] at the positions that predict supervised tokens."""
    with torch.no_grad():
        logits = model(torch.tensor(example.input_ids[None].astype(np.int64))).logits[0]
    return logits.log_softmax(-1)[np.flatnonzero(example.labels != IGNORED) - 1]


@pytest.mark.parametrize("prefix", [1, 40])
@pytest.mark.parametrize("family", ["llama-gqa", "qwen3"])
def test_equal_to_the_plain_model(family: str, prefix: int) -> None:
    model = make_model(FAMILIES[family], torch.float32).eval()
    examples = make_examples(70, prefix)
    engine = Engine(model)
    found = Meter(engine, examples).measure()
    with engine.plain():
        for row, example in enumerate(examples):
            targets = torch.tensor(example.labels[example.labels != IGNORED].astype(np.int64))
            tuned = reference(model, example)
            with model.disable_adapter():
                base = reference(model, example)
            for name, logs in (("base", base), ("tuned", tuned)):
                expected = -logs.gather(-1, targets[:, None]).sum().item()
                assert getattr(found, name)[row] == pytest.approx(expected, rel=1e-4)
            kl = (base.exp() * (base - tuned)).sum().item()
            assert found.kl[row] == pytest.approx(kl, rel=1e-2, abs=1e-4)
            assert found.tokens[row] == len(targets)


def test_the_output_head_is_computed_on_all_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        engine = Engine(make_model(FAMILIES["llama-gqa"], torch.float32))
        step = engine.make_step(make_examples(9, 40), 128, torch.device("cpu"))
        seen = {
            (torch.get_num_threads(), torch.is_grad_enabled(), engine.model.training)
            for _ in engine.hidden_states(step)
        }
    finally:
        torch.set_num_threads(before)
    assert seen == {(3, True, True)}


def test_without_strength_it_is_the_base() -> None:
    model = make_model(FAMILIES["llama-gqa"], torch.float32).eval()
    meter = Meter(Engine(model), make_examples(5, 3))
    assert meter.measure().kl.min() > 0
    set_strength(model, 0)
    found = meter.measure()
    assert np.allclose(found.base, found.tuned, rtol=1e-6)
    set_strength(model, 1)
    assert meter.measure().kl.min() > 0


def test_some_of_the_rows_are_measured_alone() -> None:
    model = make_model(FAMILIES["llama-gqa"], torch.float32).eval()
    meter = Meter(Engine(model), make_examples(40, 3))
    rows = [39, 2, 17]
    for strength in (1.0, 0.5):
        set_strength(model, strength)
        found, expected = meter.some(rows).measure(), meter.measure().some(rows)
        assert np.array_equal(found.tokens, expected.tokens)
        for name in ("base", "tuned", "kl"):
            assert np.allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6)


def test_rows_are_counted() -> None:
    done: list[int] = []
    model = make_model(FAMILIES["llama-gqa"], torch.float32).eval()
    Meter(Engine(model), make_examples(40, 3), done.append)
    assert done == [32, 40]
