"""Which layers of a base an adapter changes, and whether a saved one fits, before PEFT reads it.

An `adapter_config.json` can ask PEFT for more than matrices: to import a module by name
(`megatron_core`), to match a regular expression against every layer, to repeat layers, or to make
matrices that fill the memory. So only plain LoRA is taken from it, and which layers it changes is
read off the names of its tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save
from torch import nn
from transformers import PreTrainedModel

from offbook.config import LoraSettings
from offbook.errors import CheckpointError, ConfigError
from offbook.files.untrusted import read_json, read_tensors
from offbook.libraries import LIBRARY_ERRORS, quiet_transformers
from offbook.models.base import ADAPTER_CONFIG

ALL_LINEAR = "all-linear"
HEAD_NAME = "lm_head"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
DORA = ".lora_magnitude_vector"
FLOATS = ("F64", "F32", "F16", "BF16")
NAMED = 3  # tensors named in an error

USED = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")
# Notes for people and for PEFT's own loading, by which nothing is computed here.
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
CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")  # values of init_lora_weights

Shape = tuple[int, ...]


def linear_layers(base: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    """What an adapter may change, by name: the linear layers below the head."""
    output = base.get_output_embeddings()
    return [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    ]


def check_targets(base: PreTrainedModel, targets: tuple[str, ...] | str) -> None:
    """Refuse `lora.target_modules` that name no layer, or the head.

    Raises:
        ConfigError: with the layers there are.
    """
    names = [name for name, _ in linear_layers(base)]
    exist = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
    if isinstance(targets, str):
        if targets != ALL_LINEAR and _matches(targets, [HEAD_NAME]):
            raise ConfigError(
                f'lora.target_modules: the regular expression "{targets}" matches the output head',
                fix="write it so that it matches layers below the head alone",
            )
        if targets != ALL_LINEAR and not _matches(targets, names):
            raise ConfigError(
                f'lora.target_modules: the regular expression "{targets}" matches no linear layer',
                fix=f"the layers are {exist}; a full name is {names[0]}",
            )
        return
    missing = [t for t in targets if not any(n == t or n.endswith("." + t) for n in names)]
    if missing or not targets:
        named = f"no linear layer is named {', '.join(missing)}" if missing else "the list is empty"
        raise ConfigError(
            f"lora.target_modules: {named}",
            fix=f"the layers are {exist}; or use {ALL_LINEAR}",
        )


def read_adapter(folder: Path, base: PreTrainedModel) -> LoraConfig:
    """The configuration of an adapter that fits a base, for inference.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        base: that it is to change.

    Raises:
        CheckpointError: naming the key that is not plain LoRA, or the tensors that do not fit.
    """
    config = _read_config(folder)
    tensors = read_tensors(folder / WEIGHTS, CheckpointError)
    layers = dict(linear_layers(base))
    parts = (LORA_A, LORA_B, DORA)
    named = {name.removesuffix(part) for name in tensors for part in parts if name.endswith(part)}
    modules = {name.removeprefix(PREFIX) for name in named} & layers.keys()
    targets = config["target_modules"]
    if isinstance(targets, list):
        modules |= {name for name in layers if not _endings(name).isdisjoint(targets)}
    rank = config["r"]
    expected: dict[str, Shape] = {}
    for name in sorted(modules):
        inputs, outputs = layers[name].in_features, layers[name].out_features
        expected[PREFIX + name + LORA_A] = (rank, inputs)
        expected[PREFIX + name + LORA_B] = (outputs, rank)
        if config["use_dora"]:
            expected[PREFIX + name + DORA] = (outputs,)
    require_shapes(folder, expected)
    return LoraConfig(
        task_type="CAUSAL_LM", inference_mode=True, **config | {"target_modules": sorted(modules)}
    )


def require_shapes(folder: Path, expected: Mapping[str, Shape]) -> None:
    """Refuse an adapter whose tensors are not exactly those expected, naming the first.

    Raises:
        CheckpointError: with the shape of each in the file and in the model.
    """
    tensors = read_tensors(folder / WEIGHTS, CheckpointError)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = [
        _mismatch(name, found.get(name), expected.get(name))
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
    ]
    wrong += [f"{name} is {t.dtype}" for name, t in tensors.items() if t.dtype not in FLOATS]
    if not found:
        wrong.append("it is empty")
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise CheckpointError(
            f"the adapter does not fit this base: {'; '.join(wrong[:NAMED])}{more}",
            where=str(folder),
            fix="use the base it was trained on",
        )


def _endings(name: str) -> set[str]:
    """What may name a layer in a list: its whole name, or the last parts of it."""
    parts = name.split(".")
    return {".".join(parts[k:]) for k in range(len(parts))}


def _mismatch(name: str, found: Shape | None, wanted: Shape | None) -> str:
    if found is None:
        return f"{name} is missing"
    has = "x".join(map(str, found))
    if wanted is None:
        return f"{name} ({has}) is no part of it"
    return f"{name} is {has}, not {'x'.join(map(str, wanted))}"


def _read_config(folder: Path) -> dict[str, Any]:
    """The keys of `USED`, each of the right type, when no other key asks for anything."""
    path = folder / ADAPTER_CONFIG
    contents = read_json(path, CheckpointError)
    if contents.get("peft_type") != "LORA":
        raise _refused(path, f"peft_type is {contents.get('peft_type')!r}")
    plain = asdict(LoraConfig())
    for key, value in contents.items():
        if key not in USED + NOTES and value and value != plain.get(key):
            raise _refused(path, f"{key} is {value!r:.80}")
    start = contents.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise _refused(path, f"init_lora_weights is {start!r:.80}")
    config = {key: contents.get(key, plain[key]) for key in USED}
    for key, right in {
        "r": type(config["r"]) is int and config["r"] > 0,
        "lora_alpha": _is_number(config["lora_alpha"]),
        "lora_dropout": _is_number(config["lora_dropout"]) and 0 <= config["lora_dropout"] < 1,
        "target_modules": _are_names(config["target_modules"]),
        "use_rslora": type(config["use_rslora"]) is bool,
        "use_dora": type(config["use_dora"]) is bool,
    }.items():
        if not right:
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


def _matches(pattern: str, names: list[str]) -> bool:
    try:
        return any(re.fullmatch(pattern, name) for name in names)
    except re.error as error:
        raise ConfigError(f"lora.target_modules: not a regular expression: {error}") from None


def attach_adapter(base: PreTrainedModel, lora: LoraSettings, seed: int, name: str) -> PeftModel:
    """Add a fresh LoRA adapter, in float32, the same for the same seed.

    Args:
        base: the loaded base model.
        lora: PEFT's settings.
        seed: of the random A matrices; B is zero, so that training begins at the base model.
        name: of the base, written into the adapter for those who load it.

    Raises:
        ConfigError: when `target_modules` names something that does not exist.
    """
    check_targets(base, lora.target_modules)
    targets = lora.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # PEFT multiplies by any number
        lora_dropout=lora.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
    )
    torch.manual_seed(seed)
    with quiet_transformers():
        model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = name
    return model


def adapter_files(model: PeftModel) -> Iterator[tuple[str, bytes]]:
    """The files of a plain PEFT folder, as PEFT's own `save_pretrained` writes them."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    yield WEIGHTS, save(tensors, {"format": "pt"})
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted)  # sets, in a fixed order
    yield ADAPTER_CONFIG, text.encode()


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Put a saved adapter's weights into one of the same shape, bit for bit.

    Raises:
        CheckpointError: when they do not fit.
    """
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    require_shapes(folder, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    try:
        set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    except LIBRARY_ERRORS as error:
        raise CheckpointError(f"the adapter does not load: {error}", where=str(folder)) from error


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """A saved adapter on its base, in evaluation mode.

    Raises:
        CheckpointError: when the folder holds none, or it does not fit the base.
    """
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError("no adapter here", where=str(folder), fix="train one first")
    config = read_adapter(folder, base)
    with quiet_transformers():
        model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    restore_adapter(model, folder)
    return model.eval()
