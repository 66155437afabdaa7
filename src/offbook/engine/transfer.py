"""Copies from the processor to the device that computes."""

from __future__ import annotations

import numpy as np
import torch


def on_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values as a tensor on a device; the copy to a GPU does not wait for its earlier work."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
