"""`adapter_config.json`: what it says when it is written, and whether it can be trusted when read.

An `adapter_config.json` can make PEFT do more than create matrices: import a module by name
(`megatron_core`), match a regular expression against every layer, repeat layers, or create matrices
that fill the memory. So a folder is checked before PEFT reads it. Only plain LoRA is accepted, and
the layers it changes are found from the names of its tensors.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig

from offbook.errors import CheckpointError, ConfigError
from offbook.files.untrusted import read_json
from offbook.models.base import ADAPTER_CONFIG
from offbook.settings.sections import LoraSettings

USED = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")
# Keys that are for people and for PEFT's own loading, and change nothing here.
NOTES = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
)
# Keys that readers without PEFT look for, and those without which PEFT 0.10 loads nothing.
WRITTEN = (
    "base_model_name_or_path",
    "bias",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
    "use_rslora",
)
# Values of init_lora_weights with which the base's weights were changed as well.
CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def config_file(config: PeftConfig) -> bytes:
    """The content of `adapter_config.json`: `WRITTEN`, and what differs from PEFT's defaults."""
    assert isinstance(config, LoraConfig)
    alpha = saved_alpha(config.lora_alpha, config.r, config.use_rslora)
    plain = {"inference_mode": True, "use_rslora": False, "lora_alpha": alpha}
    values, defaults = config.to_dict() | plain, LoraConfig().to_dict()
    saved = {
        key: value
        for key, value in values.items()
        if key in WRITTEN or (key != "peft_version" and value != defaults.get(key))
    }
    text = json.dumps(saved, indent=2, sort_keys=True, default=sorted)  # sets have no order
    return text.encode()


def require_strength(strength: float, *, use_dora: bool) -> None:
    """Refuse a strength that an adapter cannot have.

    Raises:
        ConfigError: when it is not 1, and the adapter is a DoRA adapter.
    """
    if use_dora and strength != 1:
        raise ConfigError(
            "a DoRA adapter is not a sum, so it has no other strength than 1",
            fix="leave out the strength, or train without lora.use_dora",
        )


def notes_for_readers(lora: LoraSettings) -> list[str]:
    """Which programs do not take an adapter with these settings: a line for each reason."""
    notes = []
    if lora.use_dora:
        notes.append(
            "lora.use_dora: PEFT loads such an adapter; llama.cpp, Ollama, vLLM and SGLang do not, "
            "so for them it has to be merged into its base"
        )
    if type(alpha := saved_alpha(lora.lora_alpha, lora.r, lora.use_rslora)) is float:
        notes.append(
            f"lora_alpha is {alpha:.6g} in the adapter, and Ollama takes whole numbers only"
        )
    return notes


def saved_alpha(alpha: float, r: int, use_rslora: bool) -> int | float:
    """`lora_alpha` of an adapter whose output is multiplied by `lora_alpha / r`.

    With rsLoRA, which is `lora_alpha / sqrt(r)`, it is the number that gives the same scale, since
    not all programs know rsLoRA. It is an integer where it is whole: some take no `32.0`.
    """
    if use_rslora:
        scale = alpha / math.sqrt(r)
        near = scale * r
        # The product is rounded, and may be a last bit away from what the division gives back.
        around = (near, round(near), math.nextafter(near, 0), math.nextafter(near, math.inf))
        alpha = next((value for value in around if value / r == scale), near)
    return int(alpha) if alpha == int(alpha) else alpha


def read_plain_lora(folder: Path) -> dict[str, Any]:
    """The keys of `USED`, with their types checked; other keys must be notes or change nothing.

    Raises:
        CheckpointError: naming the key that is not plain LoRA.
    """
    path = folder / ADAPTER_CONFIG
    contents = read_json(path, CheckpointError)
    if contents.get("peft_type") != "LORA":
        raise _refused(path, f"peft_type is {contents.get('peft_type')!r}")
    plain = asdict(LoraConfig())
    for key, value in contents.items():
        if key not in USED + NOTES and value and value != plain.get(key):
            raise _refused(path, f"{key} is {value!r:.80}")
    initialization = contents.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.startswith(CHANGES_BASE):
        raise _refused(path, f"init_lora_weights is {initialization!r:.80}")
    config = {key: contents.get(key, plain[key]) for key in USED}
    for key, is_valid in {
        "r": type(config["r"]) is int and config["r"] > 0,
        "lora_alpha": _is_number(config["lora_alpha"]),
        "lora_dropout": _is_number(config["lora_dropout"]) and 0 <= config["lora_dropout"] < 1,
        "target_modules": _are_names(config["target_modules"]),
        "use_rslora": type(config["use_rslora"]) is bool,
        "use_dora": type(config["use_dora"]) is bool,
    }.items():
        if not is_valid:
            raise _refused(path, f"{key} is {config[key]!r:.80}")
    return config


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _are_names(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(name, str) for name in value)
    return value is None or isinstance(value, str)


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{what}, which is not plain LoRA", where=str(path), fix="use an adapter made by offbook"
    )
