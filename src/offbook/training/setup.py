"""What a run is made of, loaded and checked, cheapest first so that mistakes show early."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel

from offbook.config import Config
from offbook.data.conversations import read_conversations
from offbook.engine.engine import Engine
from offbook.engine.machine import limit_threads
from offbook.engine.memory import keep_freed_memory
from offbook.engine.ops.library import library
from offbook.errors import CheckpointError
from offbook.files.storage import sha256
from offbook.libraries import quiet_transformers
from offbook.models.adapter import attach_adapter
from offbook.models.base import context_length, has_weights, resolve_base, vocabulary_size
from offbook.models.load import (
    base_of,
    choose_device,
    choose_precision,
    load_base,
    require_quantization,
)
from offbook.models.weights import check_weights
from offbook.monitor import Monitor
from offbook.runs import checkpoint
from offbook.runs.checkpoint import Progress
from offbook.runs.directory import RunDirectory
from offbook.runs.receipt import Device, Receipt, Rows, hash_base, hash_text, installed_versions
from offbook.tokens.examples import Examples, setting_that_keeps, tokenize
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from offbook.tokens.vocabulary import check_vocabulary
from offbook.training.advice import Case, describe
from offbook.training.plan import (
    Memory,
    ModelShape,
    Plan,
    least_memory,
    longest_that_fits,
    make_plan,
)
from offbook.training.schedule import Schedule, check_warmup

FLOAT32 = 4  # bytes of a trained parameter


@dataclass(frozen=True)
class RunInputs:
    """What is known of a run before its base is loaded.

    Attributes:
        config: with its precision resolved.
        base: the folder of the base model.
        template: of its chats.
        data: the files the examples come from.
        training, validation: the examples.
        shape: the base's sizes.
        plan: how steps are divided into micro-batches to fit the machine.
        dtype: of the base.
        device: that computes.
    """

    config: Config
    base: Path
    template: ChatTemplate
    data: tuple[Path, ...]
    training: Examples
    validation: Examples
    shape: ModelShape
    plan: Plan
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class LoadedRun:
    """What a run is made of, loaded.

    Attributes:
        inputs: what was known before.
        model: the base with a fresh adapter.
        engine: computes its losses and gradients.
    """

    inputs: RunInputs
    model: PeftModel
    engine: Engine

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of the adapter."""
        return [p for p in self.model.parameters() if p.requires_grad]


def begin(
    run: RunDirectory, config: Config, monitor: Monitor, *, resume: bool, overwrite: bool
) -> tuple[LoadedRun, torch.optim.Optimizer, Progress]:
    """Start a run, or restore the state of its newest checkpoint.

    Args:
        run: a directory that no other process writes to.
        config: all settings, with absolute paths.
        monitor: receives messages of reading and loading.
        resume: continue the run in the directory.
        overwrite: replace it.

    Raises:
        OffbookError: of the class that names what is wrong.
    """
    run.clean()
    start = Receipt()
    if resume:
        config = run.settings_to_resume(config)
        start = run.receipt()
    elif not overwrite:
        run.refuse_to_replace()
    inputs = gather(config, monitor, start=start)
    run.require_space(inputs.shape.adapter * FLOAT32, config.train.save_total_limit)
    loaded = load(inputs, monitor)
    receipt = make_receipt(inputs)
    optimizer = torch.optim.AdamW(
        loaded.trained_parameters(),
        lr=config.train.learning_rate,
        weight_decay=config.train.weight_decay,
        fused=True,
    )
    if resume:
        return loaded, optimizer, _restore(run, receipt, loaded, optimizer, monitor)
    run.begin(inputs.config, receipt)
    return loaded, optimizer, Progress(inputs.plan.micro_batch_tokens)


def gather(
    config: Config,
    monitor: Monitor,
    *,
    weights: bool = True,
    start: Receipt | None = None,
    device: torch.device | None = None,
    available: int | None = None,
) -> RunInputs:
    """Read the data and plan the run.

    Args:
        config: of the run.
        monitor: receives what is read and planned.
        weights: whether the base's weights will be needed.
        start: what a resumed run was started with. Its date is kept, and its micro-batches where
            they still fit.
        device: to plan for; by default, the one that will compute.
        available: bytes of its memory to plan for; by default, what it has now.
    """
    limit_threads()
    start = start or Receipt()
    device = device or choose_device()
    require_quantization(config.model.quantization)
    base = resolve_base(config.model.base, config.model.revision, monitor.announce, weights)
    template = ChatTemplate(load_tokenizer(base), start.date)
    for note in template.notes:
        monitor.announce(note)
    if has_weights(base):
        check_weights(base)
    setting = config.data.max_length
    limit = context_length(base) if setting == "auto" else setting
    training, validation, files = _examples(config, template, monitor, limit)
    shape = ModelShape.of(base, config.lora)
    memory = Memory.of(device, available)
    for examples in (training, validation):
        check_vocabulary(examples, template.tokenizer, vocabulary_size(base), config.model.base)
    if warmup := check_warmup(Schedule.of(training, config.train), config.train):
        monitor.announce(warmup)
    for note in shape.notes:
        monitor.announce(note)
    longest, keep = _longest(training, validation), setting_that_keeps(setting)
    needs = partial(least_memory, device=device, memory=memory)
    dtype = choose_precision(config.model.precision, device)
    case = Case(config, shape, longest, dtype, whole=True)
    if config.model.precision == "auto" and dtype == torch.float32 and needs(case) > memory.usable:
        case = _in_bfloat16_if_smaller(case, needs, monitor)
        dtype = case.dtype
    config = config.override(f"model.precision={str(dtype).removeprefix('torch.')}")
    if setting == "auto":
        fitting = longest_that_fits(config, shape, longest, dtype, device, memory)
        if fitting < longest:
            limit, keep = fitting, f"make room in memory: {describe(case, needs, memory.usable)}"
            training, validation, files = _examples(config, template, Monitor(), limit)
            longest = _longest(training, validation)
        # With rows truncated, only the same limit truncates them in the same way on resume.
        whole = training.complete and validation.complete
        config = config.override(f"data.max_length={max(longest, 8) if whole else limit}")
    # The parts of one file have its notices in common.
    sets = [training, validation] if isinstance(config.data.validation, str) else [training]
    for notice in (text for part in sets for text in part.notices(limit, keep)):
        monitor.announce(notice)
    plan = make_plan(config, shape, longest, dtype, device, memory, start.micro_batch_tokens)
    monitor.announce(plan.describe())
    return RunInputs(
        config, base, template, files, training, validation, shape, plan, dtype, device
    )


def prepare(config: Config, monitor: Monitor) -> LoadedRun:
    """Read the data, plan the run and load the model, without a run directory."""
    return load(gather(config, monitor), monitor)


def load(inputs: RunInputs, monitor: Monitor) -> LoadedRun:
    """Load the base, and attach an adapter to it."""
    config, device = inputs.config, inputs.device
    keep_freed_memory()
    base = load_base(inputs.base, inputs.dtype, device, config.model.quantization)
    model = attach_adapter(base, config.lora, config.train.seed, config.model.base)
    engine = Engine(model, fast=config.train.engine == "fast")
    if engine.plain_layers:
        monitor.announce(f"left to transformers and PEFT: {', '.join(engine.plain_layers)}")
    if engine.packed and device.type == "cpu" and (problem := library().problem):
        monitor.announce(problem)
    if inputs.plan.checkpointing:
        with quiet_transformers():  # 5.23 renames it; the old name works in all releases so far
            base_of(model).gradient_checkpointing_enable({"use_reentrant": False})
    monitor.announce(
        f"{config.model.base} in {config.model.precision} on {device}, "
        f"{inputs.shape.adapter:,} parameters to train; "
        f"{len(inputs.training):,} examples to learn, {len(inputs.validation):,} held out"
    )
    return LoadedRun(inputs, model, engine)


def make_receipt(inputs: RunInputs) -> Receipt:
    """What goes into a run."""
    device = inputs.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Receipt(
        base=hash_base(inputs.base),
        chat_template=hash_text(str(inputs.template.tokenizer.chat_template)),
        data={path.name: sha256(path) for path in inputs.data},
        rows=Rows(
            training=len(inputs.training),
            validation=len(inputs.validation),
            cut=list(inputs.training.truncated),
            dropped=list(inputs.training.dropped),
        ),
        versions=installed_versions(),
        device=Device(
            name=gpu or platform.machine(),
            threads=torch.get_num_threads(),
            fused_kernels=library().code is not None,
        ),
        micro_batch_tokens=inputs.plan.micro_batch_tokens,
        date=inputs.template.date,
    )


def _examples(
    config: Config, template: ChatTemplate, monitor: Monitor, limit: int | None
) -> tuple[Examples, Examples, tuple[Path, ...]]:
    """Training and validation examples of up to `limit` tokens, and the files they come from."""
    share = config.data.validation
    reader = read_conversations(config.data.train, config.data)
    monitor.announce(reader.describe())
    examples = tokenize(reader, template, limit, monitor.reading)
    for notice in reader.notices():
        monitor.announce(notice)
    if isinstance(share, float):
        return *examples.split(share, config.train.seed), reader.paths
    held_out = read_conversations(share, config.data)
    validation = tokenize(held_out, template, limit)
    for notice in held_out.notices():
        monitor.announce(notice)
    return examples, validation, (*reader.paths, *held_out.paths)


def _in_bfloat16_if_smaller(case: Case, needs: Callable[[Case], int], monitor: Monitor) -> Case:
    """The run in bfloat16, where it needs less memory; else as it is."""
    smaller = case.changed("model.precision=bfloat16")
    if needs(smaller) >= needs(case):
        return case
    monitor.announce("the base is in bfloat16, since float32 does not fit in memory")
    return smaller


def _longest(training: Examples, validation: Examples) -> int:
    return int(max(training.lengths.max(), validation.lengths.max(initial=0)))


def _restore(
    run: RunDirectory,
    receipt: Receipt,
    loaded: LoadedRun,
    optimizer: torch.optim.Optimizer,
    monitor: Monitor,
) -> Progress:
    """Load the newest checkpoint, where base and data are those the run was started with."""
    start = run.receipt()
    start.require_base(receipt.base, str(receipt.chat_template), run.path)
    if receipt.data != start.data:
        raise CheckpointError(
            "the data has changed since the run was started",
            where=str(run.path),
            fix="restore it, or start again with --overwrite",
        )
    if notice := start.missing_date(receipt.date):
        monitor.announce(notice)
    if start.rows and receipt.rows and start.rows.counts != receipt.rows.counts:
        raise CheckpointError(
            "this version of offbook makes other examples of the data than the version that "
            "started the run",
            where=str(run.path),
            fix="resume with that version, or start again with --overwrite",
        )
    if changed := start.changes_to_last_bits(receipt):
        monitor.announce(
            f"changed since the run was started: {', '.join(changed)}; "
            "the result may differ in its last bits"
        )
    planned = loaded.inputs.plan.micro_batch_tokens
    progress = checkpoint.restore(run, loaded.model, optimizer, monitor.announce)
    progress = progress or Progress(planned)
    progress.micro_batch_tokens = min(progress.micro_batch_tokens, planned)
    # Before the first checkpoint everything is repeated, the evaluation of the base included.
    run.forget_after(progress.step if progress.step else -1)
    monitor.announce(f"resuming after step {progress.step}")
    return progress
