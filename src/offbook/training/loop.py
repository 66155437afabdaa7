"""The training loop, readable from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offbook.config import Config, TrainSettings
from offbook.engine.check import check_gradients
from offbook.engine.ops.library import library
from offbook.errors import CheckpointError, ConfigError
from offbook.files import storage
from offbook.models.adapter import adapter_files
from offbook.monitor import Monitor
from offbook.runs import checkpoint
from offbook.runs.checkpoint import Progress
from offbook.runs.directory import RunDirectory
from offbook.runs.receipt import make_receipt, require_same_base
from offbook.training.schedule import Schedule
from offbook.training.setup import LoadedRun, gather, load
from offbook.training.step import Log, Stepper

FLOAT32 = 4  # bytes of a trained parameter


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run: its directory.
        finished: False when it was stopped; it can be resumed.
        steps: optimizer steps done.
        eval_loss_before, eval_loss: validation loss of the base and of the result, in nats a
            token; None without validation rows.
        seconds: spent in optimizer steps, by this process.
        examples_per_second: over those seconds.
    """

    run: Path
    finished: bool
    steps: int
    eval_loss_before: float | None
    eval_loss: float | None
    seconds: float
    examples_per_second: float


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    monitor: Monitor | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train an adapter as `config` says, into its `output_dir`.

    Args:
        config: all settings.
        resume: go on from the newest checkpoint in `output_dir`.
        overwrite: replace a run that is there.
        monitor: told of progress.
        should_stop: asked between micro-batches; when true, the run saves and returns.

    Raises:
        OffbookError: of the class that names what is wrong.
    """
    monitor = monitor or Monitor()
    run = RunDirectory(Path(config.output_dir))
    if resume:
        run = RunDirectory.open(run.path)
    else:
        run.make()
    with storage.lock(run.path):
        return _train(run, config.with_absolute_paths(), resume, overwrite, monitor, should_stop)


def _train(
    run: RunDirectory,
    config: Config,
    resume: bool,
    overwrite: bool,
    monitor: Monitor,
    should_stop: Callable[[], bool],
) -> TrainResult:
    run.clean()
    if resume:
        config = run.settings_to_resume(config)
    elif not overwrite:
        run.refuse_to_replace()
    begun = run.receipt().get("micro_batch_tokens") if resume else None
    materials = gather(config, monitor, micro_batch_tokens=begun)
    run.require_space(materials.shape.adapter * FLOAT32, config.train.save_total_limit)
    parts = load(materials, monitor)
    receipt = _receipt(parts)
    optimizer = torch.optim.AdamW(
        [p for p in parts.model.parameters() if p.requires_grad],
        lr=config.train.learning_rate,
        weight_decay=config.train.weight_decay,
        fused=True,
    )
    progress = Progress(parts.plan.micro_batch_tokens)
    if resume:
        progress = _resume(run, receipt, parts, optimizer, monitor)
    else:
        run.begin(parts.config, receipt)
    with _log(run, config.train, monitor, progress.step) as log:
        stepper = Stepper(parts, optimizer, progress, log, monitor.announce, should_stop)
        finished, seconds, rows = _steps(run, stepper, monitor)
    if finished and storage.verify(run.adapter) is not None:
        storage.commit(run.adapter, adapter_files(parts.model))
    losses = [record["eval_loss"] for record in run.metrics() if "eval_loss" in record]
    return TrainResult(
        run=run.path,
        finished=finished,
        steps=progress.step,
        eval_loss_before=losses[0] if losses else None,
        eval_loss=losses[-1] if losses else None,
        seconds=seconds,
        examples_per_second=rows / seconds if seconds else 0.0,
    )


def _receipt(parts: LoadedRun) -> dict[str, Any]:
    return make_receipt(
        parts.base,
        str(parts.template.tokenizer.chat_template),
        parts.data,
        parts.training,
        parts.validation,
        parts.device,
        library().code is not None,
        parts.plan.micro_batch_tokens,
    )


def _steps(run: RunDirectory, stepper: Stepper, monitor: Monitor) -> tuple[bool, float, int]:
    """Take the steps that are left.

    Returns:
        Whether all are done; the seconds and the examples they took.
    """
    parts, progress, settings = stepper.parts, stepper.progress, stepper.parts.config.train
    schedule = Schedule.of(parts.training, settings)
    total = schedule.total_steps(settings)
    validated = {record["step"] for record in run.metrics() if "eval_loss" in record}
    seconds, rows, saved = 0.0, 0, progress.step
    monitor.begin(progress.step, total)
    if progress.step < total:
        examples = [parts.training[row] for row in schedule.rows(progress.step)]
        check_gradients(parts.engine, examples, parts.device)
    while True:
        step, last = progress.step, progress.step == total
        if step != saved and (step % settings.save_steps == 0 or last):
            _save(run, stepper)
            saved = step
        due = step % (settings.eval_steps or schedule.steps_per_epoch) == 0 or last
        if due and step not in validated and not stepper.validate():
            break
        if last:
            return True, seconds, rows
        started = time.perf_counter()
        taken = stepper.step()
        if taken is None:
            break
        elapsed = time.perf_counter() - started
        seconds, rows = seconds + elapsed, rows + taken.examples
        monitor.step(progress.step, taken.loss, taken.examples / elapsed)
        if progress.step % settings.logging_steps == 0 or progress.step == total:
            stepper.log(
                {
                    "step": progress.step,
                    "epoch": round(progress.step / schedule.steps_per_epoch, 4),
                    "loss": progress.take_mean(),
                    "grad_norm": taken.grad_norm,
                    "learning_rate": taken.learning_rate,
                    "examples_per_second": round(taken.examples / elapsed, 3),
                }
            )
    if progress.step > 0:  # before the first step there is nothing to lose
        _save(run, stepper)
    return False, seconds, rows


def _save(run: RunDirectory, stepper: Stepper) -> None:
    """Commit a checkpoint of weights that are numbers."""
    stepper.check_weights()
    keep = stepper.parts.config.train.save_total_limit
    checkpoint.save(run, stepper.parts.model, stepper.optimizer, stepper.progress, keep)


@contextmanager
def _log(run: RunDirectory, settings: TrainSettings, monitor: Monitor, step: int) -> Iterator[Log]:
    """A function that writes a record to `metrics.jsonl`, the monitor and TensorBoard."""
    board = None
    if settings.report_to == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "TensorBoard is not installed",
                where="train.report_to",
                fix="run `pip install 'offbook[tensorboard]'`",
            ) from None
        board = SummaryWriter(str(run.path / "tensorboard"), purge_step=step or None)

    def log(record: dict[str, Any]) -> None:
        run.log(record)
        monitor.metrics(record)
        if board:
            for name in record.keys() - {"step"}:
                board.add_scalar(name, record[name], record["step"])

    try:
        yield log
    finally:
        if board:
            board.close()


def _resume(
    run: RunDirectory,
    receipt: dict[str, Any],
    parts: LoadedRun,
    optimizer: torch.optim.Optimizer,
    monitor: Monitor,
) -> Progress:
    begun = run.receipt()
    require_same_base(begun, receipt, run.path)
    if receipt["data"] != begun["data"]:
        raise CheckpointError(
            "the data is not the one the run was begun with",
            where=str(run.path),
            fix="restore it, or train anew with --overwrite",
        )
    exact = ("versions", "device", "micro_batch_tokens")
    changed = [part.replace("_", " ") for part in exact if receipt[part] != begun.get(part)]
    if changed:
        monitor.announce(
            f"changed since the run was begun: {', '.join(changed)}; "
            "the result may differ in its last bits"
        )
    planned = parts.plan.micro_batch_tokens
    progress = checkpoint.restore(run, parts.model, optimizer, monitor.announce)
    progress = progress or Progress(planned)
    progress.micro_batch_tokens = min(progress.micro_batch_tokens, planned)
    run.forget_after(progress.step if progress.step else -1)
    monitor.announce(f"resuming after step {progress.step}")
    return progress
