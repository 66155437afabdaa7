"""Keys and values of the tokens so far, with room for more: a token does not copy those before."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 32  # tokens


def make_cache() -> Cache:
    """An empty cache for `past_key_values`."""
    return Cache(layer_class_to_replicate=RoomyLayer)


class RoomyLayer(DynamicLayer):
    """The keys and values [B, K, T, C] of a layer: the beginning of a larger buffer."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append those of the next tokens, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def _append(self, name: str, seen: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        assert seen is not None
        before = seen.shape[-2] if seen.numel() else 0
        after = before + new.shape[-2]
        buffer, beginning = self._buffers.get(name, (seen, None))
        # Whatever else changes a layer, as `crop` does, replaces its keys and values.
        if seen is not beginning or after > buffer.shape[-2]:
            *outer, _, channels = new.shape
            buffer = new.new_empty(*outer, after + ROOM, channels)
            if before:
                buffer[..., :before, :] = seen
        buffer[..., before:after, :] = new
        beginning = buffer[..., :after, :]
        self._buffers[name] = buffer, beginning
        return beginning
