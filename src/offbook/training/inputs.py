"""Reads the rows and plans a run, cheapest first so that mistakes show early."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from offbook.doctor.inspection import language_finding
from offbook.engine.machine import limit_threads
from offbook.engine.memory import prepare_deterministic
from offbook.engine.ops.library import is_compiled
from offbook.models.adapter_config import notes_for_readers
from offbook.models.base import context_length, has_weights, resolve_base, vocabulary_size
from offbook.models.load import choose_devices, choose_precision, require_quantization
from offbook.models.weights import check_weights
from offbook.monitor import Monitor
from offbook.runs import checkpoint
from offbook.runs.directory import RunDirectory
from offbook.runs.places import BASE, commits_of, require_base, resume_with
from offbook.runs.receipt import Receipt
from offbook.settings.config import Config
from offbook.tokens.examples import Example, Examples, beyond_context, setting_that_keeps
from offbook.tokens.own_template import with_template_text
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from offbook.tokens.vocabulary import check_vocabulary
from offbook.training.advice import Case, describe
from offbook.training.ancestor import Start, find_start
from offbook.training.data import Data, read_data
from offbook.training.memory import Memory
from offbook.training.plan import ModelShape, Plan, least_memory, longest_that_fits, make_plan
from offbook.training.schedule import (
    Schedule,
    check_patience,
    check_steps,
    check_warmup,
    fitting_rate,
    mixed_rows,
)
from offbook.training.shards import resolve_shards
from offbook.training.shared import SharedBase


@dataclass(frozen=True)
class RunInputs:
    """What is known of a run before its base is loaded.

    Attributes:
        config: with what was `auto` resolved, and the text of a template of its own.
        base: the folder of the base model.
        template: of its chats.
        data: the files the examples come from.
        training, validation: the examples.
        mixed: general ones, of which each step takes some; None where there are none.
        shape: the base's sizes.
        plan: how steps are divided into micro-batches to fit the machine.
        dtype: of the base.
        devices: that compute, one after the other.
        commits: of what came from the hub, by setting; `commits.get("model.base")` is the base's.
        start: the adapter that the run goes on from; None for a new one.
        sharded: whether each process keeps only a shard of the base.
    """

    config: Config
    base: Path
    template: ChatTemplate
    data: tuple[Path, ...]
    training: Examples
    validation: Examples
    mixed: Examples | None
    shape: ModelShape
    plan: Plan
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    commits: dict[str, str]
    start: Start | None
    sharded: bool = False

    @property
    def device(self) -> torch.device:
        """The first of those that compute: inputs are there."""
        return self.devices[0]

    @property
    def schedule(self) -> Schedule:
        """Which examples a step sees."""
        return Schedule.of(len(self.training), self.config)

    def examples(self, step: int) -> list[Example]:
        """Those of the next step after `step` completed ones; general ones come last."""
        own = [self.training[row] for row in self.schedule.rows(step)]
        mixed = self.mixed
        if mixed is None:
            return own
        return own + [mixed[row] for row in mixed_rows(step, len(mixed), self.config)]


def gather(
    config: Config,
    monitor: Monitor,
    *,
    weights: bool = True,
    start: Receipt | None = None,
    resumed: RunDirectory | None = None,
    device: torch.device | None = None,
    available: int | None = None,
    shared: SharedBase | None = None,
) -> RunInputs:
    """Read the data and plan the run.

    Args:
        config: of the run.
        monitor: receives what is read and planned.
        weights: whether the base's weights will be needed.
        start: what a resumed run was started with. Its date and commits are kept, and its
            micro-batches where they still fit.
        resumed: a run whose base this has to be.
        device: to plan for; by default, the one that will compute.
        available: bytes of memory of each device to plan for; by default, what it has now.
        shared: has the base, or will have it.
    """
    monitor.busy("reading the base")
    limit_threads()
    start = start or Receipt()
    devices = (device,) if device else choose_devices(config.model.device)
    device = devices[0]
    if config.train.deterministic:
        prepare_deterministic(device)
    require_quantization(config.model.quantization)
    config = with_template_text(config)
    base, template = _open_base(config, start, resumed, monitor, weights)
    # A checkpoint has the weights of a run that is resumed.
    begins = resumed is None or checkpoint.newest(resumed, lambda text: None) is None
    beginning = find_start(config, base, start) if begins else None
    setting, context = config.data.max_length, context_length(base)
    limit = context if setting == "auto" else setting
    data = read_data(config, template, limit, monitor, start.commits)
    config = config.with_value("data.validation", data.held_out)
    shape = ModelShape.of(base, config.lora)
    for examples in data.parts:
        check_vocabulary(examples, template.tokenizer, vocabulary_size(base), config.model.base)
    if finding := language_finding(data.training, template.tokenizer):
        monitor.announce(f"{finding.what}; {finding.todo}")
    config = _resolve_learning_rate(config, shape, monitor)
    check_patience(len(data.validation), config.train)
    for note in _notes(config, data, shape):
        monitor.announce(note)
    if shared:
        memory = shared.memory(devices, base, shape)
    else:
        memory = Memory.of(device, available) if available else Memory.of_each(devices)
    if device.type == "cpu" and not is_compiled():
        monitor.busy("compiling the kernels for this processor, once")
    dtype = choose_precision(config.model.precision, device)
    rows = shared.rows_of_a_step if shared else None
    case = Case(config, shape, data.longest, dtype, device, memory, rows=rows)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    case = resolve_shards(_resolve_precision(case, monitor), processes, monitor)
    case, data = _resolve_max_length(case, data, template, limit, monitor, start.commits)
    lengths = np.concatenate([part.lengths for part in data.parts])
    if beyond := beyond_context(setting, context, lengths):
        monitor.announce(beyond)
    plan = make_plan(case, start.micro_batch_tokens)
    monitor.announce(plan.describe())
    return RunInputs(
        config=case.config,
        base=base,
        template=template,
        data=data.files,
        training=data.training,
        validation=data.validation,
        mixed=data.mixed,
        shape=shape,
        plan=plan,
        dtype=case.dtype,
        devices=devices,
        commits=commits_of(case.config, {BASE: base, **data.places}),
        start=beginning,
        sharded=case.shards > 1,
    )


def _open_base(
    config: Config, start: Receipt, resumed: RunDirectory | None, monitor: Monitor, weights: bool
) -> tuple[Path, ChatTemplate]:
    """The folder of the base and the template of its chats, checked."""
    revision = start.commits.get(BASE, config.model.revision)
    base = resolve_base(config.model.base, revision, monitor.announce, weights)
    template = ChatTemplate(load_tokenizer(base, config.model.template), start.date)
    if resumed:
        require_base(resumed, base, template, resume_with(resumed, BASE))
    for note in template.notes:
        monitor.announce(note)
    if has_weights(base):
        check_weights(base)
    return base, template


def _resolve_learning_rate(config: Config, shape: ModelShape, monitor: Monitor) -> Config:
    """The settings with `train.learning_rate` resolved."""
    if config.train.learning_rate != "auto":
        return config
    width = shape.config.hidden_size
    rate = fitting_rate(width, shape.config.model_type, config.lora)
    monitor.announce(f"learning rate {rate:g}, from the base's width ({width:,})")
    return config.override(f"train.learning_rate={rate}")


def _notes(config: Config, data: Data, shape: ModelShape) -> Iterator[str]:
    """What a user should know of the settings and the rows of a run."""
    schedule = Schedule.of(len(data.training), config)
    for check in (check_warmup, check_steps):
        if notice := check(schedule, config.train):
            yield notice
    yield from shape.notes
    yield from notes_for_readers(config.lora)


def _resolve_precision(case: Case, monitor: Monitor) -> Case:
    """The run with `model.precision` resolved: bfloat16 where `auto` does not fit otherwise."""
    if case.config.model.precision == "auto" and case.dtype == torch.float32:
        smaller, need = case.changed("model.precision=bfloat16"), least_memory(case)
        if case.memory.usable < need > least_memory(smaller):
            monitor.announce("the base is in bfloat16, since float32 does not fit in memory")
            return smaller
    name = str(case.dtype).removeprefix("torch.")
    return replace(case, config=case.config.override(f"model.precision={name}"))


def _resolve_max_length(
    case: Case,
    data: Data,
    template: ChatTemplate,
    limit: int | None,
    monitor: Monitor,
    commits: Mapping[str, str],
) -> tuple[Case, Data]:
    """The run with `data.max_length` resolved, and its examples, read again where they are shorter.

    Args:
        case: the run, with its precision resolved.
        data: its examples, of up to `limit` tokens.
        template: that makes them.
        limit: the setting, or with `auto` the base's context, if it has one.
        monitor: receives what is truncated or left out.
        commits: that the data is of, by setting.
    """
    setting = case.config.data.max_length
    keep = setting_that_keeps(setting)
    if setting == "auto":
        fitting = longest_that_fits(case)
        if fitting < data.longest:
            advice = describe(replace(case, whole=True), least_memory)
            limit, keep = fitting, f"make room in memory: {advice}"
            data = read_data(case.config, template, limit, Monitor(), commits)
        # With rows truncated, only the same limit truncates them in the same way on resume.
        resolved = max(data.longest, 8) if data.whole else limit
        config = case.config.override(f"data.max_length={resolved}")
        case = replace(case, config=config, longest=data.longest)
    # The parts of one file have its notices in common.
    apart = isinstance(case.config.data.validation, str)
    for part in data.parts if apart else data.parts[::2]:
        for notice in part.notices(limit, keep):
            monitor.announce(notice)
    return case, data
