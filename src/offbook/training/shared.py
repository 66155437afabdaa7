"""A base that several runs are trained on, one after another; it is loaded once."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from offbook.models.load import load_base, with_same_weights
from offbook.training.plan import Memory


class SharedBase:
    """Loads a base when a run needs it, and keeps it for the next one.

    Runs do not see each other: each gets layers of its own, and the weights are frozen.
    """

    def __init__(self) -> None:
        self._memory: Memory | None = None
        self._kind: tuple[Path, torch.dtype, torch.device, str] | None = None
        self._base: PreTrainedModel | None = None

    def memory(self, device: torch.device) -> Memory:
        """The memory of the device without the base, for the plan of a run, which counts it."""
        if self._memory is None:
            self._memory = Memory.of(device)
        return self._memory

    def load(
        self, folder: Path, dtype: torch.dtype, device: torch.device, quantization: str
    ) -> PreTrainedModel:
        """A base without an adapter; see `load_base`."""
        kind = (folder, dtype, device, quantization)
        if self._base is None or kind != self._kind:
            self._base = None  # frees it first
            self._base, self._kind = load_base(*kind), kind
        return with_same_weights(self._base)
