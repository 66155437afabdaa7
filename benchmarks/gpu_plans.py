"""Which rows fit which card: the plans for a base of DeepSeek-7B's shape, as a table.

    python benchmarks/gpu_plans.py

Nothing is loaded, and no card is needed: see `offbook plan --device cuda --memory 24GB`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from random_base import SHAPES
from transformers import AutoConfig

from offbook.errors import MemoryPlanError
from offbook.settings.config import Config
from offbook.training.advice import Case
from offbook.training.memory import Memory
from offbook.training.plan import GB, ModelShape, make_plan

CARDS = (8, 12, 16, 24, 48, 80)  # GB
LENGTHS = (128, 384, 1024, 2048, 4096, 8192)  # tokens of the longest row
FREE = 0.94  # of a card's memory, beside the driver and a desktop


def cell(shape: ModelShape, quantization: str, length: int, card: int) -> str:
    """The plan's memory and how it fits: in micro-batches of so many tokens, or recomputed."""
    config = Config().override(f"model.quantization={quantization}")
    memory = Memory(int(card * GB * FREE), 0)
    case = Case(config, shape, length, torch.bfloat16, torch.device("cuda"), memory)
    try:
        plan = make_plan(case)
    except MemoryPlanError:
        return "-"
    star = "*" if plan.checkpointing else ""
    return f"{plan.micro_batch_tokens:,}{star}"


def main() -> None:
    config = AutoConfig.for_model("llama", **SHAPES["deepseek-7b"])
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        shape = ModelShape.of(Path(folder), Config().lora)
    print(f"| longest row | base | {' | '.join(f'{card} GB' for card in CARDS)} |")
    print(f"|--:|---|{'--:|' * len(CARDS)}")
    for length in LENGTHS:
        for quantization, name in (("none", "bfloat16"), ("nf4", "nf4")):
            cells = " | ".join(cell(shape, quantization, length, card) for card in CARDS)
            print(f"| {length:,} | {name} | {cells} |")


if __name__ == "__main__":
    main()
