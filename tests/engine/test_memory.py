"""The allocators' settings, and which errors say that memory is not enough."""

from __future__ import annotations

import os

import pytest
import torch

from offbook.engine.memory import (
    ALLOCATOR,
    CUBLAS,
    is_out_of_memory,
    prepare_allocator,
    prepare_deterministic,
)
from offbook.errors import ConfigError
from support.engines import CPU

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_form_of_too_little_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access"), OSError("out of memory")]
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_blocks_of_a_gpu_grow_unless_the_user_has_a_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ALLOCATOR:
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    prepare_allocator(CPU)
    assert not any(name in os.environ for name in ALLOCATOR)
    prepare_allocator(GPU)
    assert [os.environ.get(name) for name in ALLOCATOR] == [None, "expandable_segments:True"]
    monkeypatch.delenv(ALLOCATOR[1])
    monkeypatch.setenv(ALLOCATOR[0], "max_split_size_mb:64")
    prepare_allocator(GPU)
    assert ALLOCATOR[1] not in os.environ


def test_cublas_is_set_up_before_the_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = CUBLAS
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    prepare_deterministic(CPU)
    assert name not in os.environ
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=f"set {name}={value} in the environment"):
        prepare_deterministic(GPU)
    monkeypatch.setenv(name, value)
    prepare_deterministic(GPU)
    monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    prepare_deterministic(GPU)
    assert os.environ[name] == value
