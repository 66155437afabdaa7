"""The check of gradients passes when they are right, and stops a run when they are wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain, repeat

import pytest
import torch

from offbook.engine import attention, ops
from offbook.engine.check import check_gradients, check_or_fall_back
from offbook.engine.dropout import Masks
from offbook.engine.engine import Engine
from offbook.engine.ops.torch import Torch
from offbook.errors import EngineError
from offbook.settings.config import Config
from offbook.settings.sections import LoraSettings
from offbook.training.train import train
from support.engines import CPU, FAMILIES, make_model, some_examples


def test_the_check_passes_and_leaves_everything_as_it_was() -> None:
    lora = LoraSettings(r=4, lora_dropout=0.3)
    model = make_model(FAMILIES["llama-gqa"], torch.float32, lora)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.zero_()
    before = copy.deepcopy(model.state_dict())
    assert check_gradients(Engine(model), some_examples(40), CPU) < 1e-4
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.grad is None for p in model.parameters())


def break_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.attend
    monkeypatch.setattr(
        "offbook.engine.layers.attend",
        lambda *facts: right(*facts[:-2], facts[-2] * 1.1, facts[-1]),  # a wrong scaling
    )


def break_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Masks, "some", lambda masks, tokens: masks.of(tokens))  # of other tokens


@pytest.mark.parametrize("fault", [break_attention, break_dropout])
def test_the_check_stops_a_fast_path_that_is_wrong(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    lora = LoraSettings(r=4, lora_dropout=0.3)
    engine = Engine(make_model(FAMILIES["llama-gqa"], torch.float32, lora))
    with pytest.raises(EngineError, match=r"differ from those .* train with train.engine=plain"):
        check_gradients(engine, some_examples(), CPU)


def test_gradients_that_are_rounding_alone_are_no_fault() -> None:
    model = make_model(FAMILIES["llama-gqa"], torch.float32)
    for name, p in model.named_parameters():
        if name.endswith("q_proj.base_layer.weight"):
            p.data *= 100  # attention is saturated: queries and keys hardly have gradients
    check_gradients(Engine(model), some_examples(40), CPU)


@pytest.mark.parametrize("matrix", ["q_proj.lora_A", "k_proj.lora_B", "down_proj.lora_A"])
def test_a_fault_in_one_matrix_is_found(matrix: str) -> None:
    engine = Engine(make_model(FAMILIES["llama-gqa"], torch.float32))
    faulty = next(p for name, p in engine.model.named_parameters() if matrix in name)
    factors = chain([1.05], repeat(1.0))  # the fast path comes first
    faulty.register_hook(lambda gradient: gradient * next(factors))
    with pytest.raises(EngineError, match=f"most in .*{matrix}"):
        check_gradients(engine, some_examples(), CPU)


@pytest.mark.parametrize("fault", [RuntimeError("no C compiler"), None])
def test_kernels_that_fail_or_are_wrong_are_left_for_pytorchs_operations(
    fault: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Torch):
        def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
            if fault:
                raise fault
            return super().norm(x, weight, eps) * 2

    monkeypatch.setattr(ops, "BACKENDS", (Broken(),))
    engine = Engine(make_model(FAMILIES["llama-gqa"], torch.float32))
    said: list[str] = []
    check_or_fall_back(engine, some_examples(), CPU, said.append)
    (line,) = said
    assert line.startswith("computing with PyTorch's operations, which are slower, because ")
    assert line.endswith("no C compiler") if fault else "differ from those of transformers" in line
    check_or_fall_back(engine, some_examples(), CPU, said.append)
    assert len(said) == 1


def test_the_plain_path_trains_where_the_check_stops_the_fast_one(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_attention(monkeypatch)
    with pytest.raises(EngineError, match=r"train with train\.engine=plain"):
        train(tiny_config())
    assert train(tiny_config("train.engine=plain"), overwrite=True).finished
