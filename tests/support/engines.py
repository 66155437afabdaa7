"""Tiny random models and examples for the engine's tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from offbook.models.adapter import attach_adapter
from offbook.settings.sections import LoraSettings
from offbook.tokens.examples import IGNORED, Example

CPU = torch.device("cpu")
DEVICE = CPU  # `pytest --device cuda` sets another before the tests are read
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama-mha": LlamaConfig(**SIZES, num_key_value_heads=4),
    "llama-gqa": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-bias": LlamaConfig(**SIZES, num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "mistral-window": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=7),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16),
}
LORA = LoraSettings(r=4, lora_dropout=0.0)


def make_model(
    config: PreTrainedConfig, dtype: torch.dtype, lora: LoraSettings = LORA
) -> PeftModel:
    """A random base with a random adapter whose B is not zero."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float64)
    base.requires_grad_(False)
    model = attach_adapter(base, lora, 0, "tiny")
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.2
        else:
            p.data = p.data.to(dtype)
    if dtype != torch.float64:  # adapters are float32 over any narrower base
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.float()
    model.to(DEVICE)
    return model


class ExactNorm(nn.Module):
    """transformers' RMSNorm without its cast to float32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def with_exact_norms(model: PeftModel) -> PeftModel:
    """A copy in float64 whose norms do not round."""
    model = copy.deepcopy(model).double()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, ExactNorm(child))
    return model


def example(
    length: int, supervised: Sequence[range], seed: int, prefix: Sequence[int] = ()
) -> Example:
    """Random tokens after a prefix, with labels in the given ranges of positions."""
    ids = np.random.default_rng(seed).integers(0, 97, length).astype(np.int32)
    ids[: len(prefix)] = prefix
    labels = np.full(length, IGNORED, dtype=np.int32)
    for part in supervised:
        labels[part.start : part.stop] = ids[part.start : part.stop]
    return Example(ids, labels, f"row {seed}", False)


def some_examples(prefix: int = 0) -> list[Example]:
    """Of many lengths: several turns, a single token after the prefix, nothing supervised."""
    shared = np.random.default_rng(99).integers(0, 97, prefix)
    p = prefix
    return [
        example(p + 12, [range(p + 5, p + 12)], 0, shared),
        example(p + 11, [range(p + 2, p + 4), range(p + 8, p + 11)], 1, shared),  # two turns
        example(p + 12, [range(p + 11, p + 12)], 2, shared),
        example(p + 3, [range(p + 2, p + 3)], 3, shared),
        example(p + 9, [], 4, shared),
        example(p + 20, [range(p + 6, p + 20)], 5, shared),
        example(p + 2, [range(p + 1, p + 2)], 6, shared),
    ]
