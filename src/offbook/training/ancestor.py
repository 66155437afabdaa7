"""The adapter that a run goes on from: `train.init_adapter`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offbook.errors import CheckpointError, ConfigError, OffbookError
from offbook.files.storage import sha256
from offbook.models.adapter_config import read_plain_lora
from offbook.models.base import ADAPTER_WEIGHTS
from offbook.monitor import Monitor
from offbook.runs.checkpoint import newest
from offbook.runs.directory import RunDirectory
from offbook.runs.places import find_data
from offbook.runs.receipt import Ancestor, Receipt, hash_base
from offbook.settings.config import Config, local_path
from offbook.settings.sections import LoraSettings
from offbook.tokens.examples import Examples
from offbook.tokens.template import ChatTemplate
from offbook.training.data import read_data

SETTING = "train.init_adapter"


@dataclass(frozen=True)
class Start:
    """Where the weights of a new adapter come from.

    Attributes:
        folder: of the adapter.
        ancestry: that adapter, the last one, and those that it went on from itself.
        run: that it is the result of; None for an adapter alone.
    """

    folder: Path
    ancestry: list[Ancestor]
    run: RunDirectory | None = None

    def describe_known(self, held_out: Examples, template: ChatTemplate) -> str | None:
        """What to say where held-out rows are ones that the adapter was trained on.

        None, too, where the rows of that run are not there any more.

        Args:
            held_out: of the run that begins.
            template: of its chats, which turns the rows of the other into examples, too.
        """
        if self.run is None:
            return None
        try:
            config = find_data(self.run, self.run.config())
            limit = config.data.max_length if isinstance(config.data.max_length, int) else None
            data = read_data(config, template, limit, Monitor(), self.run.receipt().commits)
        except OffbookError:
            return None
        trained = data.training.prompt_keys[data.training.rows]
        known = int(np.isin(held_out.prompt_keys[held_out.rows], trained).sum())
        if not known:
            return None
        return (
            f"the adapter to go on from was trained on the prompts of {known:,} of "
            f"{len(held_out):,} held-out examples, so their loss says less; hold out others: set "
            "data.validation to a file of new rows"
        )


def find_start(config: Config, base: Path, known: Receipt) -> Start | None:
    """The adapter to go on from; None where a run begins with a new one.

    Args:
        config: of the run.
        base: the folder of its base.
        known: the receipt of a run that is resumed, whose adapter this has to be.

    Raises:
        ConfigError: when there is none, or `lora` is another one.
        CheckpointError: when it is an adapter of another base, or has changed.
    """
    setting = config.train.init_adapter
    if setting is None:
        return None
    path = local_path(setting)
    run = RunDirectory(path) if path else None
    receipt = Receipt()
    folder = path
    if run and not run.begun:
        run = None
    if run:
        folder = run.adapter if run.finished else newest(run, lambda text: None)
        receipt = run.receipt()
    if folder is None or not (folder / ADAPTER_WEIGHTS).is_file():
        fix = f"give a run, or a folder with {ADAPTER_WEIGHTS}"
        raise ConfigError(f"no adapter at {setting}", where=SETTING, fix=fix)
    if changed := receipt.differing_parts(hash_base(base)):
        what = f"the adapter is one of another base: other {', '.join(changed)}"
        raise CheckpointError(what, where=setting, fix="set model.base to the base of that run")
    _require_same_lora(folder, config.lora)
    weights = sha256(folder / ADAPTER_WEIGHTS)
    if known.ancestry and known.ancestry[-1].weights != weights:
        fix = f"restore it, or say where it is now: {SETTING}=PATH"
        raise CheckpointError("the adapter has changed", where=setting, fix=fix)
    this = Ancestor(Path(setting).name, weights, receipt.data)
    return Start(folder, [*receipt.ancestry, this], run)


def _require_same_lora(folder: Path, lora: LoraSettings) -> None:
    """Refuse settings with which the adapter would compute something else."""
    found = read_plain_lora(folder)
    scale = found["lora_alpha"] / (found["r"] ** (0.5 if found["use_rslora"] else 1))
    wanted = lora.lora_alpha / (lora.r ** (0.5 if lora.use_rslora else 1))
    other = []
    if found["r"] != lora.r:
        other.append(f"lora.r={found['r']}")
    if not math.isclose(scale, wanted) or found["r"] != lora.r:
        plain = lora.use_rslora and " lora.use_rslora=false"
        other.append(f"lora.lora_alpha={scale * found['r']:g}{plain or ''}")
    if found["use_dora"] != lora.use_dora:
        other.append(f"lora.use_dora={str(found['use_dora']).lower()}")
    if other:
        what = "the adapter to go on from has other settings"
        raise ConfigError(what, where=SETTING, fix=f"set {' '.join(other)}")
