"""Which layers of a base can have an adapter, and which of them get one?

An adapter has to come back: resume, chat, exports and PEFT must load what training wrote. That is
so for linear layers. It is not so for everything that a model multiplies by:

- The experts of a mixture-of-experts model are parameters with three dimensions in transformers 5,
  not linear layers.
- PEFT changes names that such a model had in transformers 4, such as `gate_proj`, into those of the
  experts' parameters. In DeepSeek-V3, dense layers and shared experts have these names, too.
- A router may look like a linear layer and return more than one tensor.
- GPT-2's layers are of another class, `Conv1D`, whose weight is transposed.

These are left out, and named.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from offbook.errors import ConfigError, ModelError
from offbook.libraries import LIBRARY_ERRORS

try:
    from peft.utils.transformers_weight_conversion import (
        convert_peft_config_for_transformers as rename_targets,
    )
except ImportError:  # an older PEFT changes no names

    def rename_targets(peft_config: Any, model: nn.Module, conversions: list[Any] | None) -> None:
        """Change nothing."""


ALL_LINEAR = "all-linear"
HEAD_NAME = "lm_head"
QUANTIZED = "Linear4bit"  # bitsandbytes' layer; its forward is that of a linear layer


def linear_layers(base: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    """The layers that an adapter may change, with their names: linear layers below the head."""
    renamed = _renamed_by_peft(base)
    return [
        (name, module)
        for name, module in _all_linear(base)
        if _leaf(name) not in renamed and _is_plain(module)
    ]


def targets_for_peft(base: PreTrainedModel, targets: tuple[str, ...] | str) -> list[str] | str:
    """`lora.target_modules` as PEFT gets it: without layers that cannot have an adapter.

    Raises:
        ConfigError: when it names a layer that does not exist, or cannot have an adapter.
        ModelError: when no layer of this base can have one.
    """
    check_targets(base, targets)
    if not isinstance(targets, str):
        return list(targets)
    usable = [name for name, _ in linear_layers(base)]
    if len(usable) == len(_all_linear(base)) and not _experts(base):
        return targets
    # As names, since PEFT adds the experts to what it finds by a pattern.
    return [name for name in usable if targets == ALL_LINEAR or re.fullmatch(targets, name)]


def layers_left_out(base: PreTrainedModel) -> list[str]:
    """What a user should know about layers that cannot have an adapter: a line for each reason."""
    notes = []
    if experts := _experts(base):
        names = ", ".join(dict.fromkeys(name for name, _ in experts))
        share = sum(n for _, n in experts) / sum(p.numel() for p in base.parameters())
        notes.append(
            f"experts get no adapter: their {names} are not linear layers "
            f"({share:.0%} of the weights)"
        )
    if renamed := _renamed_by_peft(base):
        notes.append(
            f"{', '.join(renamed)} get no adapter: PEFT takes these names for those of the experts"
        )
    odd = [_leaf(name) for name, module in _all_linear(base) if not _is_plain(module)]
    if odd:
        notes.append(f"{', '.join(dict.fromkeys(odd))} get no adapter: they are no plain layers")
    return notes


def check_targets(base: PreTrainedModel, targets: tuple[str, ...] | str) -> None:
    """Refuse `lora.target_modules` that name no layer, or the head.

    Raises:
        ConfigError: with the names of the layers that exist.
        ModelError: when no layer of this base can have an adapter.
    """
    names = [name for name, _ in linear_layers(base)]
    exist = ", ".join(dict.fromkeys(map(_leaf, names)))
    if not names:
        transposed = any(isinstance(module, Conv1D) for module in base.modules())
        raise ModelError(
            f"a {base.config.model_type} model has no linear layers that could have an adapter"
            + ("; its layers are Conv1D" if transposed else ""),
            fix="use a Llama-family model",
        )
    if isinstance(targets, str):
        if targets != ALL_LINEAR and _matches(targets, [HEAD_NAME]):
            raise ConfigError(
                f'lora.target_modules: the regular expression "{targets}" matches the output head',
                fix="change it so that it matches only layers below the head",
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
        reasons = layers_left_out(base) if missing else []
        raise ConfigError(
            f"lora.target_modules: {'; '.join([named, *reasons])}",
            fix=f"the layers are {exist}; or use {ALL_LINEAR}",
        )


def _all_linear(base: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    output = base.get_output_embeddings()
    return [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    ]


def _is_plain(layer: nn.Linear) -> bool:
    """Whether a layer returns what a linear layer does; a router may return more."""
    if type(layer) is nn.Linear or type(layer).__name__ == QUANTIZED:
        return True
    x = torch.zeros(1, layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype)
    try:
        with torch.no_grad():
            y = layer(x)
    except LIBRARY_ERRORS:
        return False
    return isinstance(y, torch.Tensor) and y.shape == (1, layer.out_features)


def _renamed_by_peft(base: PreTrainedModel) -> list[str]:
    """The last parts of names that PEFT would change into those of the experts' parameters."""
    renamed = []
    for leaf in dict.fromkeys(_leaf(name) for name, _ in _all_linear(base)):
        config = LoraConfig(target_modules=[leaf])
        try:
            rename_targets(config, base, None)
        except ValueError:  # it is fused with another
            renamed.append(leaf)
            continue
        if leaf not in (config.target_modules or ()):
            renamed.append(leaf)
    return renamed


def _experts(base: PreTrainedModel) -> list[tuple[str, int]]:
    """The parameters that hold all experts of a layer, by name, and the numbers in each."""
    return [
        (name, p.numel())
        for module in base.modules()
        for name, p in module.named_parameters(recurse=False)
        if p.ndim == 3 and not isinstance(module, nn.Conv1d)
    ]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _matches(pattern: str, names: list[str]) -> bool:
    try:
        return any(re.fullmatch(pattern, name) for name in names)
    except re.error as error:
        raise ConfigError(f"lora.target_modules: not a regular expression: {error}") from None
