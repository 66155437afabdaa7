"""An adapter within its base's weights, so that a token of a reply costs no more than the base's.

What an adapter adds are two narrow products in each layer, with PEFT's casts and sums around
them: more launches than the layer itself has. Merged, they are gone. The base's weights stay beside
the merged ones, since a sum that is taken back is not the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil
import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch.nn import Parameter

from offbook.engine.machine import usable_memory
from offbook.engine.memory import is_out_of_memory, total_on_gpu
from offbook.models.adapter import lora_layers

# Above this, reading the base's weights takes most of a token's time, so merging gains little.
CPU_BYTES = 1_000_000_000


def room(device: torch.device) -> int:
    """The bytes that merged weights may take on a device.

    On a GPU, a third of all: so the base fits, too, and the same replies come each time, whatever
    is free.
    """
    if device.type != "cpu":
        return total_on_gpu(device) // 3
    used = int(psutil.Process().memory_info().rss)
    return min((usable_memory(used) - used) // 2, CPU_BYTES)


class _Weight(NamedTuple):
    """A layer's weight, as the base has it, and with the adapter."""

    parameter: Parameter
    base: torch.Tensor
    merged: torch.Tensor


class Merged:
    """A model whose adapter can be left out, or be in its weights where memory allows.

    The weights are merged at their first use, and again after the strength has changed; the
    adapter itself must not change. If one layer cannot be merged (4 bits, shared by processes,
    DoRA), none is.

    Args:
        model: in evaluation mode.
        most: gives the bytes that merged weights may take on a device.
    """

    def __init__(self, model: PeftModel, most: Callable[[torch.device], int] = room) -> None:
        self._layers: list[Any] = list(lora_layers(model))
        self._most = most
        self._strengths: list[float] | None = None
        self._weights: list[_Weight] = []

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The base alone computes while the context lasts.

        PEFT's own way takes as long as a token of a small model.
        """
        for layer in self._layers:
            layer.forward = layer.get_base_layer().__call__
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model with its adapter computes while the context lasts, merged where possible."""
        strengths = [layer.scaling["default"] for layer in self._layers]
        if strengths != self._strengths:
            self._weights = []  # free their memory first
            self._weights, self._strengths = self._merge(), strengths
        if not self._weights:
            yield
            return
        with self.without_adapter():
            for weight in self._weights:
                weight.parameter.data = weight.merged
            try:
                yield
            finally:
                for weight in self._weights:
                    weight.parameter.data = weight.base

    @torch.no_grad()
    def _merge(self) -> list[_Weight]:
        """The weights of all layers, or none where one cannot be merged or there is no room."""
        left: dict[torch.device, int] = {}
        for layer in self._layers:
            weight = layer.get_base_layer().weight
            if not isinstance(layer, Linear) or layer.lora_variant or type(weight) is not Parameter:
                return []
            if weight.device not in left:
                left[weight.device] = self._most(weight.device)
            left[weight.device] -= weight.nbytes
        if min(left.values(), default=-1) < 0:
            return []
        try:
            return [_merged(layer) for layer in self._layers]
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                return []
            raise


def _merged(layer: Linear) -> _Weight:
    """The sum is in float32, and rounded once."""
    parameter = layer.get_base_layer().weight
    assert isinstance(parameter, Parameter)
    merged = (parameter + layer.get_delta_weight("default")).to(parameter.dtype)
    return _Weight(parameter, parameter.data, merged)
