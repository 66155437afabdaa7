"""Load a base model; attach, save and load adapters. The only user of PEFT."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
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
from peft.tuners import lora as peft_lora
from safetensors.torch import load_file, save
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from offbook.adapter import CONFIG, WEIGHTS, check_targets, read_adapter, require_shapes
from offbook.base import read_config, require_weights
from offbook.config import LoraSettings
from offbook.errors import CheckpointError, ConfigError, ModelError
from offbook.tokenizer import quiet_transformers
from offbook.untrusted import LIBRARY_ERRORS, read_base_tensors

QUANTIZED = "Linear4bit"  # bitsandbytes' layer, and PEFT's over it
ADAPTED = ("Linear", QUANTIZED)


def choose_device() -> torch.device:
    """The first GPU, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(setting: str, device: torch.device) -> torch.dtype:
    """The number format of the base: as set, or for `auto` as a measurement on this device says."""
    if setting != "auto":
        return torch.bfloat16 if setting == "bfloat16" else torch.float32
    return torch.bfloat16 if _bfloat16_is_faster(device) else torch.float32


def load_base(
    folder: Path, dtype: torch.dtype, device: torch.device, quantization: str = "none"
) -> PreTrainedModel:
    """A base model in evaluation mode, without gradients, from safetensors alone.

    On a processor, weights that are in `dtype` already are not read but mapped: they stay in the
    file, and in memory as far as there is room.

    Raises:
        ConfigError: when `quantization` needs a package that is not installed.
        ModelError: when it cannot be loaded without running its own code, has no safetensors
            weights, or computes its logits in a way this project does not reproduce.
    """
    require_weights(folder)
    config = read_config(folder)
    _check_size(config, folder)
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
                device_map={"": device} if quantization != "none" else None,
                output_loading_info=True,
            )
    except LIBRARY_ERRORS as error:
        raise ModelError(f"the base model does not load: {error}", where=str(folder)) from error
    model: PreTrainedModel
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{len(missing)} of its weights are missing, such as {missing[0]}",
            where=str(folder),
            fix="fetch it anew",
        )
    nn.Module.to(model, device)
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack weights for inference, which rules out gradients.
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
    _check_head(model, folder)
    return model


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model, under an adapter or bare."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def backbone(model: nn.Module) -> nn.Module:
    """The transformer below the output head, with its adapters if it has any."""
    base = base_of(model)
    return base.get_submodule(base.base_model_prefix)


def head(model: nn.Module) -> nn.Module:
    """The linear layer from hidden states [..., hidden] to logits [..., vocabulary]."""
    output: nn.Module = base_of(model).get_output_embeddings()
    return output


@dataclass(frozen=True)
class Projection:
    """A linear layer taken apart: `x W' + bias + scaling * dropout(x) A' B'`.

    Attributes:
        base: the frozen linear layer.
        lora_A, lora_B: the adapter's matrices [r, in] and [out, r]; None without an adapter.
        scaling: PEFT's, of the adapter's part.
        dropout: the probability in force now: 0 in evaluation mode.
    """

    base: nn.Module
    lora_A: nn.Parameter | None = None  # noqa: N815  # PEFT's spelling
    lora_B: nn.Parameter | None = None  # noqa: N815
    scaling: float = 1.0
    dropout: float = 0.0

    @classmethod
    def of(cls, layer: nn.Module) -> Projection | None:
        """The parts of a layer; None when it is more than a linear layer with plain LoRA."""
        if _is_linear(layer):
            return cls(layer)
        if not isinstance(layer, peft_lora.LoraLayer) or not _is_linear(layer.base_layer):
            return None
        if type(layer).__name__ not in ADAPTED:
            return None
        if layer.lora_variant or layer.merged or layer.active_adapters != ["default"]:
            return None
        if layer.disable_adapters:
            return cls(layer.base_layer)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert isinstance(a, nn.Parameter)
        assert isinstance(b, nn.Parameter)
        dropout = layer.lora_dropout["default"]
        rate = dropout.p if layer.training and isinstance(dropout, nn.Dropout) else 0.0
        return cls(layer.base_layer, a, b, layer.scaling["default"], rate)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """`(out, in)`, also where the weight is kept in 4 bits."""
        return self.base.out_features, self.base.in_features  # type: ignore[return-value]

    def weight(self) -> torch.Tensor:
        """The base's weight [out, in], dequantized where it is kept in 4 bits."""
        weight = self.base.weight
        assert isinstance(weight, torch.Tensor)
        state = getattr(weight, "quant_state", None)
        if state is None:
            return weight
        from bitsandbytes.functional import dequantize_4bit

        dense: torch.Tensor = dequantize_4bit(weight.data, state)
        return dense

    @property
    def bias(self) -> torch.Tensor | None:
        bias = self.base.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        return bias


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
    yield CONFIG, text.encode()


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


def _check_size(config: PreTrainedConfig, folder: Path) -> None:
    """Refuse a configuration of a model so much larger than its weights that no memory holds it."""
    stored = sum(math.prod(tensor.shape) for _, tensor in read_base_tensors(folder).values())
    try:
        with torch.device("meta"), quiet_transformers():
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except LIBRARY_ERRORS as error:
        raise ModelError(f"the base model does not load: {error}", where=str(folder)) from error
    described = sum(p.numel() for p in skeleton.parameters())
    # Weights in 4 bits are stored two in a number.
    if described > 2 * stored:
        raise ModelError(
            f"config.json describes {described:,} weights; there are {stored:,}",
            where=str(folder),
            fix="fetch it anew",
        )


def _check_head(model: PreTrainedModel, folder: Path) -> None:
    """Losses are computed from hidden states and the head alone; make sure the model agrees."""
    ids = torch.tensor([[1, 2, 3, 4]], device=model.device)
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits
        got = head(model)(backbone(model)(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.equal(want, got):
        raise ModelError(
            f"a {model.config.model_type} model changes its logits after the output head",
            where=str(folder),
            fix="use a Llama-family model",
        )


def _is_linear(layer: nn.Module) -> bool:
    if type(layer).__name__ == QUANTIZED:
        return isinstance(layer, nn.Linear)  # PEFT's layer of the same name is not
    return type(layer) is nn.Linear


def _quantization(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if kind == "none":
        return None
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "bitsandbytes is not installed",
            where="model.quantization",
            fix="run `pip install 'offbook[nf4]'`",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _bfloat16_is_faster(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Processors without bfloat16 instructions emulate them, slower than float32: so measure. The
    # shape is that of a small model's projection over a few hundred tokens.
    x, w = torch.ones(256, 512), torch.ones(512, 512)
    x16, w16 = x.bfloat16(), w.bfloat16()
    # In turns, so that another program's work slows both. Emulation can be a hundred times slower.
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + 0.1
    while len(times) < 3 or (len(times) < 30 and time.perf_counter() < end):
        times.append((_seconds(lambda: x @ w), _seconds(lambda: x16 @ w16)))
    return min(t16 for _, t16 in times) < min(t for t, _ in times)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
