"""The adapter that a run goes on from: `train.init_adapter`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from offbook.errors import CheckpointError, ConfigError
from offbook.files.storage import sha256
from offbook.models.adapter_config import read_plain_lora
from offbook.models.base import ADAPTER_WEIGHTS
from offbook.runs.checkpoint import newest
from offbook.runs.directory import RunDirectory
from offbook.runs.receipt import Ancestor, Receipt, hash_base
from offbook.settings.config import Config, local_path
from offbook.settings.sections import LoraSettings

SETTING = "train.init_adapter"


@dataclass(frozen=True)
class Start:
    """Where the weights of a new adapter come from.

    Attributes:
        folder: of the adapter.
        ancestry: that adapter, the last one, and those that it went on from itself.
    """

    folder: Path
    ancestry: list[Ancestor]


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
    if run and run.begun:
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
    return Start(folder, [*receipt.ancestry, this])


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
