"""Steps on another device than the processor, or on both: PyTorch's lazy device stands in for it.

It computes on the processor, but an operation on tensors of the two devices fails as on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch._lazy
import torch._lazy.ts_backend
from torch import nn

from offbook.engine.engine import Engine
from offbook.models.load import base_of
from offbook.models.pipeline import spread
from offbook.settings.sections import LoraSettings
from support.engines import CPU, FAMILIES, make_model, some_examples

OTHER = torch.device("lazy")
FEW = 30  # tokens of a micro-batch


@pytest.fixture(scope="module", autouse=True)
def lazy_device() -> None:
    torch._lazy.ts_backend.init()


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lazy device cannot split tensors, but take slices."""

    def split(x: torch.Tensor, sizes: int | list[int], dim: int = 0) -> tuple[torch.Tensor, ...]:
        length = x.shape[dim]
        if isinstance(sizes, int):
            sizes = [min(sizes, length - start) for start in range(0, max(length, 1), sizes)]
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        return tuple(x.narrow(dim, *place) for place in zip(starts, sizes, strict=True))

    def chunk(x: torch.Tensor, chunks: int, dim: int = 0) -> tuple[torch.Tensor, ...]:
        return split(x, max(-(-x.shape[dim] // chunks), 1), dim)

    monkeypatch.setattr(torch.Tensor, "split", split)
    monkeypatch.setattr(torch.Tensor, "chunk", chunk)


def moved(model: nn.Module) -> nn.Module:
    """The model with its tensors on the other device, to which `to` does not move parameters."""
    parameters = {
        id(p): nn.Parameter(p.data.to(OTHER), p.requires_grad) for p in model.parameters()
    }
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = parameters[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(OTHER)
    return model


def gradients(engine: Engine, device: torch.device, prefix: int) -> tuple[float, torch.Tensor]:
    engine.model.zero_grad()
    step = engine.make_step(some_examples(prefix)[:3], FEW, device)
    loss = engine.accumulate(step, [0])
    assert loss is not None
    assert len(step.micro_batches) > 1
    torch._lazy.mark_step()  # computes all tensors, and each of them once
    grads = [p.grad.to(CPU).flatten() for p in engine.model.parameters() if p.grad is not None]
    return loss, torch.cat(grads)


@pytest.mark.parametrize(("family", "prefix"), [("llama-gqa", 12), ("qwen3", 0)])
def test_a_step_leaves_its_tensors_on_the_device(family: str, prefix: int) -> None:
    lora = LoraSettings(r=4, lora_dropout=0.3)
    here, there = (make_model(FAMILIES[family], torch.float64, lora) for _ in range(2))
    expected_loss, expected = gradients(Engine(here), CPU, prefix)
    loss, got = gradients(Engine(moved(there)), OTHER, prefix)
    assert loss == pytest.approx(expected_loss, rel=1e-10)
    assert (got - expected).norm() < 1e-10 * expected.norm()


def test_a_tensor_that_stayed_on_the_processor_is_found() -> None:
    """Or the tests above could not fail."""
    engine = Engine(moved(make_model(FAMILIES["llama-gqa"], torch.float32)))
    batch = engine.make_step(some_examples(0), FEW, OTHER).micro_batches[0]
    assert engine.loss(batch).device.type == OTHER.type
    with pytest.raises(RuntimeError, match="not a lazy tensor"):
        engine.loss(replace(batch, wanted=batch.wanted.to(CPU)))


@pytest.fixture
def new_parameters() -> Iterator[None]:
    """`Module.to` moves to the lazy device only by making new parameters."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize(
    ("family", "prefix", "first", "fast"),
    [
        ("llama-gqa", 12, CPU, True),
        ("llama-gqa", 12, OTHER, True),
        ("qwen3", 0, OTHER, True),
        ("llama-gqa", 12, CPU, False),
    ],
)
def test_a_base_on_two_devices_computes_the_same(
    new_parameters: None, family: str, prefix: int, first: torch.device, fast: bool
) -> None:
    """Of the two families, the first has a tied head, and its steps have a prefix."""
    lora = LoraSettings(r=4, lora_dropout=0.3)
    here, there = (make_model(FAMILIES[family], torch.float64, lora) for _ in range(2))
    second = OTHER if first == CPU else CPU
    spread(base_of(there), (first, second))
    assert {p.device.type for p in there.parameters()} == {"cpu", "lazy"}
    expected_loss, expected = gradients(Engine(here, fast=fast), CPU, prefix)
    loss, got = gradients(Engine(there, fast=fast), first, prefix)
    rounding = 1e-10 if fast else 1e-6  # transformers' norms compute in float32
    assert loss == pytest.approx(expected_loss, rel=rounding)
    assert (got - expected).norm() < rounding * expected.norm()
