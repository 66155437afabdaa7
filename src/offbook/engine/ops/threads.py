"""On which threads kernels are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from offbook.engine.ops.library import library

_own = 0  # where the kernels use threads of their own: how many


def threads() -> int:
    """How many threads compute a kernel."""
    return _own or torch.get_num_threads()


@contextmanager
def own_threads() -> Iterator[None]:
    """Compute kernels on threads of their own, as many as PyTorch has, and the rest on one thread.

    For where kernels compute almost everything. PyTorch's threads wait for one that another program
    has stopped; the kernels' own do not (`native/threads.h`). The two are not used together, since
    PyTorch's wait awake for the next operation and would take the cores. Elsewhere, kernels use
    PyTorch's threads; those that Clang has compiled have only their own.
    """
    global _own
    code, before = library().code, torch.get_num_threads()
    if code is None or _own:
        yield
        return
    _own = before
    torch.set_num_threads(1)
    code.use_own_threads(1)
    try:
        yield
    finally:
        code.use_own_threads(0)
        torch.set_num_threads(before)
        _own = 0
