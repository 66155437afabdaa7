"""Write GGUF, llama.cpp's format: a base, its adapter merged into it, or the adapter alone.

llama.cpp rotates neighbouring channels of Llama's and Mistral's queries and keys, where
transformers rotates channel c with channel c + C/2; so the rows of their q and k are moved. Linear
layers keep names of their own, which the `gguf` package knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from offbook.errors import CheckpointError, ConfigError
from offbook.export.gguf_tokenizer import without_llama_cpp, write_tokenizer
from offbook.export.weights import BaseWeights, Float32, LoraWeights
from offbook.models.base import read_config
from offbook.tokens.template import ChatTemplate

CHUNK = 2**24  # numbers that are quantized at a time
ROPE_SCALINGS = ("default", "linear", "llama3")
SILU = ("silu", "swish")  # transformers' names of the activation that llama.cpp computes


class Architecture(NamedTuple):
    """How llama.cpp names a type of model, and whether the rows of its q and k are moved."""

    name: str
    moves_rows: bool


ARCHITECTURES = {
    "llama": Architecture("llama", True),
    "mistral": Architecture("llama", True),
    "qwen2": Architecture("qwen2", False),
    "qwen3": Architecture("qwen3", False),
}
TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def require_type(kind: str) -> None:
    """Check the name of a number format.

    Raises:
        ConfigError: when a GGUF cannot be written in it here.
    """
    if kind in TYPES:
        return
    if kind.lower().startswith(("q", "iq")):
        raise ConfigError(
            f"{kind} is made by llama.cpp's own quantizer, which its Python packages do not have",
            where="--type",
            fix="use --type f16, and give the file to llama.cpp's `llama-quantize`; or use --to "
            "gguf-lora, for a GGUF of the base in any number format",
        )
    raise ConfigError(f"{kind} is no number format", where="--type", fix=f"use {', '.join(TYPES)}")


def write_model(
    path: Path, base: BaseWeights, lora: LoraWeights | None, kind: str, template: ChatTemplate
) -> None:
    """Write a GGUF with the weights of a base, and its adapter merged into them in float32.

    Args:
        path: the file to write.
        base: the base.
        lora: its adapter, or None for the base alone.
        kind: the number format of matrices, a key of `TYPES`. Vectors are float32. Rows whose
            length is no multiple of q8_0's blocks are f16.
        template: the chat template and tokenizer that go into the file.

    Raises:
        ModelError: when llama.cpp does not compute this type of model, or not as transformers does.
    """
    config = base.config
    if lora:
        lora.require_layers(base)
    writer = gguf.GGUFWriter(path, architecture(config).name)
    number, file_type = TYPES[kind]
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(longest_context(base))
    _write_shape(writer, config)
    write_tokenizer(writer, template, config["vocab_size"])
    rename = _renamer(config)
    types = {name: _type_of(tensor.shape, number) for name, (_, tensor) in base.tensors.items()}
    for name, (_, tensor) in base.tensors.items():
        block, size = gguf.GGML_QUANT_SIZES[types[name]]
        in_bytes = math.prod(tensor.shape) // block * size
        writer.add_tensor_info(
            rename(name), tensor.shape, np.dtype(np.float32), in_bytes, raw_dtype=types[name]
        )
    factors = _llama3_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in base.tensors:
        # No tensor has a name here, so that it is freed before the next one is read.
        writer.write_tensor_data(
            _quantized(_moved(name, _merged(name, base, lora), config), types[name])
        )
    if factors is not None:
        writer.write_tensor_data(factors)
    writer.close()


def _merged(name: str, base: BaseWeights, lora: LoraWeights | None) -> Float32:
    module = name.removesuffix(".weight")
    value = base.read(name)
    return lora.merged(module, value) if lora and module in lora.modules else value


def write_lora(path: Path, base: BaseWeights, lora: LoraWeights) -> None:
    """Write an adapter alone, for a GGUF of the same base in any number format.

    Raises:
        CheckpointError: when it is a DoRA adapter, which llama.cpp does not know.
        ModelError: as `write_model` does.
    """
    if lora.dora:
        raise CheckpointError(
            "llama.cpp has no DoRA adapters", where=str(lora.folder), fix="use --to gguf"
        )
    config, rename = base.config, _renamer(base.config)
    writer = gguf.GGUFWriter(path, architecture(config).name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp divides it by the rank of each matrix, and takes 0 for "not scaled".
    scale = lora.scale or 1.0
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scale * lora.rank)
    for module in lora.modules:
        A_RI, B_OR = lora.matrices(module)
        name = rename(f"{module}.weight")
        writer.add_tensor(f"{name}.lora_a", A_RI)
        B_OR = _moved(f"{module}.weight", B_OR, config)
        writer.add_tensor(f"{name}.lora_b", B_OR if lora.scale else np.zeros_like(B_OR))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def architecture(config: dict[str, Any]) -> Architecture:
    """What llama.cpp calls the model of a `config.json`.

    Raises:
        ModelError: as `write_model` does.
    """
    kind, activation = config.get("model_type"), config.get("hidden_act", SILU[0])
    if kind not in ARCHITECTURES:
        raise without_llama_cpp(f"a {kind} model cannot be written as GGUF here")
    if activation not in SILU:
        raise without_llama_cpp(
            f"llama.cpp computes a {kind} model with {SILU[0]}, not {activation}"
        )
    return ARCHITECTURES[kind]


def longest_context(base: BaseWeights) -> int:
    """The most tokens of a sequence in llama.cpp.

    It computes these models without a sliding window, so the context ends with it.

    Raises:
        ModelError: when this type of model cannot be written.
    """
    architecture(base.config)
    config = read_config(base.folder)  # what config.json does not say has transformers' default
    longest: int = config.max_position_embeddings
    return min(longest, getattr(config, "sliding_window", None) or longest)


def _renamer(config: dict[str, Any]) -> Callable[[str], str]:
    """llama.cpp's name of each tensor."""
    names = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(names[architecture(config).name], config["num_hidden_layers"])

    def rename(name: str) -> str:
        renamed = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if renamed is None:
            raise without_llama_cpp(f"llama.cpp has no place for {name}")
        return renamed

    return rename


def _type_of(shape: tuple[int, ...], number: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[number]
    return GGMLQuantizationType.F16 if shape[-1] % block else number


def _quantized(value: Float32, number: GGMLQuantizationType) -> NDArray[Any]:
    """A tensor in another number format, as bytes; some rows at a time, to need little memory."""
    if number is GGMLQuantizationType.F32:
        return np.ascontiguousarray(value)
    rows = max(1, CHUNK // value.shape[-1])
    parts = [value[at : at + rows] for at in range(0, len(value), rows)]
    first = gguf.quantize(parts[0], number)
    whole = np.empty((len(value), *first.shape[1:]), first.dtype)
    whole[:rows] = first
    for index, part in enumerate(parts[1:], 1):
        whole[index * rows : (index + 1) * rows] = gguf.quantize(part, number)
    return whole


def _moved(name: str, rows: NDArray[Any], config: dict[str, Any]) -> NDArray[Any]:
    """The rows of a q or k weight, bias or B, from transformers' halves to llama.cpp's pairs."""
    part = name.split(".")[-2]
    heads = {"q_proj": _heads(config)[0], "k_proj": _heads(config)[1]}.get(part)
    if heads is None or not architecture(config).moves_rows:
        return rows
    pairs = rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows.shape))


def _heads(config: dict[str, Any]) -> tuple[int, int]:
    """The numbers of query heads, and of key and value heads."""
    queries = config["num_attention_heads"]
    return queries, config.get("num_key_value_heads") or queries


def _channels(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding's settings, which transformers has kept in two ways."""
    older = {"rope_theta": config.get("rope_theta", 10_000.0), **(config.get("rope_scaling") or {})}
    rope = dict(config.get("rope_parameters") or older)
    rope["kind"] = rope.get("rope_type") or rope.get("type") or "default"
    if rope["kind"] not in ROPE_SCALINGS:
        raise without_llama_cpp(f"rope scaling {rope['kind']!r} cannot be written as GGUF here")
    return rope


def _write_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope, channels = _rope(config), _channels(config)
    queries, keys = _heads(config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(queries)
    writer.add_head_count_kv(keys)
    writer.add_key_length(channels)
    writer.add_value_length(channels)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(channels)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["kind"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _llama3_factors(config: dict[str, Any]) -> Float32 | None:
    """By what Llama 3.1's scaling divides each frequency [C/2]; None for other models.

    Long waves are divided by `factor`, short ones by 1, and those between by a value between
    (transformers, `_compute_llama3_parameters`).
    """
    rope = _rope(config)
    if rope["kind"] != "llama3":
        return None
    low, high, factor = (rope[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    context, channels = rope["original_max_position_embeddings"], _channels(config)
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, channels, 2) / channels)
    smooth = (context / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(waves > context / low, factor, between)
    return np.where(waves < context / high, 1, factors).astype(np.float32)
