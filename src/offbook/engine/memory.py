"""How the C library hands out memory."""

from __future__ import annotations

import ctypes
import platform

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # malloc.h
LARGEST_KEPT = 32 * 2**20  # glibc takes no higher threshold


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, for the next step will ask for it again.

    Otherwise every large temporary is returned to the system and its pages are made anew.
    Elsewhere this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
