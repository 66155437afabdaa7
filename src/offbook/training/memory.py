"""The memory that a run may use, of a device or of each of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import psutil
import torch

from offbook.engine.machine import usable_memory
from offbook.engine.memory import free_on_gpu
from offbook.errors import ConfigError

# Share of the free memory that is not used.
RESERVE = 0.05


class Memory(NamedTuple):
    """The memory of a device.

    Attributes:
        available: bytes that this process may use in all.
        used: bytes that it uses already.
    """

    available: int
    used: int

    @property
    def usable(self) -> float:
        """Bytes that a plan may need, with a reserve."""
        return self.available * (1 - RESERVE)

    @classmethod
    def of(cls, device: torch.device, available: int | None = None) -> Memory:
        """What the device has now, or would have with so many bytes available.

        Raises:
            ConfigError: when the device is not here, and its memory is not given.
        """
        if available is not None:
            used = psutil.Process().memory_info().rss if device.type == "cpu" else 0
            return cls(available, used)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "there is no such card here", where="--device cuda", fix="add --memory, as in 24GB"
            )
        if device.type != "cpu":
            return cls(free_on_gpu(device), 0)
        own = psutil.Process().memory_info().rss
        return cls(usable_memory(own), own)

    @classmethod
    def of_each(cls, devices: Sequence[torch.device]) -> Memory:
        """The least that one of several devices has; what is named twice has half for each."""
        found = [(cls.of(device), devices.count(device)) for device in dict.fromkeys(devices)]
        return min(cls(memory.available // n, memory.used // n) for memory, n in found)
