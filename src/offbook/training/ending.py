"""When a run ends: after its last step, or where validations give no lower loss any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from offbook.files import storage
from offbook.runs.checkpoint import lowest, validations
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.settings.sections import TrainSettings
from offbook.training.schedule import Schedule


def out_of_patience(losses: Mapping[int, float], patience: int | None) -> bool:
    """Whether the last `patience` validations gave no new lowest loss.

    Args:
        losses: the validation loss after each step that has one.
        patience: `train.patience`.
    """
    best = lowest(losses)
    return best is not None and patience is not None and sum(s > best for s in losses) >= patience


def describe_early_end(losses: Mapping[int, float]) -> str:
    """Why a run ends after the last of these validations."""
    best, last = lowest(losses), max(losses)
    assert best is not None
    return (
        f"train.patience ends the run in step {last:,}: the validation loss was lowest after step "
        f"{best:,}, {losses[best]:.3f}, and is {losses[last]:.3f}"
    )


def last_step(losses: Mapping[int, float], schedule: Schedule, settings: TrainSettings) -> int:
    """The step after which a run with these validations ends."""
    early = out_of_patience(losses, settings.patience)
    return max(losses) if early else schedule.total_steps(settings)


def finished_steps(
    run: RunDirectory, config: Config, announce: Callable[[str], None]
) -> int | None:
    """How many steps a run has taken, if it has finished and is not to be continued.

    Args:
        run: to look at.
        config: the settings to resume it with.
        announce: is told that it has finished, how to go on, and why where it ended early.
    """
    rows, own = run.receipt().rows, run.config()
    if rows is None or storage.verify(run.adapter) is not None:
        return None
    schedule, losses = Schedule.of(rows.training, own), validations(run)
    steps = last_step(losses, schedule, own.train)
    if last_step(losses, schedule, config.train) != steps:
        return None
    early = steps < schedule.total_steps(config.train)
    whole = "num_train_epochs" if own.train.max_steps is None else "max_steps"
    setting = "patience" if early else whole
    announce(
        f"the run has finished already, in step {steps:,}; add a higher train.{setting} to go on"
    )
    if early:
        announce(describe_early_end(losses))
    return steps
