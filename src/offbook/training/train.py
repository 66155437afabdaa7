"""Training from start to end: open the run directory, load, take the steps, save the adapter.

The steps are in `loop.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offbook.engine.machine import refuse_forked_child
from offbook.errors import ConfigError, OffbookError, PeerLostError
from offbook.files import storage
from offbook.monitor import LineMonitor, Monitor
from offbook.runs import checkpoint
from offbook.runs.card import finished_adapter
from offbook.runs.checkpoint import Progress
from offbook.runs.directory import COMMITTED, RunDirectory
from offbook.runs.receipt import Receipt
from offbook.settings.config import Config
from offbook.tokens.own_template import with_template_text
from offbook.training.changeable import settings_to_resume
from offbook.training.distributed import Processes
from offbook.training.ending import finished_steps
from offbook.training.interrupt import Interrupt, Stopped
from offbook.training.joining import has_begun, join, require_shared
from offbook.training.log import open_log
from offbook.training.loop import training_steps
from offbook.training.resume import load_or_restore
from offbook.training.setup import LoadedRun
from offbook.training.shared import SharedBase
from offbook.training.step import Stepper, Wanted


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run: its directory.
        finished: False when it was stopped; it can be resumed.
        steps: optimizer steps done.
        eval_loss_before, eval_loss: validation loss of the base and of the result, in nats per
            token; None without validation rows.
        best_step: the step of the checkpoint with the lowest validation loss, if there is one.
        seconds: spent in optimizer steps, by this process.
        examples_per_second: over those seconds.
    """

    run: Path
    finished: bool
    steps: int
    eval_loss_before: float | None
    eval_loss: float | None
    best_step: int | None
    seconds: float
    examples_per_second: float


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    within: float | None = None,
    monitor: Monitor | Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    share: float = 1.0,
    shared: SharedBase | None = None,
) -> TrainResult:
    """Train an adapter with the settings in `config`, into its `output_dir`.

    Args:
        config: all settings.
        resume: continue from the newest checkpoint in `output_dir`; start where no run has begun.
        overwrite: replace a run that is there, but no other files.
        within: seconds that a new run may take; it gets as many steps as fit, by a measurement, and
            no more than `config` says. A run that is resumed keeps its steps.
        monitor: receives progress and messages: a function that is called with lines of text, such
            as `print`, or a `Monitor`.
        should_stop: called before each micro-batch; when it returns true, the run saves and
            returns.
        share: of the steps; after them, the run is validated and saved, and can be resumed.
        shared: a base that other runs are trained on, too; by default, the run loads its own.

    Raises:
        OffbookError: its class says what kind of thing is wrong.
        KeyboardInterrupt: after Ctrl-C, when the run is saved; its text says how to go on.
    """
    with ExitStack() as lines:
        if callable(monitor):
            monitor = lines.enter_context(LineMonitor(monitor))
        steps = train_by_steps(
            config,
            resume=resume,
            overwrite=overwrite,
            within=within,
            monitor=monitor or Monitor(),
            should_stop=should_stop,
            share=share,
            shared=shared,
        )
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: TrainResult = end.value
                return result


def train_by_steps(
    config: Config,
    *,
    monitor: Monitor,
    should_stop: Callable[[], bool],
    resume: bool = False,
    overwrite: bool = False,
    within: float | None = None,
    share: float = 1.0,
    shared: SharedBase | None = None,
) -> Generator[Wanted | None, None, TrainResult]:
    """As `train`, pausing when all is loaded, and where it waits for gradients.

    Yields:
        What gradients it waits for; those that nobody computes, it computes itself. None when all
        is loaded.

    A new run that is closed before its first step leaves nothing behind. One that it is to replace
    is removed when all is loaded and the engine is checked.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite contradict each other", fix="give one of them")
    config = with_template_text(config)
    # Unlike pathlib's, this leaves an unknown ~user as it is.
    run = RunDirectory(Path(os.path.expanduser(config.output_dir)))  # noqa: PTH111
    refuse_forked_child()
    with join(config.model.device) as processes, ExitStack() as claims:
        # The first process alone reports, and touches the run directory.
        monitor = monitor if processes.leads else Monitor()
        if processes.size > 1 and shared:
            raise ConfigError(
                "runs that share a base are trained by one process", fix="start it as one process"
            )
        if processes.restarted and processes.leads and not resume:
            resume = has_begun(run) if overwrite else run.begun
            overwrite = overwrite and not resume
        processes.first(lambda: claims.enter_context(run.claim()))
        require_shared(run, processes)

        def open_() -> dict[str, Any]:
            nonlocal config, resume
            config, resume, steps = _open(run, config, monitor, resume=resume, overwrite=overwrite)
            return {"resume": resume, "steps": steps}

        opened = processes.first(open_)
        if opened["steps"] is not None:
            return _result(run, processes, opened["steps"])
        loaded, optimizer, progress, receipt = load_or_restore(
            *(run, config, monitor, processes),
            resume=opened["resume"],
            within=within,
            shared=shared,
        )
        with Interrupt(should_stop) as interrupt:
            yield None
            seconds, examples, finished = yield from _train(
                *(run, loaded, optimizer, progress, monitor, interrupt, share, processes),
                new=None if opened["resume"] else receipt,
                together=bool(shared and shared.together),
            )
        if finished:
            processes.first(lambda: _commit_adapter(run, loaded))
        result = _result(run, processes, progress.step, finished, seconds, examples)
        if interrupt.arrived:
            raise KeyboardInterrupt(_how_to_go_on(run, progress.step, finished))
        return result


def _open(
    run: RunDirectory, config: Config, monitor: Monitor, *, resume: bool, overwrite: bool
) -> tuple[Config, bool, int | None]:
    """Look at the run directory.

    Returns:
        The settings to train with, whether to resume, and the steps of a run that has finished.
    """
    run.clean()
    if resume and not run.begun:
        monitor.announce(f"no run has begun in {run.path}: it starts now")
        resume = False
    steps = None
    if resume:
        config = settings_to_resume(run, config)
        if (steps := finished_steps(run, config, monitor.announce)) is not None:
            run.forget_after(steps)
    elif not overwrite:
        run.refuse_to_replace()
    return config, resume, steps


def _commit_adapter(run: RunDirectory, loaded: LoadedRun) -> None:
    if not checkpoint.is_result(run):
        inputs = loaded.inputs
        files = finished_adapter(
            loaded.model, inputs.config, run.receipt(), inputs.base, inputs.template
        )
        storage.commit(run.adapter, files, COMMITTED)


def _train(
    run: RunDirectory,
    loaded: LoadedRun,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    monitor: Monitor,
    should_stop: Callable[[], bool],
    share: float,
    processes: Processes,
    new: Receipt | None,
    together: bool,
) -> Generator[Wanted, None, tuple[float, int, bool]]:
    """Begin a new run, take the steps that are left of a share, and save where it is stopped.

    Returns:
        Seconds spent in steps, examples seen in them, and whether the run has finished.
    """
    seconds, examples, inputs = 0.0, 0, loaded.inputs
    with open_log(
        run if processes.leads else None, inputs.config.train, monitor, progress.step
    ) as log:
        stepper = Stepper(
            *(loaded, optimizer, progress, log, monitor.announce, should_stop, processes),
            together=together,
        )
        if progress.step < inputs.schedule.steps_of_share(stepper.settings, share):
            monitor.busy("comparing gradients with those of transformers and PEFT")
            # Fast and plain path must give the same gradients on these rows, on this device.
            stepper.check_engine(inputs.examples(progress.step))
        if new:  # only now, as this removes a run that was there
            processes.first(lambda: run.begin(inputs.config, new))
        try:
            for result in training_steps(run, stepper, monitor, share):
                if isinstance(result, Wanted):
                    yield result
                else:
                    seconds += result.seconds
                    examples += result.examples
        except Stopped:
            if progress.step > 0:
                stepper.save(run, stepper.validations(run))
            return seconds, examples, False
        except (OffbookError, GeneratorExit) as error:
            if processes.leads and progress.step == 0 and new:
                run.undo_begin()
            elif processes.leads and progress.step > 0 and isinstance(error, PeerLostError):
                stepper.write(run, checkpoint.validations(run))  # what was done is here
            raise
    total = inputs.schedule.total_steps(stepper.settings)
    return seconds, examples, share == 1 or progress.step == total


def _result(
    run: RunDirectory,
    processes: Processes,
    steps: int,
    finished: bool = True,
    seconds: float = 0.0,
    examples: int = 0,
) -> TrainResult:
    losses, best = processes.first(
        lambda: (list(checkpoint.validations(run).values()), checkpoint.best_step(run))
    )
    return TrainResult(
        run=run.path,
        finished=finished,
        steps=steps,
        eval_loss_before=losses[0] if losses else None,
        eval_loss=losses[-1] if losses else None,
        best_step=best,
        seconds=seconds,
        examples_per_second=examples / seconds if seconds else 0.0,
    )


def _how_to_go_on(run: RunDirectory, step: int, finished: bool) -> str:
    if finished:
        return f"the run in {run.path} has finished"
    saved = f"saved after step {step}" if step else "stopped in the first step"
    return f"{saved}; continue with `offbook.train(config, resume=True)`, or `{run.command}`"
