"""Everything a run is made of, loaded and checked, cheapest first so that mistakes show early."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from offbook.config import Config
from offbook.data.conversations import ConversationReader, read_conversations
from offbook.engine.engine import Engine
from offbook.engine.memory import keep_freed_memory
from offbook.engine.ops.library import library
from offbook.libraries import quiet_transformers
from offbook.models.adapter import attach_adapter
from offbook.models.base import resolve_base
from offbook.models.load import base_of, choose_device, choose_precision, load_base
from offbook.monitor import Monitor
from offbook.tokens.examples import Examples, tokenize
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer
from offbook.training.plan import Memory, ModelShape, Plan, make_plan


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
        plan: how steps are cut to the machine.
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
class LoadedRun(RunInputs):
    """What a run is made of, loaded.

    Attributes:
        model: the base with a fresh adapter.
        engine: that computes its losses and gradients.
    """

    model: PeftModel
    engine: Engine


def gather(
    config: Config,
    monitor: Monitor,
    *,
    weights: bool = True,
    micro_batch_tokens: int | None = None,
) -> RunInputs:
    """Read the data and plan the run.

    Args:
        config: of the run.
        monitor: told what is read.
        weights: whether the base's weights will be needed.
        micro_batch_tokens: what a run that is resumed was begun with; kept where it still fits.
    """
    device = choose_device()
    base = resolve_base(config.model.base, config.model.revision, monitor.announce, weights)
    template = ChatTemplate(load_tokenizer(base))
    for note in template.notes:
        monitor.announce(note)
    reader = read_conversations(config.data.train, config.data)
    monitor.announce(reader.describe())
    training, validation, files = _examples(config, template, reader, monitor)
    dtype = choose_precision(config.model.precision, device)
    config = config.override(f"model.precision={str(dtype).removeprefix('torch.')}")
    shape = ModelShape.of(base, config.lora)
    longest = int(max(training.lengths.max(), validation.lengths.max(initial=0)))
    memory = Memory.of(device)
    plan = make_plan(config, shape, longest, dtype, device, memory, micro_batch_tokens)
    monitor.announce(plan.describe())
    return RunInputs(
        config, base, template, files, training, validation, shape, plan, dtype, device
    )


def prepare(config: Config, monitor: Monitor) -> LoadedRun:
    """Gather and load all that `config` names."""
    return load(gather(config, monitor), monitor)


def load(materials: RunInputs, monitor: Monitor) -> LoadedRun:
    """Load the base, and attach an adapter to it."""
    config, device = materials.config, materials.device
    keep_freed_memory()
    base = load_base(materials.base, materials.dtype, device, config.model.quantization)
    model = attach_adapter(base, config.lora, config.train.seed, config.model.base)
    engine = Engine(model, fast=config.train.engine == "fast")
    if engine.plain_layers:
        monitor.announce(f"left to transformers and PEFT: {', '.join(engine.plain_layers)}")
    if engine.packed and device.type == "cpu" and (problem := library().problem):
        monitor.announce(problem)
    if materials.plan.checkpointing:
        with quiet_transformers():  # 5.23 renames it; the old name works in all releases so far
            base_of(model).gradient_checkpointing_enable({"use_reentrant": False})
    monitor.announce(
        f"{config.model.base} in {config.model.precision} on {device}, "
        f"{materials.shape.adapter:,} parameters to train; "
        f"{len(materials.training):,} rows to learn, {len(materials.validation):,} held out"
    )
    return LoadedRun(**vars(materials), model=model, engine=engine)


def _examples(
    config: Config, template: ChatTemplate, reader: ConversationReader, monitor: Monitor
) -> tuple[Examples, Examples, tuple[Path, ...]]:
    limit, share = config.data.max_length, config.data.validation
    examples = tokenize(reader, template, limit, monitor.reading)
    for notice in examples.notices(limit):
        monitor.announce(notice)
    if isinstance(share, float):
        return *examples.split(share, config.train.seed), reader.paths
    held_out = read_conversations(share, config.data)
    return examples, tokenize(held_out, template, limit), (*reader.paths, *held_out.paths)
