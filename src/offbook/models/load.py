"""Load a base model: on which device, in which precision; and access its backbone and head."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from offbook.errors import ConfigError, ModelError, NonFiniteError
from offbook.libraries import LIBRARY_ERRORS, quiet_transformers
from offbook.models.base import read_config, require_weights
from offbook.models.pipeline import spread
from offbook.models.sharding import shard
from offbook.models.weights import check_report, check_weights


def choose_device(setting: str = "auto") -> torch.device:
    """The first of `choose_devices`."""
    return choose_devices(setting)[0]


def choose_devices(setting: str) -> tuple[torch.device, ...]:
    """The devices of `model.device`; for `auto`, the first GPU that offbook was tested on.

    Raises:
        ConfigError: when PyTorch has no such device here.
    """
    if setting == "auto":
        return (torch.device("cuda" if torch.cuda.is_available() else "cpu"),)
    return tuple(map(_device, setting.split(",")))


def _device(setting: str) -> torch.device:
    device = torch.device(setting)
    if device.type != "cpu":
        found = torch.get_device_module(device)
        count = found.device_count() if found.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"PyTorch has {count or 'no'} {device.type} device{'s' * (count != 1)} here",
                where=f"model.device={setting}",
                fix="leave it at auto, or set cpu",
            )
    return device


def choose_precision(setting: str, device: torch.device) -> torch.dtype:
    """The data type of the base: as set, or for `auto` the fastest on this device."""
    if setting != "auto":
        dtype: torch.dtype = getattr(torch, setting)
        return dtype
    if _bfloat16_is_faster(device):
        return torch.bfloat16
    return torch.float32 if device.type == "cpu" else torch.float16


def load_base(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str = "none",
    others: Sequence[torch.device] = (),
    sharded: bool = False,
) -> PreTrainedModel:
    """Load a base model, frozen and in evaluation mode, from safetensors alone.

    On a processor, weights that are stored in `dtype` are mapped, not read: the system loads parts
    of the file when they are used, and drops them when memory is short.

    Args:
        folder: with the model's configuration and weights.
        dtype: of the weights.
        device: to load it on.
        quantization: `none`, or a 4-bit format.
        others: that hold parts of it, too; see `pipeline.spread`.
        sharded: whether processes share it; see `sharding.shard`. In both cases it is loaded by the
            processor, and then moved.

    Raises:
        ConfigError: when `quantization` needs a package that is not installed, or the base cannot
            be divided over devices.
        ModelError: when the model needs its own code, has no safetensors weights or others than
            its configuration describes, or changes its logits after the output head.
        NonFiniteError: when its logits are not finite, naming the tensor that is not.
    """
    require_weights(folder)
    config = read_config(folder)
    check_weights(folder, config)
    stored_quantized = getattr(config, "quantization_config", None) is not None
    require_quantization("nf4" if stored_quantized else quantization)
    by = torch.device("cpu") if others or sharded else device
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                quantization_config=_quantization(quantization, dtype),
                # Weights go to a GPU as they are read, without a copy in the host's memory.
                device_map={"": by} if by.type != "cpu" or quantization != "none" else None,
                output_loading_info=True,
            )
    except LIBRARY_ERRORS as error:
        raise ModelError(f"the base model does not load: {error}", where=str(folder)) from error
    model: PreTrainedModel
    model, report = loaded
    check_report(report, config, folder)
    if stored_quantized:
        _compute_in(dtype, model)
    if others:
        spread(model, (device, *others))
    elif sharded:
        shard(model, device)
    else:
        nn.Module.to(model, device)
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Otherwise bitsandbytes changes the layout of weights, and gradients are not possible.
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
    _check_head(model, folder)
    return model


def with_same_weights(base: PreTrainedModel) -> PreTrainedModel:
    """Another model with the same weights: its layers are new, its parameters are those of `base`.

    An adapter, and the layers of the engine, can be put into it and `base` stays as it is.
    """
    return copy.deepcopy(base, {id(p): p for p in base.parameters()})


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model, with or without an adapter around it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def backbone(model: nn.Module) -> nn.Module:
    """The transformer below the output head, with its adapter, if any."""
    base = base_of(model)
    return base.get_submodule(base.base_model_prefix)


def head(model: nn.Module) -> nn.Module:
    """The linear layer from hidden states [..., D] to logits [..., V]."""
    output: nn.Module = base_of(model).get_output_embeddings()
    return output


def checkpoint_layers(model: nn.Module) -> None:
    """Have each decoder layer keep its input alone in training; the rest is computed again."""
    with quiet_transformers():  # 5.23 renames it; the old name works in all releases so far
        base_of(model).gradient_checkpointing_enable({"use_reentrant": False})


def require_finite_weights(model: nn.Module, name: str) -> None:
    """Refuse a base with a weight that is NaN or infinite; this reads all of them.

    Args:
        model: with or without an adapter, which is not looked at.
        name: of the base, for the message.

    Raises:
        NonFiniteError: naming the first tensor that has one.
    """
    for parameter, p in base_of(model).named_parameters():
        if p.requires_grad or not p.is_floating_point():
            continue
        if hasattr(p, "to_local"):  # processes share it, and each looks at its part
            p = p.to_local()
        if bad := int((~torch.isfinite(p)).sum()):
            raise NonFiniteError(
                f"{bad:,} of the {p.numel():,} numbers of {parameter.replace('.base_layer', '')} "
                "are NaN or infinite",
                where=name,
                fix="download the base again, or use another copy",
            )


def _check_head(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a model that changes its logits after the head; the engine computes the head alone."""
    ids = torch.tensor([[1, 2, 3, 4]], device=model.device)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        found = head(model)(backbone(model)(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.isfinite(expected).all():
        require_finite_weights(model, str(folder))
        raise NonFiniteError(
            f"the base's weights are finite, but its logits in {model.dtype} are not",
            where=str(folder),
            fix="use another copy of the model",
        )
    if not torch.equal(expected, found):
        raise ModelError(
            f"a {model.config.model_type} model changes its logits after the output head",
            where=str(folder),
            fix="use a Llama-family model",
        )


def require_quantization(kind: str) -> None:
    """Check that the package for a 4-bit format is installed.

    Raises:
        ConfigError: when it is not.
    """
    if kind != "none" and find_spec("bitsandbytes") is None:
        raise ConfigError(
            "bitsandbytes is not installed",
            where="model.quantization",
            fix="run `pip install 'offbook[nf4]'`",
        )


def _compute_in(dtype: torch.dtype, model: PreTrainedModel) -> None:
    """Set the format of computation, which weights stored in 4 bits bring along otherwise."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
        if (state := getattr(parameter, "quant_state", None)) is not None:
            state.dtype = dtype
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            setattr(module, "compute_dtype", dtype)  # noqa: B010


def _quantization(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if kind == "none":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _bfloat16_is_faster(device: torch.device) -> bool:
    if device.type == "cuda" and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return True  # all of the last years can, also where it is planned for one that is not here
    # Processors without bfloat16 instructions emulate them, which is slower than float32, so this
    # is measured. The shape is that of a small model's projection of a few hundred tokens.
    x, w = torch.ones(256, 512), torch.ones(512, 512)
    x16, w16 = x.bfloat16(), w.bfloat16()
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + 0.1  # emulation can be 100 times slower
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where other programs run
    try:
        # Alternately, so that other programs slow down both.
        while len(times) < 3 or (len(times) < 30 and time.perf_counter() < end):
            times.append((_seconds(lambda: x @ w), _seconds(lambda: x16 @ w16)))
    finally:
        torch.set_num_threads(threads)
    return min(t16 for _, t16 in times) < min(t for t, _ in times)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
