"""Do the weights in a base's files fit its model? Found from the files' headers alone.

transformers builds the model that `config.json` describes and fills it from the files. A tensor for
which the model has no place is dropped without an error, and the result computes something else:
attention without its biases, or 8-bit numbers without their scales. So names and shapes are
compared first, by loading tensors that have a shape and no memory. transformers' own renaming
applies, and with it what it knows to be harmless: rotary frequencies, attention masks, a second
copy of a tied head, and the layers that DeepSeek-V3 trains to predict more than one token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from offbook.errors import ModelError, first_few
from offbook.files.untrusted import read_base_tensors
from offbook.libraries import LIBRARY_ERRORS, quiet_transformers
from offbook.models.base import MAX_LAYERS, read_config
from offbook.models.skeleton import make_skeleton

SCALES = re.compile(r"scale|qweight|qzeros|g_idx|absmax|quant_|zero_point|SCB")
LAYER = re.compile(r"\.layers\.(\d+)\.")
NAMED = 3  # tensors that an error names


def check_weights(folder: Path, config: PreTrainedConfig | None = None) -> None:
    """Refuse a base whose weights are not those of the model that its config.json describes.

    Args:
        folder: with `config.json` and safetensors weights, of which only the headers are read.
        config: the contents of `config.json`, where they have been read.

    Raises:
        ModelError: naming the tensors that are missing, or that the model has no place for.
    """
    config = config or read_config(folder)
    stored = {name: tensor.shape for name, (_, tensor) in read_base_tensors(folder).items()}
    try:
        skeleton = make_skeleton(config)
        _check_size(sum(p.numel() for p in skeleton.parameters()), stored, folder)
        if getattr(config, "quantization_config", None) is not None:
            return  # their shapes are those of packed weights; `load_base` compares the names
        with quiet_transformers():
            loaded: Any = type(skeleton).from_pretrained(
                None,
                config=config,
                state_dict={n: torch.empty(shape, device="meta") for n, shape in stored.items()},
                device_map="meta",
                output_loading_info=True,
            )
    except LIBRARY_ERRORS as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"the base model does not load: {error}", where=str(folder)) from error
    check_report(loaded[1], config, folder)


def check_report(report: dict[str, Any], config: PreTrainedConfig, folder: Path) -> None:
    """Refuse a base from whose files transformers left out a tensor, or missed one.

    Args:
        report: what `from_pretrained` returns with `output_loading_info`.
        config: of the model.
        folder: of the base, for the message.

    Raises:
        ModelError: naming the tensors.
    """
    missing = sorted(report["missing_keys"])
    surplus = sorted(set(report["unexpected_keys"]) - _further_predictions(report, config))
    if missing and surplus:
        raise ModelError(
            f"{len(missing)} of its weights are missing, such as {missing[0]}, and config.json "
            f"has no place for {len(surplus)} others, such as {surplus[0]}",
            where=str(folder),
            fix="use the config.json that was published with these weights, or download both again",
        )
    if missing:
        raise ModelError(
            f"{len(missing)} of its weights are missing, such as {missing[0]}",
            where=str(folder),
            fix="download it again",
        )
    if surplus:
        meaning, fix = _meaning(surplus, config)
        raise ModelError(
            f"{len(surplus)} of its tensors have no place in the {config.model_type} model that "
            f"config.json describes, and would be ignored: {first_few(surplus, NAMED)}; {meaning}",
            where=str(folder),
            fix=fix,
        )


def _further_predictions(report: dict[str, Any], config: PreTrainedConfig) -> set[str]:
    """Tensors of the layers after the last, which only predict further tokens in advance."""
    depth = _depth(config)
    extra = range(depth, depth + (getattr(config, "num_nextn_predict_layers", None) or 0))
    return {name for name in report["unexpected_keys"] if _layer_of(name) in extra}


def _meaning(surplus: Collection[str], config: PreTrainedConfig) -> tuple[str, str]:
    """What surplus tensors say about a base, and what to do."""
    if any(SCALES.search(name.rpartition(".")[2]) for name in surplus):
        return (
            "they belong to quantized weights, which are wrong without them",
            "use the original model, with model.quantization=nf4 if it is too large",
        )
    if any("lora_" in name for name in surplus):
        return "they are an adapter that was not merged", "merge it into its base with PEFT first"
    deepest = max(map(_layer_of, surplus))
    if deepest >= _depth(config):
        return (
            f"num_hidden_layers is {_depth(config)}, and there are {deepest + 1}",
            "use the config.json that was published with these weights",
        )
    what = "biases" if all(name.endswith(".bias") for name in surplus) else "weights"
    return (
        f"without these {what} it computes something else",
        "use the config.json that was published with these weights",
    )


def _depth(config: PreTrainedConfig) -> int:
    return getattr(config.get_text_config(), "num_hidden_layers", MAX_LAYERS)


def _layer_of(name: str) -> int:
    found = LAYER.search(name)
    return int(found[1]) if found else -1


def _check_size(described: int, shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Refuse a configuration that describes many more weights than the files contain.

    transformers would allocate memory for all of them before it reports what is missing.
    """
    stored = sum(map(math.prod, shapes.values()))
    # A byte holds two 4-bit weights.
    if described > 2 * stored:
        raise ModelError(
            f"config.json describes {described:,} weights; there are {stored:,}",
            where=str(folder),
            fix="download it again",
        )
