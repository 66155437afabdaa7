"""Loads what a run needs, and says what went into it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from offbook.engine.engine import Engine
from offbook.engine.memory import prepare_allocator
from offbook.engine.ops.library import library
from offbook.models.adapter import attach_adapter, restore_adapter
from offbook.models.base import published_name
from offbook.models.load import checkpoint_layers, load_base
from offbook.monitor import Monitor
from offbook.runs.places import places_from
from offbook.runs.receipt import (
    Device,
    Receipt,
    Rows,
    hash_base,
    hash_data,
    hash_text,
    installed_versions,
)
from offbook.settings.config import Config
from offbook.training.inputs import RunInputs, gather
from offbook.training.shared import SharedBase


@dataclass(frozen=True)
class LoadedRun:
    """What a run is made of, loaded.

    Attributes:
        inputs: what was known before.
        model: the base with an adapter, new or that which the run goes on from.
        engine: computes its losses and gradients.
    """

    inputs: RunInputs
    model: PeftModel
    engine: Engine

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of the adapter."""
        return [p for p in self.model.parameters() if p.requires_grad]


def prepare(config: Config, monitor: Monitor) -> LoadedRun:
    """Read the data, plan the run and load the model, without a run directory."""
    return load(gather(config, monitor), monitor)


def load(inputs: RunInputs, monitor: Monitor, shared: SharedBase | None = None) -> LoadedRun:
    """Load the base, or take one that is shared, and attach an adapter to it."""
    config, device = inputs.config, inputs.device
    prepare_allocator(device)
    monitor.busy("loading the base")
    what = inputs.base, inputs.dtype, device, config.model.quantization, inputs.devices[1:]
    base = shared.load(*what) if shared else load_base(*what, sharded=inputs.sharded)
    name, revision = published_name(config.model.base, inputs.base)
    model = attach_adapter(base, config.lora, config.train.seed, name, revision)
    if inputs.start:
        restore_adapter(model, inputs.start.folder)
        monitor.announce(f"going on from the adapter {inputs.start.folder}")
    engine = Engine(model, fast=config.train.engine == "fast")
    if engine.plain_layers:
        monitor.announce(f"left to transformers and PEFT: {', '.join(engine.plain_layers)}")
    tell_missing_kernels(device, monitor, packed=engine.packed)
    if device.type not in ("cpu", "cuda") or torch.version.hip:
        monitor.announce("offbook was never tried on a device of this kind, so check its replies")
    if inputs.plan.checkpointing:
        checkpoint_layers(model)
    monitor.announce(
        f"{config.model.base} in {config.model.precision} on "
        f"{', '.join(map(str, inputs.devices))}, "
        f"{inputs.shape.adapter:,} parameters to train; "
        f"{len(inputs.training):,} examples to learn, {len(inputs.validation):,} held out"
        + (f", {len(inputs.mixed):,} general ones to mix in" if inputs.mixed else "")
        + ("; the processes share the base" if inputs.sharded else "")
    )
    return LoadedRun(inputs, model, engine)


def tell_missing_kernels(device: torch.device, monitor: Monitor, *, packed: bool) -> None:
    """Announce why a processor computes packed sequences without kernels, where it does."""
    if packed and device.type == "cpu" and (problem := library().problem):
        monitor.announce(problem)


def make_receipt(inputs: RunInputs, run: Path, processes: int = 1) -> Receipt:
    """What goes into the run in a directory, that so many processes train."""
    device = inputs.device
    gpu = device.type if device.type != "cpu" else None
    if device.type in ("cuda", "xpu"):
        gpu = torch.get_device_module(device).get_device_name(device)
    count = f"{len(inputs.devices)} x " if len(inputs.devices) > 1 else ""
    return Receipt(
        base=hash_base(inputs.base),
        chat_template=hash_text(str(inputs.template.tokenizer.chat_template)),
        data=hash_data(inputs.data),
        rows=Rows(
            training=len(inputs.training),
            validation=len(inputs.validation),
            cut=list(inputs.training.truncated),
            dropped=list(inputs.training.dropped),
        ),
        versions=installed_versions(),
        device=Device(
            name=count + (gpu or platform.machine()),
            threads=torch.get_num_threads(),
            fused_kernels=library().code is not None,
            processes=processes,
        ),
        micro_batch_tokens=inputs.plan.micro_batch_tokens,
        date=inputs.template.date,
        commits=inputs.commits,
        places=places_from(run, inputs.config),
        ancestry=inputs.start.ancestry if inputs.start else [],
    )
