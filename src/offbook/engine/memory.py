"""How the C library hands out memory, and how it is told that there is none left."""

from __future__ import annotations

import ctypes
import platform

import torch

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # malloc.h
# What PyTorch says when the C library gives its CPU allocator nothing.
NO_MEMORY = ("can't allocate memory", "not enough memory")


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, for the next step will ask for it again.

    Otherwise every large temporary is returned to the system and its pages are made anew.
    Elsewhere this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)  # no block is mapped on its own, and unmapped when freed
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that memory was not enough, on a GPU or a processor."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
