"""The operations of a layer: one interface, a file for each backend that computes them.

`backend.py` is the interface. `torch.py` computes the operations on any device and in any format;
`cpu.py` and
`cuda.py` are faster where they can be used. A layer asks `choose` once, when the model is prepared.

To add a backend, write a subclass of `Backend` in a file of its own and list it in `BACKENDS`;
`tests/engine/ops/test_conformance.py` then tests it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from offbook.engine.ops.backend import Backend
from offbook.engine.ops.cpu import Cpu, threads_for
from offbook.engine.ops.cuda import Cuda
from offbook.engine.ops.torch import Torch

__all__ = ["BACKENDS", "Backend", "choose", "threads_for"]

# The first that supports a layer computes it.
BACKENDS: tuple[Backend, ...] = (Cpu(), Cuda(), Torch())


def choose(device: torch.device, dtype: torch.dtype, widths: Sequence[int]) -> Backend:
    """The backend that computes a layer of these widths."""
    return next(backend for backend in BACKENDS if backend.supports(device, dtype, widths))
