"""A base that several runs are trained on, one after another or together; it is loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from offbook.errors import ConfigError
from offbook.models.load import load_base, with_same_weights
from offbook.settings.config import Config
from offbook.settings.sections import LoraSettings
from offbook.training.memory import Memory
from offbook.training.plan import BYTES_OF_A_WEIGHT, ModelShape


class SharedBase:
    """Loads a base when a run needs it, and keeps it for the next one.

    Runs do not see each other: each gets layers of its own, and the weights are frozen.

    Args:
        together: of all runs, where they are trained at the same time; then all need one base.
    """

    def __init__(self, together: Sequence[Config] = ()) -> None:
        self.together = together
        self._memory: Memory | None = None
        self._adapters: dict[LoraSettings, int] = {}
        self._kind: tuple[Path, torch.dtype, torch.device, str, Sequence[torch.device]] | None = (
            None
        )
        self._base: PreTrainedModel | None = None

    @property
    def precision(self) -> str | None:
        """The number format of the base, as `model.precision` has it; None until it is loaded."""
        return self._kind and str(self._kind[1]).removeprefix("torch.")

    @property
    def rows_of_a_step(self) -> int | None:
        """Examples of a step of all runs that are trained together; None where none are."""
        return sum(config.train.batch_size for config in self.together) or None

    def memory(self, devices: Sequence[torch.device], base: Path, shape: ModelShape) -> Memory:
        """The memory of each device without the base, for the plan of a run, which counts it.

        Args:
            devices: that compute.
            base: the folder of the base.
            shape: of the run, whose plan counts its own adapter, too.
        """
        if self._memory is None:
            self._memory = Memory.of_each(devices)
        loras = [config.lora for config in self.together]
        for lora in loras:
            if lora not in self._adapters:
                self._adapters[lora] = ModelShape.of(base, lora).adapter
        others = sum(self._adapters[lora] for lora in loras) - shape.adapter * bool(loras)
        available, used = self._memory
        return Memory(available, used + others * BYTES_OF_A_WEIGHT)

    def load(
        self,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        quantization: str,
        others: Sequence[torch.device],
    ) -> PreTrainedModel:
        """A base without an adapter; see `load_base`.

        Raises:
            ConfigError: when runs that are trained together need another than the one before.
        """
        kind = (folder, dtype, device, quantization, others)
        if self._base is None or kind != self._kind:
            if self._base is not None and self.together:
                raise ConfigError(
                    f"it needs {folder} in {dtype}, which is not the base of the runs before it",
                    fix="train it alone",
                )
            self._base = None  # frees it first
            self._base, self._kind = load_base(*kind), kind
        return with_same_weights(self._base)
