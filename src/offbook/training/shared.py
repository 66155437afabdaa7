"""A base that several runs are trained on, one after another; it is loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from offbook.models.load import load_base, with_same_weights
from offbook.training.memory import Memory


class SharedBase:
    """Loads a base when a run needs it, and keeps it for the next one.

    Runs do not see each other: each gets layers of its own, and the weights are frozen.
    """

    def __init__(self) -> None:
        self._memory: Memory | None = None
        self._kind: tuple[object, ...] | None = None
        self._base: PreTrainedModel | None = None

    def memory(self, devices: Sequence[torch.device]) -> Memory:
        """The memory of each device without the base, for the plan of a run, which counts it."""
        if self._memory is None:
            self._memory = Memory.of_each(devices)
        return self._memory

    def load(
        self,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        quantization: str,
        others: Sequence[torch.device],
    ) -> PreTrainedModel:
        """A base without an adapter; see `load_base`."""
        kind = (folder, dtype, device, quantization, others)
        if self._base is None or kind != self._kind:
            self._base = None  # frees it first
            self._base, self._kind = load_base(*kind), kind
        return with_same_weights(self._base)
