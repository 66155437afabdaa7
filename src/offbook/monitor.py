"""How long work tells of its progress, so that only the command line prints."""

from __future__ import annotations

from typing import Any


class Monitor:
    """What training tells while it works. Subclass it and override what you want to hear."""

    def announce(self, text: str) -> None:
        """A fact worth a line."""

    def reading(self, rows: int) -> None:
        """Rows tokenized so far."""

    def begin(self, step: int, total: int) -> None:
        """Training starts after `step` of `total` optimizer steps."""

    def step(self, step: int, loss: float, examples_per_second: float) -> None:
        """An optimizer step is done."""

    def metrics(self, record: dict[str, Any]) -> None:
        """A line was added to `metrics.jsonl`."""
