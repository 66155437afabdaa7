"""Runs that are listened to, stopped and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load_file

from offbook.files.storage import sha256
from offbook.monitor import Metrics, Monitor
from offbook.runs.checkpoint import newest
from offbook.runs.directory import RunDirectory

Record = TypeVar("Record", bound=Metrics)


class Listener(Monitor):
    """Keeps what is announced."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def announce(self, text: str) -> None:
        self.heard.append(text)


class StopAfter(Listener):
    """Stops a run after this many steps, and this many micro-batches of the next step."""

    def __init__(self, steps: int, batches: int = 0) -> None:
        super().__init__()
        self.steps, self.micro_batches = steps, batches

    def step(self, step: int, loss: float, examples_per_second: float) -> None:
        self.steps -= 1

    def should_stop(self) -> bool:
        if self.steps <= 0:
            self.micro_batches -= 1
        return self.micro_batches < 0


def stop_after(calls: int) -> Callable[[], bool]:
    """A `should_stop` that is true from this call on."""
    answers = iter([False] * calls)
    return lambda: next(answers, True)


def records_of(kind: type[Record], run: Path) -> list[Record]:
    """The lines of one kind in a run's `metrics.jsonl`."""
    return [record for record in RunDirectory(run).metrics() if isinstance(record, kind)]


def curve(run: Path) -> list[dict[str, object]]:
    """The metrics, without the time and memory they took."""
    lines = map(asdict, RunDirectory(run).metrics())
    varying = {"examples_per_second", "memory"}
    return [{k: v for k, v in line.items() if k not in varying} for line in lines]


def hashes(run: Path) -> tuple[str, ...]:
    """Of the adapter and of the optimizer's moments in the last checkpoint."""
    last = newest(RunDirectory(run), pytest.fail)
    assert last is not None
    return tuple(
        sha256(file)
        for file in (
            run / "adapter" / "adapter_model.safetensors",
            last / "adapter_model.safetensors",
            last / "optimizer.safetensors",
        )
    )


def content(folder: Path) -> dict[Path, bytes]:
    """Every file in a folder and its subfolders."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def difference(one: Path, other: Path) -> float:
    """The largest difference of a weight of two runs' adapters."""

    def weights(run: Path) -> torch.Tensor:
        adapter = load_file(run / "adapter" / "adapter_model.safetensors")
        return torch.cat([adapter[name].flatten() for name in sorted(adapter)])

    return (weights(one) - weights(other)).abs().max().item()
