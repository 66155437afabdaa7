"""Write a base model with random bfloat16 weights, of the full size of a real one.

    python benchmarks/random_base.py FOLDER --tokenizer FOLDER [--shape deepseek-7b] [--layers N]

Speed and memory do not depend on what the weights are, so a model that cannot be fetched can still
be measured. The tokenizer's folder gives its files; the weights go into shards of a layer each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from machine import DEVICE
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

SHAPES: dict[str, dict[str, Any]] = {
    "deepseek-7b": {
        "vocab_size": 102400,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "bos_token_id": 100000,
        "eos_token_id": 100001,
    },
    "smollm2-360m": {
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "tie_word_embeddings": True,
    },
    "qwen2-small": {
        "model_type": "qwen2",
        "vocab_size": 49152,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 6,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "mistral-small": {
        "model_type": "mistral",
        "vocab_size": 49152,
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "sliding_window": 1024,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="deepseek-7b")
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()

    shape = {"model_type": "llama"} | SHAPES[arguments.shape]
    if arguments.layers:
        shape["num_hidden_layers"] = arguments.layers
    config = AutoConfig.for_model(**shape, dtype="bfloat16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((arguments.tokenizer / name).read_bytes())

    shapes = model.state_dict()
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    generator = torch.Generator(DEVICE).manual_seed(0)
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, tensor in shapes.items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        shards.setdefault(f"model-{layer}.safetensors", {})[name] = tensor.shape
    for shard, tensors in shards.items():
        save_file(
            {
                name: torch.ones(shape, dtype=torch.bfloat16)
                if len(shape) == 1
                else torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).uniform_(
                    -0.03, 0.03, generator=generator
                )
                for name, shape in tensors.items()
            },
            folder / shard,
            metadata={"format": "pt"},
        )
        print(shard, flush=True)
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


if __name__ == "__main__":
    main()
