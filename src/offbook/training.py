"""The training loop, readable from top to bottom."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from offbook import checkpoint
from offbook.batching import Schedule
from offbook.checkpoint import Progress
from offbook.config import Config, TrainSettings
from offbook.errors import CheckpointError, ConfigError, NonFiniteError
from offbook.model import save_adapter
from offbook.monitor import Monitor
from offbook.prepare import Parts, prepare
from offbook.receipt import make_receipt, require_same_base
from offbook.run import RunDirectory

Log = Callable[[dict[str, Any]], None]


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
    config = config.with_absolute_paths()
    if resume:
        config = RunDirectory.open(run.path).settings_to_resume(config)
    else:
        run.reserve(overwrite)
    begun = run.receipt().get("micro_batch_tokens") if resume else None
    parts = prepare(config, monitor, begun)
    settings = config.train
    optimizer = torch.optim.AdamW(
        [p for p in parts.model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    receipt = make_receipt(
        parts.base,
        str(parts.template.tokenizer.chat_template),
        parts.data,
        parts.training,
        parts.validation,
        parts.device,
        parts.plan.micro_batch_tokens,
    )
    if resume:
        progress = _resume(run, receipt, parts.model, optimizer, monitor)
    else:
        progress = Progress()
        run.begin(parts.config, receipt)
    with _log(run, settings, monitor, progress.step) as log:
        seconds, rows = _steps(run, parts, optimizer, progress, log, monitor, should_stop)
    total = Schedule.of(parts.training, settings).total_steps(settings)
    if progress.step == total:
        partial = run.adapter.with_name(".adapter.partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_adapter(parts.model, partial)
        checkpoint.replace_folder(partial, run.adapter)
    losses = [record["eval_loss"] for record in run.metrics() if "eval_loss" in record]
    return TrainResult(
        run=run.path,
        finished=progress.step == total,
        steps=progress.step,
        eval_loss_before=losses[0] if losses else None,
        eval_loss=losses[-1] if losses else None,
        seconds=seconds,
        examples_per_second=rows / seconds if seconds else 0.0,
    )


def _steps(
    run: RunDirectory,
    parts: Parts,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    log: Log,
    monitor: Monitor,
    should_stop: Callable[[], bool],
) -> tuple[float, int]:
    """Take the optimizer steps that are left; return the seconds and examples they took."""
    model, settings = parts.model, parts.config.train
    schedule = Schedule.of(parts.training, settings)
    total = schedule.total_steps(settings)
    seconds, rows_done = 0.0, 0
    monitor.begin(progress.step, total)
    if progress.step < total:
        rows = schedule.rows(progress.step)
        parts.engine.check([parts.training[row] for row in rows], parts.device)
    if progress.step == 0:
        _validate(parts, 0, log, should_stop)
    while progress.step < total:
        started = time.perf_counter()
        examples = [parts.training[row] for row in schedule.rows(progress.step)]
        learning_rate = learning_rate_at(progress.step, total, settings)
        batches = parts.cut(examples)
        loss = parts.engine.accumulate(batches, [settings.seed, progress.step], should_stop)
        if loss is None:
            if progress.step > 0:  # before the first step there is nothing to lose
                checkpoint.save(run, model, optimizer, progress, settings.save_total_limit)
            break
        grad_norm = math.nan
        if math.isfinite(loss):
            grad_norm = update(model, optimizer, learning_rate, settings.max_grad_norm)
        if not math.isfinite(grad_norm):
            raise _not_finite(progress.step, loss, grad_norm, [e.source for e in examples])
        elapsed = time.perf_counter() - started
        seconds, rows_done = seconds + elapsed, rows_done + len(examples)
        progress.add(loss, batches.supervised)
        step, last = progress.step, progress.step == total
        monitor.step(step, loss, len(examples) / elapsed)
        if step % settings.logging_steps == 0 or last:
            log(
                {
                    "step": step,
                    "epoch": round(step / schedule.steps_per_epoch, 4),
                    "loss": progress.take_mean(),
                    "grad_norm": grad_norm,
                    "learning_rate": learning_rate,
                    "examples_per_second": round(len(examples) / elapsed, 3),
                }
            )
        if step % (settings.eval_steps or schedule.steps_per_epoch) == 0 or last:
            _validate(parts, step, log, should_stop)
        if step % settings.save_steps == 0 or last:
            checkpoint.save(run, model, optimizer, progress, settings.save_total_limit)
    return seconds, rows_done


def update(
    model: PeftModel, optimizer: torch.optim.Optimizer, learning_rate: float, max_grad_norm: float
) -> float:
    """Clip the gradients and take the optimizer step, unless they are not finite.

    Returns:
        The norm of the gradients before clipping.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
    if math.isfinite(grad_norm):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm


def learning_rate_at(step: int, total: int, settings: TrainSettings) -> float:
    """The learning rate of the step after `step` of `total`, as transformers' schedules have it."""
    peak, warmup = settings.learning_rate, math.ceil(settings.warmup_ratio * total)
    if step < warmup:
        return peak * step / warmup
    if settings.lr_scheduler_type == "constant":
        return peak
    done = (step - warmup) / max(total - warmup, 1)
    if settings.lr_scheduler_type == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak * (1 - done)


def _validate(parts: Parts, step: int, log: Log, should_stop: Callable[[], bool]) -> None:
    if len(parts.validation):
        loss = parts.engine.mean_loss(parts.cut(parts.validation), should_stop)
        if loss is not None:
            log({"step": step, "eval_loss": loss})


def _not_finite(step: int, loss: float, grad_norm: float, sources: list[str]) -> NonFiniteError:
    return NonFiniteError(
        f"step {step + 1} has loss {loss:g} and gradient norm {grad_norm:g}; "
        f"its rows are {', '.join(sources)}",
        fix="it changed nothing; train anew with --overwrite and a lower train.learning_rate",
    )


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
    model: PeftModel,
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
    folder = checkpoint.newest(run)
    progress = checkpoint.restore(folder, model, optimizer) if folder else Progress()
    run.forget_after(progress.step if progress.step else -1)
    monitor.announce(f"resuming after step {progress.step}")
    return progress
