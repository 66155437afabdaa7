"""The training loop: what happens in a step, and what is due between steps."""

from __future__ import annotations

import time
from collections.abc import Iterator

from offbook.engine.memory import peak_memory
from offbook.monitor import EvalMetrics, Monitor, StepMetrics
from offbook.runs.checkpoint import lowest
from offbook.runs.directory import RunDirectory
from offbook.training.ending import describe_early_end, out_of_patience
from offbook.training.schedule import learning_rate_at
from offbook.training.step import Stepper, StepResult, Wanted


def training_steps(
    run: RunDirectory, stepper: Stepper, monitor: Monitor, share: float = 1.0
) -> Iterator[StepResult | Wanted]:
    """Take the steps that are left of a share of all, yielding the result of each.

    A run that is trained together with others also yields what gradients it waits for.

    The checkpoint of a step is saved before its evaluation. A run that is killed in the evaluation
    resumes from the checkpoint and evaluates there, as `metrics.jsonl` has no result of it yet.
    Where only the evaluation calls for a checkpoint, its result is logged first. A run that is
    killed between the two resumes from the checkpoint before, and forgets the result.

    Raises:
        Stopped: when asked to stop, within a step or an evaluation; its result is discarded.
        OffbookError: when the run cannot continue.
    """
    progress, settings, inputs = stepper.progress, stepper.settings, stepper.loaded.inputs
    validation = inputs.validation
    schedule = inputs.schedule
    total = schedule.total_steps(settings)
    last = schedule.steps_of_share(settings, share)
    eval_steps = settings.eval_steps or schedule.steps_per_epoch
    losses = stepper.validations(run)
    if last < total:
        monitor.announce(f"the first {last:,} of {total:,} steps")
    elif share < 1:
        monitor.announce(f"all {total:,} steps, which are too few to stop before the last")
    monitor.begin(progress.step, last)
    while True:
        # What is due after `step` steps: save, evaluate, or end. Then the next step.
        step, finished = progress.step, progress.step >= last
        evaluation_due = step not in losses and (finished or step % eval_steps == 0)
        if step and (finished or step % settings.save_steps == 0):
            stepper.save(run, losses)
        if evaluation_due and len(validation):
            monitor.busy("validating")
            losses[step] = stepper.evaluate(validation)
            stepper.log(EvalMetrics(step, losses[step]))
        if not finished and step in losses and out_of_patience(losses, settings.patience):
            finished = True
            monitor.announce(describe_early_end(losses))
        if step and (finished or (settings.keep_best and step == lowest(losses))):
            stepper.save(run, losses)
        if finished:
            return

        rows = schedule.rows(step)
        examples = inputs.examples(step)
        learning_rate = learning_rate_at(step, total, settings)
        loss, tokens, by_row, seconds = yield from stepper.gradients(examples)
        started = time.perf_counter()
        grad_norm = stepper.clip_gradients()
        stepper.require_finite(loss, grad_norm, examples)
        if not stepper.is_loss_spike(loss):
            stepper.update(learning_rate)
        stepper.optimizer.zero_grad(set_to_none=True)
        progress.add(loss, tokens)
        seconds += time.perf_counter() - started

        result = StepResult(loss, grad_norm, learning_rate, len(examples), seconds)
        monitor.step(progress.step, progress.mean, result.examples_per_second)
        if step < schedule.steps_per_epoch:
            stepper.log_rows(rows, by_row)
        stepper.check_rate(total)
        # With patience, a validation may end the run, which then has logged all its losses.
        may_end = settings.patience is not None and progress.step % eval_steps == 0
        if progress.step == total or progress.step % settings.logging_steps == 0 or may_end:
            stepper.log(
                StepMetrics(
                    step=progress.step,
                    epoch=round(progress.step / schedule.steps_per_epoch, 4),
                    loss=progress.take_mean(),
                    grad_norm=grad_norm,
                    learning_rate=learning_rate,
                    examples_per_second=round(result.examples_per_second, 3),
                    memory=max(map(peak_memory, inputs.devices)),
                )
            )
        yield result
