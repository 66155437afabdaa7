"""The GPU's backend without a GPU: kernels are interpreted, FlashAttention is written out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from offbook.engine import ops
from offbook.engine.check import TOLERANCE
from offbook.engine.dropout import Masks
from offbook.engine.engine import Engine
from offbook.engine.layers import saved_per_token
from offbook.engine.ops import cuda, cuda_attention
from offbook.engine.ops.cuda import Cuda
from offbook.engine.ops.torch import Torch
from offbook.models.load import checkpoint_layers
from offbook.settings.sections import LoraSettings
from support.engines import CPU, FAMILIES, SIZES, make_model, some_examples
from support.flash import Flash

kernels = pytest.importorskip("offbook.engine.ops.cuda_kernels")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")

ANY, FEW = 10**6, 60


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_attention, "aten", Flash)
    monkeypatch.setattr(Cuda, "supports", lambda *facts: True)
    monkeypatch.setattr(ops, "BACKENDS", (Cuda(),))


def gradients(engine: Engine, budget: int, prefix: int) -> torch.Tensor:
    step = engine.make_step(some_examples(prefix), budget, CPU)
    assert engine.accumulate(step, [0])
    found = [p.grad.flatten() for p in engine.model.parameters() if p.grad is not None]
    engine.model.zero_grad(set_to_none=True)
    return torch.cat(found)


@pytest.mark.parametrize(
    ("family", "prefix", "budget", "dropout"),
    [
        ("llama-gqa", 40, FEW, 0.1),
        ("llama-bias", 5, ANY, 0.1),
        ("mistral-window", 0, ANY, 0.0),
    ],
)
def test_gradients_are_those_of_the_plain_path(
    family: str, prefix: int, budget: int, dropout: float
) -> None:
    lora = LoraSettings(r=4, lora_dropout=dropout)
    model = make_model(FAMILIES[family], torch.float32, lora)
    fast = Engine(model, min_shared_tokens=1)
    assert fast.packed
    got = gradients(fast, budget, prefix)
    exact = make_model(FAMILIES[family], torch.float64, lora)
    expected = gradients(Engine(exact, fast=False, min_shared_tokens=1), ANY, prefix)
    # Rounding alone is 2e-5 to 3e-4 on either path and on different processors.
    assert (got - expected).norm() < TOLERANCE[torch.float32] * expected.norm()


def test_a_checkpointed_layer_draws_the_same_masks_again() -> None:
    model = make_model(FAMILIES["llama-gqa"], torch.float32, LoraSettings(r=4, lora_dropout=0.3))
    engine = Engine(model, min_shared_tokens=1)
    expected = gradients(engine, ANY, 5)
    checkpoint_layers(model)
    torch.testing.assert_close(gradients(engine, ANY, 5), expected)


@pytest.mark.parametrize("width", [96, 40])
def test_masks_are_those_of_the_other_backends_in_both_passes(width: int) -> None:
    tokens = 400
    ones, identity = torch.ones(tokens, width), torch.eye(width).expand(2, -1, -1).contiguous()
    masks = Masks.draw([0], 3, CPU).of(torch.randperm(10**5)[:tokens])
    dropout = kernels.Dropout(1.0, 3277, 1, masks)
    kept = kernels.down(ones, identity, dropout) > 0  # [2, T, I]
    for n in range(2):
        assert torch.equal(kept[n], masks.keep(1 + n, width, 0.1))
    dx = torch.zeros(tokens, width)
    dh = torch.ones(2, tokens, width)
    kernels.add_gradient_of_x(dx, dh, identity, dropout)
    assert torch.equal(dx, kept.float().sum(0))
    da = kernels.gradient_of_a(ones, dh, dropout)
    torch.testing.assert_close(da[:, 0], kept.float().sum(1))
    for call in (
        lambda: kernels.down(ones[1:], identity, dropout),
        lambda: kernels.add_gradient_of_x(dx[1:], dh, identity, dropout),
        lambda: kernels.gradient_of_a(ones[1:], dh, dropout),
    ):
        with pytest.raises(ValueError, match="400 numbers for 399 tokens"):
            call()


def test_launches_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer adds to a step, forward and backward."""
    found = []
    for depth in (2, 4):
        config = LlamaConfig(**SIZES | {"num_hidden_layers": depth}, num_key_value_heads=2)
        engine = Engine(make_model(config, torch.float32, LoraSettings(r=4, lora_dropout=0.1)))
        step = engine.make_step(some_examples(), ANY, CPU)
        with counted(monkeypatch) as launches:
            engine.accumulate(step, [0])
        found.append(sum(launches.values()))
    # On a processor each norm is a dozen operations; on a GPU it is one in each pass.
    assert (found[1] - found[0]) / 2 <= 115


@pytest.mark.parametrize("backend", [Cuda, Torch])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_a_layer_keeps_is_as_planned(
    backend: type[Torch], dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the proportions of a 7B base."""
    monkeypatch.setattr(ops, "BACKENDS", (backend(),))
    widths = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 2}
    kept = []
    for depth in (2, 4):
        config = LlamaConfig(**SIZES | widths | {"num_hidden_layers": depth})
        lora = LoraSettings(r=4, lora_dropout=dropout)
        engine = Engine(make_model(config, torch.float32, lora))
        step = engine.make_step(some_examples(), ANY, CPU)
        (batch,) = step.micro_batches
        saved: dict[int, int] = {}

        def note(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                storage = tensor.untyped_storage()
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = engine.loss(batch, None, Masks.draw([0], len(engine.dropouts), CPU))
        kept.append(sum(saved.values()))
        del loss
    tokens = 16 * math.ceil(len(batch.input_ids) / 16)
    planned = saved_per_token(backend(), config, max(batch.lengths), dropout=dropout > 0)
    assert (kept[1] - kept[0]) / 2 == pytest.approx(planned * 4 * tokens, rel=0.15)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Operations that a GPU would launch a kernel for: all that are no views, and our own."""
    launches: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            name = func.name()
            if not (func.is_view or "empty" in name or "detach" in name):
                launches[name] += 1
            return func(*args, **kwargs or {})

    def launched(name: str, launch: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            before = launches.copy()
            result = launch(*arguments, **named)
            launches.clear()
            launches.update(before)
            launches[name] += 1
            return result

        return run

    with monkeypatch.context() as patch, Count():
        for module, names in (
            (cuda.kernels, ("down", "gradient_of_a", "add_gradient_of_x", "rotate", "gate")),
            (cuda.kernels, ("gate_backward", "cross_entropy")),
            (Flash, ("_flash_attention_forward", "_flash_attention_backward")),
        ):
            for name in names:
                launch = getattr(module, name)
                run = launched(name, launch)
                patch.setattr(module, name, staticmethod(run) if module is Flash else run)
        yield launches
