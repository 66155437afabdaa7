"""What the benchmarks say of the machine, and measure on it: its products and its memory."""

from __future__ import annotations

import argparse
import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from offbook.engine import memory
from offbook.engine.ops import library

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PACKAGES = ("torch", "transformers", "peft", "trl")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how numbers are computed; see `choose` and `set_kernels`."""
    parser.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="number format of the base; auto: the one that training would take here",
    )
    parser.add_argument(
        "--kernels",
        default="native",
        help="processor that the kernels are compiled for, such as x86-64-v3, or clang++:x86-64-v3 "
        "to choose the compiler too; none: do without",
    )


def set_kernels(name: str) -> None:
    """Compile the kernels for another processor, or by another compiler, or do without them."""
    compiler, _, target = name.rpartition(":")
    if compiler:
        os.environ["CXX"] = compiler
    library.TARGET = None if target == "none" else target


def describe_machine(dtype: torch.dtype) -> str:
    """Processor, instruction set, precision and versions, in a line."""
    info = Path("/proc/cpuinfo")
    processor = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    name = processor[1] if processor else platform.processor() or platform.machine()
    if DEVICE.type == "cuda":
        name = f"{torch.cuda.get_device_name()}, {name}"
    instructions = torch.backends.cpu.get_cpu_capability()
    kernels = f"kernels for {library.TARGET}" if library.library().code else "no kernels"
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"{str(dtype).removeprefix('torch.')}, {instructions}, {kernels}; {_versions()}"
    )


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def now() -> float:
    """Seconds, after the device has done all that it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def gemm_speed(dtype: torch.dtype, tries: int = 8) -> float:
    """FLOP/s of the fastest of some square matrix products.

    They are large enough to last some hundredths of a second: on a processor that emulates
    bfloat16, that is a hundred times smaller than on one that multiplies it.
    """
    size, seconds = 128, 0.0
    while seconds < 0.03 and size < 8192:
        size *= 2
        a = torch.randn(size, size, device=DEVICE, dtype=dtype)
        seconds = min(_product_seconds(a) for _ in range(2))  # the first touches memory
    return 2 * size**3 / min(seconds, *(_product_seconds(a) for _ in range(tries)))


def _product_seconds(a: torch.Tensor) -> float:
    start = now()
    a @ a
    return now() - start


def peak_memory() -> int:
    """Bytes of this process at the most, or of the GPU where there is one."""
    return memory.peak_memory(DEVICE)
