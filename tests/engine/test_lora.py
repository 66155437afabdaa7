"""Linear layers with LoRA, against PEFT's and autograd."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

from offbook.engine.dropout import Masks
from offbook.engine.lora import backend_for, project
from offbook.engine.projection import number_dropouts
from support.engines import CPU

WIDTHS = (5, 7, 3)


def layer(width: int, dropout: float, bias: bool) -> Linear:
    base = nn.Linear(6, width, bias=bias, dtype=torch.float64).requires_grad_(False)
    config = LoraConfig(r=2, lora_alpha=3, lora_dropout=dropout)
    adapted = Linear(base, "default", config=config, r=2, lora_alpha=3)
    adapted.double()
    nn.init.normal_(adapted.lora_B["default"].weight)
    return adapted.train()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_outputs_and_gradients_are_those_of_peft(dropout: float) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [layer(n, dropout, bias=n == 7) for n in WIDTHS]
    dropouts = list(number_dropouts(nn.ModuleList(layers)))
    masks = Masks.draw([1], 3, CPU).of(torch.arange(18) * 7)
    layers[1:1] = [nn.Linear(6, 4, dtype=torch.float64).requires_grad_(False)]
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(2, 9, n, dtype=torch.float64) for n in (5, 4, 7, 3)]
    trained = [p for module in layers for p in module.parameters() if p.requires_grad]

    ops = backend_for(x.device, x.dtype, *layers)
    outputs = project(ops, x, *layers, masks=masks)
    got = torch.autograd.grad(
        sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)), [x, *trained]
    )
    for module in dropouts:
        module.masks = masks
    expected = [module(x) for module in layers]
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
