"""Attach LoRA adapters to a base, and write, check and load their PEFT folders.

An `adapter_config.json` can make PEFT do more than create matrices: import a module by name
(`megatron_core`), match a regular expression against every layer, repeat layers, or create matrices
that fill the memory. So a folder is checked before PEFT reads it. Only plain LoRA is accepted, and
the layers it changes are found from the names of its tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from offbook.config import LoraSettings
from offbook.errors import CheckpointError, ModelError, first_few, first_line
from offbook.files.untrusted import read_json, read_tensors
from offbook.libraries import LIBRARY_ERRORS, quiet_transformers
from offbook.models.base import ADAPTER_CONFIG
from offbook.models.skeleton import make_skeleton
from offbook.models.targets import linear_layers, targets_for_peft

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
DORA = ".lora_magnitude_vector"
FLOATS = ("F64", "F32", "F16", "BF16")

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

Shape = tuple[int, ...]


def attach_adapter(
    base: PreTrainedModel, lora: LoraSettings, seed: int, name: str, revision: str | None = None
) -> PeftModel:
    """Add a new LoRA adapter in float32.

    Args:
        base: the loaded base model.
        lora: PEFT's settings.
        seed: of the random A matrices; B is zero, so the model computes the same as its base.
        name: by which other programs load the base; it is written into the adapter's configuration.
        revision: of a base on the hub, likewise.

    Raises:
        ConfigError: when `target_modules` names a layer that does not exist.
        ModelError: when no layer of the base can have an adapter.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # PEFT multiplies by any number
        lora_dropout=lora.lora_dropout,
        target_modules=targets_for_peft(base, lora.target_modules),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
    )
    torch.manual_seed(seed)
    try:
        with quiet_transformers():
            model = get_peft_model(base, config)
    except LIBRARY_ERRORS as error:
        raise ModelError(
            f"PEFT adds no adapter to a {base.config.model_type} model: {first_line(error)}",
            where=name,
            fix="change lora.target_modules, or use a Llama-family model",
        ) from error
    assert isinstance(model, PeftModel)
    model.peft_config["default"].base_model_name_or_path = name
    model.peft_config["default"].revision = revision
    return model


def adapter_files(model: PeftModel) -> Iterator[tuple[str, bytes]]:
    """The name and content of the two files of a PEFT adapter.

    The weights are those that PEFT's `save_pretrained` writes. The configuration has no keys that
    only say what PEFT does by default: older releases of PEFT refuse keys that they do not know.
    """
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    yield WEIGHTS, save(tensors, {"format": "pt"})
    yield ADAPTER_CONFIG, config_file(model.peft_config["default"])


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


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Load a saved adapter's weights, unchanged, into a model with an adapter of the same shape.

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
    """Add a saved adapter to its base, for inference.

    Raises:
        CheckpointError: when the folder has no adapter, or it does not fit the base.
    """
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError("no adapter here", where=str(folder), fix="train one first")
    config = read_adapter(folder, base)
    with quiet_transformers():
        model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    restore_adapter(model, folder)
    return model.eval()


def set_strength(model: PeftModel, strength: float) -> None:
    """Multiply what an adapter adds to its base; 1 for what was trained."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", strength)


def read_adapter(folder: Path, base: PreTrainedModel) -> LoraConfig:
    """The configuration of an adapter that fits a base, for inference.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        base: the model that it changes.

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
    require_shapes(folder, _shapes(base, modules, config["r"], dora=config["use_dora"]))
    return LoraConfig(
        task_type="CAUSAL_LM", inference_mode=True, **config | {"target_modules": sorted(modules)}
    )


def require_shapes(folder: Path, expected: Mapping[str, Shape]) -> None:
    """Refuse an adapter whose tensors are not exactly those expected.

    Raises:
        CheckpointError: with the first wrong tensors, and their shapes in the file and the model.
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
        raise CheckpointError(
            f"the adapter does not fit this base: {first_few(wrong, 3, '; ')}",
            where=str(folder),
            fix="use the base it was trained on",
        )


def require_loadable(model: PeftModel) -> None:
    """Refuse a new adapter that resume, chat or PEFT could not load again.

    The adapter is loaded into models without memory: as PEFT loads it, by the `target_modules` of
    its configuration, and as chat does, by the names of its layers.

    Args:
        model: with the adapter; on any device.

    Raises:
        ModelError: naming what would be lost.
    """
    base, config = model.get_base_model(), model.peft_config["default"]
    assert isinstance(base, PreTrainedModel)
    assert isinstance(config, LoraConfig)
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    modules = {name.removeprefix(PREFIX).removesuffix(LORA_A) for name in saved if LORA_A in name}
    skeleton = make_skeleton(base.config)
    reason = None
    layers = {name for name, _ in linear_layers(skeleton)}
    if not modules or modules - layers:
        odd = min(modules - layers, default="nothing")
        reason = f"it would change {odd}, which is no linear layer"
    elif shapes != _shapes(skeleton, modules, config.r, dora=config.use_dora):
        reason = "its tensors are not those of plain LoRA"
    values = {key: getattr(config, key) for key in USED}
    for targets in () if reason else (config.target_modules, sorted(modules)):
        again = make_skeleton(base.config)
        try:
            with torch.device("meta"), quiet_transformers():
                loaded = get_peft_model(
                    again, LoraConfig(task_type="CAUSAL_LM", **values | {"target_modules": targets})
                )
                meta = {name: tensor.to("meta") for name, tensor in saved.items()}
                left: Any = set_peft_model_state_dict(loaded, meta)
                found = get_peft_model_state_dict(loaded, save_embedding_layers=False)
        except LIBRARY_ERRORS as error:
            reason = first_line(error)
            break
        if (
            left.unexpected_keys
            or {name: tuple(tensor.shape) for name, tensor in found.items()} != shapes
        ):
            reason = "PEFT loads it under other names"
    if reason:
        raise ModelError(
            f"an adapter of a {base.config.model_type} model could not be loaded again: {reason}",
            where=config.base_model_name_or_path,
            fix="change lora.target_modules, or use a Llama-family model",
        )


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


def _shapes(
    base: PreTrainedModel, modules: Collection[str], rank: int, *, dora: bool
) -> dict[str, Shape]:
    """The tensors of an adapter of these layers, as PEFT names them."""
    layers = dict(linear_layers(base))
    shapes: dict[str, Shape] = {}
    for name in sorted(modules):
        inputs, outputs = layers[name].in_features, layers[name].out_features
        shapes[PREFIX + name + LORA_A] = (rank, inputs)
        shapes[PREFIX + name + LORA_B] = (outputs, rank)
        if dora:
            shapes[PREFIX + name + DORA] = (outputs,)
    return shapes


def _endings(name: str) -> set[str]:
    """The names that `target_modules` can use for a layer: its whole name, or its last parts."""
    parts = name.split(".")
    return {".".join(parts[k:]) for k in range(len(parts))}


def _mismatch(name: str, found: Shape | None, expected: Shape | None) -> str:
    if found is None:
        return f"{name} is missing"
    has = "x".join(map(str, found))
    if expected is None:
        return f"{name} ({has}) is not part of it"
    return f"{name} is {has}, not {'x'.join(map(str, expected))}"


def _read_config(folder: Path) -> dict[str, Any]:
    """The keys of `USED`, with their types checked; other keys must be notes or change nothing."""
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
