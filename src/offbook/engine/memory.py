"""How the C library allocates memory, and which errors say that there is not enough."""

from __future__ import annotations

import ctypes
import platform

import torch

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # malloc.h
# Messages of PyTorch's CPU allocator when the C library has no memory for it.
NO_MEMORY = ("can't allocate memory", "not enough memory")


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, which the next step will need again.

    Otherwise every large temporary tensor is returned to the system, which has to clear its pages
    when they are next used. Without glibc this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)  # no block is mapped on its own, to be unmapped when freed
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough, on a GPU or a processor."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
