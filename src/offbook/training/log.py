"""Where metrics go: to `metrics.jsonl`, the monitor and TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from offbook.errors import ConfigError
from offbook.monitor import Metrics, Monitor, RowLosses
from offbook.runs.directory import RunDirectory
from offbook.settings.sections import TrainSettings


class Log:
    """Writes records of metrics. `open_log` makes it.

    Losses of rows are written with the next record of another kind, or by `flush`: to wait for the
    disk after each step would take time.

    Args:
        run: whose `metrics.jsonl` they are written to; None in a process that writes nothing.
        monitor: receives them, too.
        board: TensorBoard's writer, if any.
    """

    def __init__(self, run: RunDirectory | None, monitor: Monitor, board: Any = None) -> None:
        self._run, self._monitor, self._board = run, monitor, board
        self._waiting: list[Metrics] = []

    def __call__(self, record: Metrics) -> None:
        """Log a record."""
        if self._run is None:
            return
        self._waiting.append(record)
        if isinstance(record, RowLosses):
            return
        self.flush()
        self._monitor.metrics(record)
        if self._board:
            values = asdict(record)
            at_step = values.pop("step")
            for name, value in values.items():
                self._board.add_scalar(name, value, at_step)

    def flush(self) -> None:
        """Write what waits; before a checkpoint, whose step may not be newer than its metrics."""
        if self._run and self._waiting:
            self._run.log(*self._waiting)
            self._waiting = []


@contextmanager
def open_log(
    run: RunDirectory | None, settings: TrainSettings, monitor: Monitor, step: int
) -> Iterator[Log]:
    """The log of a run that continues after `step`.

    Raises:
        ConfigError: when TensorBoard is wanted and not installed.
    """
    board = None
    if run and settings.report_to == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "TensorBoard is not installed",
                where="train.report_to",
                fix="run `pip install 'offbook[tensorboard]'`",
            ) from None
        board = SummaryWriter(str(run.path / "tensorboard"), purge_step=step or None)
    try:
        yield Log(run, monitor, board)
    finally:
        if board:
            board.close()
