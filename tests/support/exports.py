"""Runs that have learned something in a second, of many kinds of base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offbook.runs.trained import TrainedRun, open_run
from offbook.settings.config import Config
from offbook.training.train import train
from support.tiny import ROWS

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
# The family of a base, and what is unusual in it.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied head": ("llama", {"tie_word_embeddings": True}),
    "all heads": ("llama", {"num_key_value_heads": 4}),
    "llama 3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear rope": ("llama", {"rope_parameters": LINEAR_ROPE}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
}


def train_run(folder: Path, base: Path, *settings: str) -> TrainedRun:
    """A run that has learned something, in a second."""
    (folder / "rows.jsonl").write_text(ROWS * 4, encoding="utf-8")
    config = Config.load(
        None,
        [
            f"model.base={base}",
            "model.precision=float32",
            f"data.train={folder / 'rows.jsonl'}",
            "data.validation=0.2",
            "train.max_steps=25",
            "train.learning_rate=0.01",
            f"output_dir={folder / 'run'}",
            *settings,
        ],
    )
    train(config)
    return open_run(config.output_dir)
