"""A base over several devices: each holds some of the decoder layers, and computes them in turn.

One process moves hidden states from device to device, so there is no communication between
processes, and autograd takes gradients back the same way. Inputs and logits are on the first
device. An adapter's matrices are made beside the layers that they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from offbook.errors import ConfigError

# Bytes of a weight in 4 bits: with double quantization, 0.127 bits for the scales
# (arXiv:2305.14314).
BYTES_IN_4_BITS = 4.127 / 8


def layers_by_device(config: PreTrainedConfig, linear: float, devices: int) -> list[range]:
    """Which decoder layers each device holds, so that all hold about as many bytes.

    Args:
        config: the base's configuration.
        linear: bytes of the linear layers below the head, over bytes of any other parameter.
        devices: how many there are; the embedding is on the first one, and a head of its own, whose
            weight is not the embedding's, on the last one.
    """
    depth: int = config.num_hidden_layers
    embedding = config.vocab_size * config.hidden_size
    total = linear + embedding * (1 if config.tie_word_embeddings else 2)
    # The layers whose middle lies in a device's share of all bytes, embedding and head included.
    places = [(embedding + linear * (k + 0.5) / depth) * devices / total for k in range(depth)]
    cuts = [sum(place < device for place in places) for device in range(1, devices)]
    return [range(first, stop) for first, stop in pairwise([0, *cuts, depth])]


def spread(model: PreTrainedModel, devices: Sequence[torch.device]) -> None:
    """Move each part of a base to its device, and have its inputs follow.

    Args:
        model: a base without an adapter; the same device may be named more than once.
        devices: in the order in which they compute.

    Raises:
        ConfigError: when the base has no list of decoder layers, or fewer than there are devices.
    """
    body, head = parts_of(model, "model.device")
    layers = body.layers
    if len(layers) < len(devices):
        raise ConfigError(
            f"{len(devices)} devices for {len(layers)} layers",
            where="model.device",
            fix="name fewer devices",
        )
    place = {body.norm: devices[-1]}
    numbers = layers_by_device(model.config, _linear(body) / model.dtype.itemsize, len(devices))
    for device, own in zip(devices, numbers, strict=True):
        place |= {layers[k]: device for k in own}
    # A tied head stays with the embedding: a second copy would cost more than moving hidden states.
    tied = head.weight is model.get_input_embeddings().weight
    place[head] = devices[0] if tied else devices[-1]
    for part, device in place.items():
        nn.Module.to(part, device)
        part.register_forward_pre_hook(_Follow(device), with_kwargs=True)
    for part in body.children():
        if part is not layers and part not in place:
            nn.Module.to(part, devices[0])
    head.register_forward_hook(lambda module, inputs, logits: logits.to(devices[0]))


def parts_of(model: PreTrainedModel, setting: str) -> tuple[Any, Any]:
    """The backbone of a base whose layers can be divided, and its head.

    Args:
        model: the base.
        setting: that divides it, for the message.

    Raises:
        ConfigError: when the base has no list of decoder layers.
    """
    body = model.get_submodule(model.base_model_prefix)
    if not isinstance(getattr(body, "layers", None), nn.ModuleList) or not hasattr(body, "norm"):
        raise ConfigError(
            f"the layers of a {model.config.model_type} model cannot be divided",
            where=setting,
            fix="leave it at auto, or use a Llama-family model",
        )
    return body, model.get_output_embeddings()


def _linear(body: nn.Module) -> float:
    """Bytes of linear layers."""
    return sum(
        m.in_features
        * m.out_features
        * (BYTES_IN_4_BITS if hasattr(m.weight, "quant_state") else m.weight.itemsize)
        for m in body.modules()
        if isinstance(m, nn.Linear)
    )


class _Follow:
    """Moves what a module is called with to its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # All layers of a forward pass get the same objects, so each is moved once.
        self._moved: dict[str, tuple[Any, Any]] = {}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._move(args), {name: self._once(name, kwargs[name]) for name in kwargs}

    def _once(self, name: str, value: Any) -> Any:
        before, moved = self._moved.get(name, (None, None))
        if before is value:
            return moved
        moved = self._move(value)
        if moved is not value:  # what stays, such as a cache, is not kept in memory
            self._moved[name] = value, moved
        return moved

    def _move(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._move, value))
        return value.to(self._device) if hasattr(value, "to") else value
