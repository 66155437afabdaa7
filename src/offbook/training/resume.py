"""How a run is loaded, new or from its newest checkpoint; what has to be the same then."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import date
from typing import Any

import torch

from offbook.errors import CheckpointError, ConfigError
from offbook.files import storage
from offbook.monitor import Monitor
from offbook.runs import checkpoint
from offbook.runs.checkpoint import Progress
from offbook.runs.directory import COMMITTED, RunDirectory, step_of
from offbook.runs.places import BASE, find_base, find_data, find_moved, resume_with
from offbook.runs.receipt import Receipt
from offbook.settings.config import Config
from offbook.training.distributed import Processes
from offbook.training.ending import last_step
from offbook.training.forecast import fit_to_time
from offbook.training.inputs import RunInputs, gather
from offbook.training.schedule import describe_change
from offbook.training.setup import LoadedRun, load, make_receipt
from offbook.training.shared import SharedBase

FLOAT32 = 4  # bytes of a trained parameter


def load_or_restore(
    run: RunDirectory,
    config: Config,
    monitor: Monitor,
    processes: Processes,
    *,
    resume: bool,
    within: float | None = None,
    shared: SharedBase | None = None,
) -> tuple[LoadedRun, torch.optim.Optimizer, Progress, Receipt]:
    """Load a new run, or restore the state of the newest checkpoint.

    The first process does that; the others read the same rows and load the same base, and get the
    state from it.

    Args:
        run: a directory that no other process writes to.
        config: all settings; of a run to resume, what `settings_to_resume` gives.
        monitor: receives messages of reading and loading.
        processes: that train the run.
        resume: continue the run in the directory; otherwise, one that is there stays as it is, and
            the new one is to be begun with the receipt.
        within: seconds that a new run may take.
        shared: a base that other runs are trained on, too.

    Raises:
        OffbookError: of the class that names what is wrong.
    """
    inputs: RunInputs | None = None

    def plan() -> dict[str, Any]:
        nonlocal inputs
        inputs = _plan(
            *(run, config, monitor, processes),
            resume=resume,
            within=within,
            shared=shared,
        )
        return _told(inputs)

    told = processes.first(plan)
    inputs = processes.each(lambda: inputs or _follow(told))
    receipt = make_receipt(inputs, run.path, processes.size)
    read = [receipt.base, receipt.chat_template, list(receipt.data.values())]
    if any(other != read for other in processes.gather(read)):
        raise ConfigError(
            "the processes read other rows, or another base",
            where="data.train, model.base",
            fix="put the same files on all machines, or on a file system that they share",
        )

    def check() -> None:
        keep = config.train.save_total_limit + (
            config.train.keep_best and len(inputs.validation) > 0
        )
        run.require_space(inputs.shape.adapter * FLOAT32, keep)
        if resume:
            _require_same_data(run, receipt)
            _tell_changes(run, receipt, monitor)
            _tell_schedule(run, inputs, monitor)
        elif inputs.start:
            known = inputs.start.describe_known(inputs.validation, inputs.template)
            if known:
                monitor.announce(known)

    processes.first(check)
    loaded = processes.each(lambda: load(inputs, monitor, shared))
    cards = torch.cuda.device_count() if inputs.device.type == "cuda" else 0
    if processes.size == 1 and cards > len(inputs.devices):
        monitor.announce(f"there are {cards} GPUs; with --nproc {cards}, all of them train")
    optimizer = make_optimizer(loaded)

    def restore() -> dict[str, Any]:
        if resume:
            return asdict(_restore(run, loaded, optimizer, monitor))
        return asdict(Progress(inputs.plan.micro_batch_tokens))

    progress = Progress(**processes.first(restore))
    progress.micro_batch_tokens = min(progress.micro_batch_tokens, inputs.plan.micro_batch_tokens)
    processes.spread(loaded.trained_parameters())
    if progress.step and processes.size > 1:
        processes.spread(_moments(optimizer))
    return loaded, optimizer, progress, receipt


def _moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The optimizer's state, in the order of its parameters; zeros where it has none yet."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for p in weights:
        if not optimizer.state[p]:
            zeros = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.zeros((), device=p.device), **zeros}
    return [optimizer.state[p][key] for p in weights for key in ("step", "exp_avg", "exp_avg_sq")]


def _told(inputs: RunInputs) -> dict[str, Any]:
    """What other processes need to read the same rows and to load the same base."""
    day = inputs.template.date
    config = inputs.config.with_value("train.shard_base", inputs.sharded)
    return {
        "config": config.model_dump(mode="json"),
        "commits": inputs.commits,
        "date": day and day.isoformat(),
        "micro_batch_tokens": inputs.plan.micro_batch_tokens,
    }


def _follow(told: dict[str, Any]) -> RunInputs:
    """What a process reads and plans that does not decide anything."""
    start = Receipt(
        date=told["date"] and date.fromisoformat(told["date"]),
        commits=told["commits"],
        micro_batch_tokens=told["micro_batch_tokens"],
    )
    return gather(Config.model_validate(told["config"]), Monitor(), start=start)


def _plan(
    run: RunDirectory,
    config: Config,
    monitor: Monitor,
    processes: Processes,
    *,
    resume: bool,
    within: float | None,
    shared: SharedBase | None,
) -> RunInputs:
    """Read the rows and plan the run, with all settings resolved."""
    start, own = Receipt(), config
    if resume:
        start, own = run.receipt(), run.config()
        config = find_data(run, config)
        place, _ = find_base(run, config, monitor.announce, resume_with(run, BASE))
        config = config.with_value(BASE, place)
        start = replace(start, commits=_same_commits(start.commits, own, config))
    else:
        config = config.with_absolute_paths()
        if run.begun:
            config = find_moved(run, config)
    resumed = run if resume else None
    inputs = gather(config, monitor, start=start, resumed=resumed, shared=shared)
    if within is not None and resume:
        monitor.announce("a run that is resumed keeps its number of steps")
    elif within is not None:
        inputs = fit_to_time(inputs, within, monitor, processes.size)
    return inputs


def make_optimizer(loaded: LoadedRun) -> torch.optim.Optimizer:
    """AdamW for the adapter; each step sets its learning rate, times the group's `lr_ratio`."""
    config, ratio = loaded.inputs.config, loaded.inputs.config.lora.loraplus_lr_ratio
    trained = {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}
    groups = [{"params": list(trained.values()), "lr_ratio": 1.0}]
    if ratio is not None:
        groups = [
            {"params": [p for n, p in trained.items() if "lora_B" not in n], "lr_ratio": 1.0},
            {"params": [p for n, p in trained.items() if "lora_B" in n], "lr_ratio": ratio},
        ]
    return torch.optim.AdamW(groups, weight_decay=config.train.weight_decay, fused=True)


def _same_commits(commits: dict[str, str], own: Config, config: Config) -> dict[str, str]:
    """The commits of what a resumed run still has from the hub."""
    before, now = own.places(), config.places()
    other_revision = own.model.revision != config.model.revision
    return {
        key: commit
        for key, commit in commits.items()
        if before.get(key) == now.get(key) and not (key == BASE and other_revision)
    }


def _require_same_data(run: RunDirectory, receipt: Receipt) -> None:
    """Refuse to resume a run with other rows, or with other examples of them."""
    start = run.receipt()
    if not start.has_data(receipt):
        raise CheckpointError(
            "the data has changed since the run was started",
            where=str(run.path),
            fix="restore it, or start again with --overwrite",
        )
    if start.rows and receipt.rows and start.rows.counts != receipt.rows.counts:
        raise CheckpointError(
            "this version of offbook makes other examples of the data than the version that "
            "started the run",
            where=str(run.path),
            fix="resume with that version, or start again with --overwrite",
        )


def _tell_changes(run: RunDirectory, receipt: Receipt, monitor: Monitor) -> None:
    """Announce why a resumed run may end in other bits."""
    start = run.receipt()
    for notice in (start.missing_date(receipt.date), start.other_conversion(receipt.base)):
        if notice:
            monitor.announce(notice)
    if changed := start.changes_to_last_bits(receipt):
        monitor.announce(
            f"changed since the run was started: {'; '.join(changed)}; "
            "the result may differ in its last bits"
        )


def _tell_schedule(run: RunDirectory, inputs: RunInputs, monitor: Monitor) -> None:
    """Announce that a resumed run has other steps than before, or refuse."""
    schedule, own = inputs.schedule, run.config()
    newest = checkpoint.newest(run, lambda text: None)
    done = (newest and step_of(newest)) or 0
    told = describe_change(schedule, done, own.train, inputs.config.train)
    before, now = _last_steps(run, own, inputs)
    if before < now and not told:
        told = f"the run goes on to step {now:,}; it ended early, in step {before:,}"
    if told:
        if run.finished and done < before:
            raise CheckpointError(
                "the checkpoint of the last step is missing or damaged, so the run cannot go on",
                where=str(run.path),
                fix="restore it from a copy, or start again with --overwrite",
            )
        monitor.announce(told)


def _last_steps(run: RunDirectory, own: Config, inputs: RunInputs) -> tuple[int, int]:
    """The steps after which a run ends by its settings until now, and by those to resume with."""
    schedule, losses = inputs.schedule, checkpoint.validations(run)
    return (
        last_step(losses, schedule, own.train),
        last_step(losses, schedule, inputs.config.train),
    )


def _restore(
    run: RunDirectory,
    loaded: LoadedRun,
    optimizer: torch.optim.Optimizer,
    monitor: Monitor,
) -> Progress:
    """Load the newest checkpoint, and write the settings that have changed."""
    config, own = loaded.inputs.config, run.config()
    progress = checkpoint.restore(run, loaded.model, optimizer, monitor.announce)
    progress = progress or Progress(loaded.inputs.plan.micro_batch_tokens)
    before, now = _last_steps(run, own, loaded.inputs)
    if progress.step < now != before:
        storage.discard(run.adapter, COMMITTED)  # the checkpoint has the same weights
    if config != own:
        run.write_settings(config)
    # Before the first checkpoint everything is repeated, the evaluation of the base included.
    run.forget_after(progress.step if progress.step else -1)
    monitor.announce(f"resuming after step {progress.step}")
    return progress
