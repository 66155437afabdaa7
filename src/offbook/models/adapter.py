"""Attach LoRA adapters to a base, and write, check and load their PEFT folders."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
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
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from offbook.errors import CheckpointError, ModelError, first_few, first_line
from offbook.files.untrusted import read_tensors
from offbook.libraries import LIBRARY_ERRORS, quiet_transformers
from offbook.models.adapter_config import USED, config_file, read_plain_lora, require_strength
from offbook.models.base import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from offbook.models.skeleton import make_skeleton
from offbook.models.targets import linear_layers, targets_for_peft
from offbook.settings.sections import LoraSettings

PREFIX = "base_model.model."
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
DORA = ".lora_magnitude_vector"
# Plain numbers, by their names in safetensors.
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

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
        revision: of a base on the hub; it is written there, too.

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
            fix="set other lora.target_modules, such as all-linear, or use a Llama-family model",
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
    yield ADAPTER_WEIGHTS, save(tensors, {"format": "pt"})
    yield ADAPTER_CONFIG, config_file(model.peft_config["default"])


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Load a saved adapter's weights, unchanged, into a model with an adapter of the same shape.

    Raises:
        CheckpointError: when they do not fit.
    """
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    require_shapes(folder, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    try:
        set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS))
    except LIBRARY_ERRORS as error:
        raise CheckpointError(f"the adapter does not load: {error}", where=str(folder)) from error


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Add a saved adapter to its base, for inference.

    Raises:
        CheckpointError: when the folder has no adapter, or it does not fit the base.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError("no adapter here", where=str(folder), fix="train one first")
    config = read_adapter(folder, base)
    with quiet_transformers():
        model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    restore_adapter(model, folder)
    return model.eval()


def has_strength(model: PeftModel) -> bool:
    """Whether what an adapter adds can be multiplied: not with DoRA."""
    return not getattr(model.peft_config["default"], "use_dora", False)


def set_strength(model: PeftModel, strength: float) -> None:
    """Multiply what an adapter adds to its base; 1 for what was trained.

    Raises:
        ConfigError: when it has no other strength than 1.
    """
    require_strength(strength, use_dora=not has_strength(model))
    for layer in lora_layers(model):
        layer.set_scale("default", strength)


def lora_layers(model: PeftModel) -> Iterator[LoraLayer]:
    """The layers that an adapter changes."""
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def read_adapter(folder: Path, base: PreTrainedModel) -> LoraConfig:
    """The configuration of an adapter that fits a base, for inference.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        base: the model that it changes.

    Raises:
        CheckpointError: naming the key that is not plain LoRA, or the tensors that do not fit.
    """
    config = read_plain_lora(folder)
    tensors = read_tensors(folder / ADAPTER_WEIGHTS, CheckpointError)
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
    tensors = read_tensors(folder / ADAPTER_WEIGHTS, CheckpointError)
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
            fix="set other lora.target_modules, such as all-linear, or use a Llama-family model",
        )


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
