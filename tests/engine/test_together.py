"""Several adapters in one pass: each gets the gradients that it gets alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from offbook.engine.engine import Engine, Losses
from offbook.engine.ops.library import library
from offbook.engine.together import AdapterStep, accumulate_together, can_join
from offbook.models.load import base_of, checkpoint_layers
from offbook.models.pipeline import spread
from offbook.settings.sections import LoraSettings
from offbook.tokens.examples import Example
from support.engines import DEVICE, FAMILIES, SIZES, make_model, some_examples

Found = tuple[float, dict[str, torch.Tensor], torch.Tensor]  # loss, gradients, losses of tokens
# They differ in all that may differ, but that they have one base.
ADAPTERS = (
    LoraSettings(r=4, lora_dropout=0.1),
    LoraSettings(r=8, lora_alpha=4, lora_dropout=0.3, use_rslora=True),
    LoraSettings(r=2, lora_dropout=0.0, target_modules=("q_proj", "down_proj")),
    LoraSettings(r=3, lora_dropout=0.1, target_modules=("v_proj", "gate_proj", "o_proj")),
)
ROWS = (0, 40, 1, 7)  # tokens of the prefix that the rows of each share


def make_engines(family: str, dtype: torch.dtype, *, checkpointing: bool = False) -> list[Engine]:
    """Models with the same random base."""
    engines = []
    for lora in ADAPTERS:
        engines.append(Engine(make_model(FAMILIES[family], dtype, lora), min_shared_tokens=1))
        if checkpointing:
            checkpoint_layers(engines[-1].model)
    return engines


def shares(engines: Sequence[Engine]) -> list[AdapterStep]:
    made = []
    for n, (engine, prefix) in enumerate(zip(engines, ROWS, strict=True)):
        examples: list[Example] = some_examples(prefix)[n:]
        step = engine.make_step(examples, 10**6, DEVICE)
        assert can_join(engine, step)
        made.append(AdapterStep(engine, step, [n, 5]))
    return made


def take(model: nn.Module, loss: float, losses: Losses) -> Found:
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss, gradients, torch.cat([of_tokens for _, of_tokens in losses])


def alone(share: AdapterStep) -> Found:
    losses: Losses = []
    loss = share.engine.accumulate(share.step, share.seed, losses=losses)
    assert loss is not None
    return take(share.engine.model, loss, losses)


def together(given: Sequence[AdapterStep]) -> list[Found]:
    results = accumulate_together(given, lambda: False)
    assert results is not None
    return [take(share.engine.model, *result) for share, result in zip(given, results, strict=True)]


def require_equal(found: Found, expected: Found, limit: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=limit)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert float((found[1][name] - gradient).norm() / gradient.norm()) < limit, name
    torch.testing.assert_close(found[2], expected[2], rtol=limit, atol=limit)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_gets_the_gradients_that_it_gets_alone(family: str) -> None:
    given = shares(make_engines(family, torch.float64))
    expected = [alone(share) for share in given]
    for found, one in zip(together(given), expected, strict=True):
        require_equal(found, one, 1e-10)
    # Another model computes, in the other order.
    for found, one in zip(together(given[::-1]), expected[::-1], strict=True):
        require_equal(found, one, 1e-10)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 0.1)])
def test_in_the_formats_of_kernels(dtype: torch.dtype, limit: float) -> None:
    given = shares(make_engines("llama-gqa", dtype))
    for found, share in zip(together(given), given, strict=True):
        require_equal(found, alone(share), limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_give_the_bits_that_each_gets_alone(dtype: torch.dtype) -> None:
    if library().code is None or not library().multiplies(dtype):
        pytest.skip("products are computed by PyTorch")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128}
    config = LlamaConfig(**SIZES | sizes | {"num_attention_heads": 2}, num_key_value_heads=1)
    engines = [Engine(make_model(config, dtype, lora), min_shared_tokens=1) for lora in ADAPTERS]
    given = shares(engines)
    for found, share in zip(together(given), given, strict=True):
        expected = alone(share)
        assert found[0] == expected[0]
        assert all(torch.equal(found[1][name], g) for name, g in expected[1].items())


def test_layers_may_be_computed_again() -> None:
    plain = shares(make_engines("llama-gqa", torch.float64))
    given = shares(make_engines("llama-gqa", torch.float64, checkpointing=True))
    for found, share in zip(together(given), plain, strict=True):
        require_equal(found, alone(share), 1e-10)


def test_a_number_that_is_not_finite_stays_in_its_adapter() -> None:
    given = shares(make_engines("llama-gqa", torch.float32))
    expected = [alone(share) for share in given]
    broken = given[1].engine.model
    with torch.no_grad():
        next(p for p in broken.parameters() if p.requires_grad).fill_(float("nan"))
    found = together(given)
    assert found[1][0] != found[1][0]
    for k in (0, 2, 3):
        require_equal(found[k], expected[k], 2e-5)


def test_what_cannot_be_computed_together() -> None:
    (engine, *_) = make_engines("llama-gqa", torch.float64)
    assert not can_join(engine, engine.make_step(some_examples(), 20, DEVICE))
    dora = Engine(make_model(FAMILIES["llama-gqa"], torch.float64, LoraSettings(use_dora=True)))
    assert not can_join(dora, dora.make_step(some_examples(), 10**6, DEVICE))
    nothing = engine.make_step(some_examples()[4:5], 10**6, DEVICE)
    assert not can_join(engine, nothing)


def test_nothing_is_computed_when_stopped() -> None:
    given = shares(make_engines("llama-gqa", torch.float64))
    assert accumulate_together(given, lambda: True) is None
    assert all(p.grad is None for share in given for p in share.engine.model.parameters())


def test_the_base_may_be_over_several_devices() -> None:
    engines = make_engines("llama-gqa", torch.float64)
    expected = [alone(share) for share in shares(engines)]
    for engine in engines:
        spread(base_of(engine.model), (DEVICE, DEVICE))
    for found, one in zip(together(shares(engines)), expected, strict=True):
        require_equal(found, one, 1e-10)
