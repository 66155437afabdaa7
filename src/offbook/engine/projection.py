"""The parts of a linear layer with a PEFT adapter, so that the engine can compute it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft.tuners import lora as peft_lora
from torch import nn

from offbook.engine.dropout import Masks, TokenDropout, drop_probability

QUANTIZED = "Linear4bit"  # bitsandbytes' layer, and PEFT's layer for it
ADAPTED = ("Linear", QUANTIZED)


@dataclass(frozen=True)
class Projection:
    """The parts of a linear layer: `x W' + bias + scaling * dropout(x) A' B'`.

    Attributes:
        base: the frozen linear layer.
        lora_A, lora_B: the adapter's matrices [R, I] and [O, R]; None without an adapter.
        scaling: PEFT's, of the adapter's part.
        dropout: the current probability: 0 in evaluation mode.
        place: among the model's projections with an adapter; dropout's seeds are in this order.
    """

    base: nn.Module
    lora_A: nn.Parameter | None = None  # noqa: N815  # PEFT's spelling
    lora_B: nn.Parameter | None = None  # noqa: N815
    scaling: float = 1.0
    dropout: float = 0.0
    place: int = 0

    @classmethod
    def of(cls, layer: nn.Module) -> Projection | None:
        """The parts of a layer; None if it is anything but a linear layer with plain LoRA."""
        if _is_linear(layer):
            return cls(layer)
        if not isinstance(layer, peft_lora.LoraLayer) or not _is_linear(layer.base_layer):
            return None
        if type(layer).__name__ not in ADAPTED:
            return None
        if layer.lora_variant or layer.merged or layer.active_adapters != ["default"]:
            return None
        if layer.disable_adapters:
            return cls(layer.base_layer)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert isinstance(a, nn.Parameter)
        assert isinstance(b, nn.Parameter)
        dropout, scaling = layer.lora_dropout["default"], layer.scaling["default"]
        if not isinstance(dropout, TokenDropout):
            return cls(layer.base_layer, a, b, scaling)
        rate = dropout.p if dropout.training else 0.0
        return cls(layer.base_layer, a, b, scaling, rate, dropout.projection)

    @property
    def scale(self) -> float:
        """The factor of the adapter's part: `scaling`, over the share that dropout keeps."""
        return self.scaling / (1 - drop_probability(self.dropout))

    @property
    def weight_shape(self) -> tuple[int, int]:
        """`(O, I)`, also of a weight in 4 bits."""
        return self.base.out_features, self.base.in_features  # type: ignore[return-value]

    def weight(self) -> torch.Tensor:
        """The base's weight [O, I]; one in 4 bits is dequantized."""
        weight = self.base.weight
        assert isinstance(weight, torch.Tensor)
        state = getattr(weight, "quant_state", None)
        if state is None:
            return weight
        from bitsandbytes.functional import dequantize_4bit

        dense: torch.Tensor = dequantize_4bit(weight.data, state)
        return dense

    @property
    def bias(self) -> torch.Tensor | None:
        bias = self.base.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        return bias


@dataclass(frozen=True)
class Part:
    """Tokens of one adapter among those of several.

    Attributes:
        rows: which these are.
        projections: of the adapter, in the places of those of the others.
        masks: of its dropout, for these tokens.
    """

    rows: slice
    projections: Sequence[Projection]
    masks: Masks | None


def number_dropouts(model: nn.Module) -> Iterator[TokenDropout]:
    """Replace the dropouts of PEFT that are not replaced yet; yields all of the replacements."""
    adapted = (m for m in model.modules() if isinstance(m, peft_lora.LoraLayer))
    for place, layer in enumerate(adapted):
        for name, dropout in layer.lora_dropout.items():
            if type(dropout) is nn.Dropout:
                layer.lora_dropout[name] = TokenDropout(dropout.p, place).train(dropout.training)
            if isinstance(dropout := layer.lora_dropout[name], TokenDropout):
                yield dropout


def _is_linear(layer: nn.Module) -> bool:
    if type(layer).__name__ == QUANTIZED:
        return isinstance(layer, nn.Linear)  # PEFT's layer of the same name is not
    return type(layer) is nn.Linear
