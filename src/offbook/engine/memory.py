"""The memory of a device: how it is allocated, how much is free, what says there is too little."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from offbook.errors import ConfigError

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # malloc.h
# Messages of errors without a type of their own: of PyTorch where the C library has no memory for
# it, of the CUDA driver, and of cuBLAS.
NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
# With this setting cuBLAS gives the same bits each time.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
# The settings of PyTorch's GPU allocator; the name since 2.9 comes last.
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


class ByDevice(NamedTuple):
    """A number that is another one on a GPU, of whatever maker, than on a processor."""

    cpu: float
    gpu: float

    def on(self, device: torch.device) -> float:
        return self.cpu if device.type == "cpu" else self.gpu


def prepare_allocator(device: torch.device) -> None:
    """Set up memory for steps that free large tensors and need them again.

    On a GPU, blocks grow in place: micro-batches of many sizes would leave pieces too small for the
    next one. A setting of the user's own stays. It has to come before the first tensor there.

    On a processor, glibc keeps freed memory. Otherwise every large temporary tensor is returned to
    the system, which has to clear its pages when they are next used. Without glibc this does
    nothing.
    """
    if device.type != "cpu":
        if platform.system() == "Linux" and not any(name in os.environ for name in ALLOCATOR):
            os.environ[ALLOCATOR[torch.__version__ >= "2.9"]] = "expandable_segments:True"
        return
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)  # no block is mapped on its own, to be unmapped when freed
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def prepare_deterministic(device: torch.device) -> None:
    """Have cuBLAS give the same bits each time; it has to come before its first product.

    Raises:
        ConfigError: when this process has used a GPU before.
    """
    name, value = CUBLAS
    if device.type != "cuda" or name in os.environ:
        return
    if torch.cuda.is_initialized():
        raise ConfigError(
            "this process has used the GPU already, and cuBLAS reads its settings only then",
            where="train.deterministic",
            fix=f"set {name}={value} in the environment before the process starts",
        )
    os.environ[name] = value


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use only operations that give the same bits each time, if wanted, while the context lasts."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def free_on_gpu(device: torch.device) -> int:
    """Bytes of memory that a GPU, which is here, has for this process."""
    if device.type == "mps":  # the processor's memory, of which the system recommends a share
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return int(torch.get_device_module(device).mem_get_info(device)[0])


def total_on_gpu(device: torch.device) -> int:
    """Bytes of memory that a GPU, which is here, has in all."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return int(torch.get_device_module(device).mem_get_info(device)[1])


def release_cached(device: torch.device) -> None:
    """Have PyTorch's allocator give back what it keeps for later tensors on a GPU."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def peak_memory(device: torch.device) -> int:
    """Bytes of memory that this process has used at the most, on a GPU or of the processor's."""
    if device.type in ("cuda", "xpu"):
        return int(torch.get_device_module(device).max_memory_allocated(device))
    # Linux carries `ru_maxrss` over from the process that started this one.
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", 0)) or int(memory.rss)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough, on a GPU or a processor."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
