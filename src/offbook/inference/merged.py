"""An adapter within its base's weights, so that a token of a reply costs no more than the base's.

What an adapter adds are two narrow products in each layer, with PEFT's casts and sums around
them: more launches than the layer itself has. Merged, they are gone. The base's weights stay beside
the merged ones, since a sum that is taken back is not the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch
from peft import PeftModel
from peft.tuners.lora import Linear, LoraLayer
from torch.nn import Parameter

from offbook.engine.machine import usable_memory
from offbook.engine.memory import free_on_gpu
from offbook.models.adapter import lora_layers

# With larger weights, a processor's tokens wait for memory, and the adapter costs little.
CPU_BYTES = 1_000_000_000


def half_of_free(device: torch.device) -> int:
    """Bytes that merged weights may have on a device, at most."""
    if device.type != "cpu":
        return free_on_gpu(device) // 2
    used = int(psutil.Process().memory_info().rss)
    return min((usable_memory(used) - used) // 2, CPU_BYTES)


class Merged:
    """A model's weights with its adapter, made at their first use, where memory allows.

    They are made again where the adapter has another strength since; its own weights must not
    change. Layers of 4 bits, those that processes share and those of DoRA stay as they are, and so
    do all others of such a model.

    Args:
        model: in evaluation mode.
        most: bytes that merged weights may have on a device, which is its argument.
    """

    def __init__(
        self, model: PeftModel, most: Callable[[torch.device], int] = half_of_free
    ) -> None:
        self._model, self._most = model, most
        self._strengths: list[float] | None = None
        self._weights: list[tuple[Parameter, torch.Tensor]] = []

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model computes with merged weights while the context lasts, where it has them."""
        layers = list(lora_layers(self._model))
        strengths = [layer.scaling["default"] for layer in layers]
        if strengths != self._strengths:
            self._weights = []  # free their memory first
            self._weights = self._merge(layers)
            self._strengths = strengths
        if not self._weights:
            yield
            return
        before = [parameter.data for parameter, _ in self._weights]
        with self._model.disable_adapter():
            for parameter, merged in self._weights:
                parameter.data = merged
            try:
                yield
            finally:
                for (parameter, _), weight in zip(self._weights, before, strict=True):
                    parameter.data = weight

    def _merge(self, layers: Sequence[LoraLayer]) -> list[tuple[Parameter, torch.Tensor]]:
        """The base's weight of each layer, and its sum with the adapter; none without the room."""
        changed = []
        room: dict[torch.device, int] = {}
        for layer in layers:
            weight = layer.get_base_layer().weight
            if not isinstance(layer, Linear) or layer.lora_variant or type(weight) is not Parameter:
                return []
            if weight.device not in room:
                room[weight.device] = self._most(weight.device)
            room[weight.device] -= weight.nbytes
            if room[weight.device] < 0:
                return []
            changed.append((layer, weight))
        with torch.no_grad():  # the sum is in float32 and rounded once
            return [
                (weight, (weight + layer.get_delta_weight("default")).to(weight.dtype))
                for layer, weight in changed
            ]
