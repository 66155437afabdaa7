"""Linear layers with LoRA, against autograd on the formula."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

from offbook.engine.dropout import drop_probability, keep_mask
from offbook.engine.lora import backend_for, project

WIDTHS = (5, 7, 3)


def layer(width: int, dropout: float, bias: bool) -> Linear:
    base = nn.Linear(6, width, bias=bias, dtype=torch.float64).requires_grad_(False)
    config = LoraConfig(r=2, lora_alpha=3, lora_dropout=dropout)
    adapted = Linear(base, "default", config=config, r=2, lora_alpha=3)
    adapted.double()
    nn.init.normal_(adapted.lora_B["default"].weight)
    return adapted.train()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_outputs_and_gradients_are_those_of_the_formula(dropout: float) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [layer(n, dropout, bias=n == 7) for n in WIDTHS]
    layers[1:1] = [nn.Linear(6, 4, dtype=torch.float64).requires_grad_(False)]
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(2, 9, n, dtype=torch.float64) for n in (5, 4, 7, 3)]
    trained = [p for module in layers for p in module.parameters() if p.requires_grad]

    torch.manual_seed(1)
    ops = backend_for(x.device, x.dtype, *layers)
    outputs = project(ops, x, *layers)
    got = torch.autograd.grad(
        sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)), [x, *trained]
    )
    torch.manual_seed(1)
    expected = []
    for module in layers:
        if type(module) is nn.Linear:
            expected.append(module(x))
            continue
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        seen = x
        if dropout:
            kept = keep_mask(x.detach().reshape(-1, 6), dropout).view(x.shape) != 0
            seen = torch.where(kept, x, 0) / (1 - drop_probability(dropout))
        expected.append(module.base_layer(x) + 1.5 * seen @ a.t() @ b.t())
    for y, y_expected in zip(outputs, expected, strict=True):
        torch.testing.assert_close(y, y_expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(
        sum((y * w).sum() for y, w in zip(expected, weights, strict=True)), [x, *trained]
    )
    for gradient, gradient_expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, gradient_expected, rtol=1e-12, atol=1e-12)


def test_there_is_no_dropout_in_evaluation_mode() -> None:
    module = layer(5, 0.5, bias=False).eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    (y,) = project(backend_for(x.device, x.dtype, module), x, module)
    torch.testing.assert_close(y, module(x), rtol=1e-12, atol=1e-12)
