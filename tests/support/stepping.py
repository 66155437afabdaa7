"""A run that is ready for its first optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from offbook.monitor import Metrics, Monitor, RowLosses
from offbook.runs.checkpoint import Progress
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.training.log import Log
from offbook.training.loop import training_steps
from offbook.training.setup import prepare
from offbook.training.step import Stepper, StepResult


class Kept(Log):
    """A log that keeps records in a list, without those of rows, and writes nothing."""

    def __init__(self, records: list[Metrics]) -> None:
        self._records = records

    def __call__(self, record: Metrics) -> None:
        if not isinstance(record, RowLosses):
            self._records.append(record)

    def flush(self) -> None:
        pass


def make_stepper(
    config: Config,
    log: list[Metrics] | None = None,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> Stepper:
    """The state of a run before its first step; `log` receives its metrics."""
    loaded = prepare(config, Monitor())
    return Stepper(
        loaded,
        optimizer([{"params": loaded.trained_parameters(), "lr_ratio": 1.0}], lr=1.0),
        Progress(loaded.inputs.plan.micro_batch_tokens),
        Kept([] if log is None else log),
        lambda text: None,
        lambda: False,
    )


def steps_of(stepper: Stepper) -> Iterator[StepResult]:
    """The steps of a run, each taken when asked for."""
    run = RunDirectory(Path(stepper.loaded.inputs.config.output_dir))
    steps = training_steps(run, stepper, Monitor())
    return (result for result in steps if isinstance(result, StepResult))


def flat(stepper: Stepper) -> torch.Tensor:
    """A copy of all trained weights, end to end."""
    return torch.cat([p.detach().flatten() for p in stepper.optimizer.param_groups[0]["params"]])
