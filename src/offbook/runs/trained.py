"""Open a run for use: its adapter, its base, and whether they fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from offbook.errors import CheckpointError, ConfigError
from offbook.files import storage
from offbook.models.adapter import load_adapter
from offbook.models.load import choose_device, choose_devices, choose_precision, load_base
from offbook.runs.checkpoint import find, newest
from offbook.runs.directory import RunDirectory, step_of
from offbook.runs.places import chat_with, find_base, require_base
from offbook.runs.receipt import Receipt, hash_base
from offbook.settings.config import Config
from offbook.tokens.template import ChatTemplate
from offbook.tokens.tokenizer import load_tokenizer


@dataclass(frozen=True)
class TrainedRun:
    """A run with an adapter that fits its base. `open_run` makes it.

    Attributes:
        path: the run directory.
        config: its settings.
        receipt: what went into it.
        adapter: folder of the adapter: `adapter/`, or a checkpoint.
        checkpoint: optimizer steps of that checkpoint; None for `adapter/`.
        base: folder of the base model.
        template: its tokenizer and chat template.
        devices, dtype: what `load_model` uses.
    """

    path: Path
    config: Config
    receipt: Receipt
    adapter: Path
    checkpoint: int | None
    base: Path
    template: ChatTemplate
    devices: tuple[torch.device, ...]
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """The first one: inputs and logits are there."""
        return self.devices[0]

    def load_model(self) -> PeftModel:
        """Load the base with the adapter, in evaluation mode; each call loads it again.

        Raises:
            ModelError: when the base cannot be loaded.
            CheckpointError: when the adapter does not fit it.
        """
        quantization = self.config.model.quantization
        base = load_base(self.base, self.dtype, self.device, quantization, self.devices[1:])
        return load_adapter(base, self.adapter)


def _devices_of(config: Config, announce: Callable[[str], None]) -> tuple[torch.device, ...]:
    """The run's devices, or the best one here where it was trained on another machine."""
    try:
        return choose_devices(config.model.device)
    except ConfigError:
        device = choose_device()
        announce(f"there is no {config.model.device} here, on which it was trained; using {device}")
        return (device,)


def open_run(
    path: str | Path,
    announce: Callable[[str], None] = lambda text: None,
    *,
    base: str | None = None,
    checkpoint: str | int | None = None,
) -> TrainedRun:
    """Open a run directory, finished or not, and check adapter and base; loads no weights.

    Args:
        path: the run directory.
        announce: receives a line when the run is not finished, its adapter was changed, or
            something slow begins.
        base: where the base is now, if it was moved; it must be the same.
        checkpoint: to use: `best`, which has the lowest validation loss, `last`, or a step; by
            default the result, or the newest one where the run is not finished.

    Raises:
        CheckpointError: when there is no run or no adapter yet, or the base is another one than
            the run was trained on.
        ModelError: when the base, its tokenizer or its template cannot be used.
    """
    run = RunDirectory.open(path)
    config, receipt = run.config(), run.receipt()
    finished = run.finished
    if checkpoint is not None:
        adapter: Path | None = find(run, checkpoint, announce)
    else:
        adapter = run.adapter if finished else newest(run, announce)
    if adapter is None:
        raise CheckpointError(
            "the run has no adapter yet", where=str(path), fix=f"finish it: `{run.command}`"
        )
    if checkpoint is None and not finished:
        announce(f"the run is not finished; this is {adapter.name}")
    elif checkpoint is None and (problem := storage.verify(adapter)):
        announce(f"the adapter is not as training left it: {problem}")
    devices = _devices_of(config, announce)
    command, named = chat_with(run), config
    if base is not None:
        named = config.with_value("model.base", str(base)).with_absolute_paths()
    _, folder = find_base(run, named, announce, command)
    template = ChatTemplate(load_tokenizer(folder, config.model.template), receipt.date)
    if notice := receipt.missing_date(template.date):
        announce(notice)
    require_base(run, folder, template, command)
    if notice := receipt.other_conversion(hash_base(folder)):
        announce(notice)
    return TrainedRun(
        path=run.path,
        config=config,
        receipt=receipt,
        adapter=adapter,
        checkpoint=step_of(adapter),
        base=folder,
        template=template,
        devices=devices,
        dtype=choose_precision(config.model.precision, devices[0]),
    )
