"""Writing a GGUF needs memory for the largest tensor, however many there are."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from offbook.export.gguf import TYPES, write_model
from offbook.export.weights import BaseWeights, LoraWeights
from support.exports import train_run
from support.families import make_family


def peak(folder: Path, layers: int, kind: str) -> tuple[int, int]:
    """The most memory that numpy and Python have while writing, and that of the largest tensor."""
    folder.mkdir()
    sizes = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": layers}
    run = train_run(folder, make_family("llama", folder / "base", **sizes), "train.max_steps=1")
    base, lora = BaseWeights.of(run.base), LoraWeights.of(run.adapter, run.base)
    largest = max(4 * tensor.elements for _, tensor in base.tensors.values())
    write_model(folder / "first.gguf", base, lora, kind, run.template)  # and its imports
    tracemalloc.start()
    try:
        write_model(folder / "model.gguf", base, lora, kind, run.template)
        return tracemalloc.get_traced_memory()[1], largest
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", TYPES)
def test_memory_is_that_of_the_largest_tensor(tmp_path: Path, kind: str) -> None:
    (few, largest), (many, _) = (peak(tmp_path / str(n), n, kind) for n in (1, 6))
    # The weight, B A and what their sum is rounded to; and room for the header.
    assert few < 3.2 * largest
    assert many < few + 0.2 * largest  # five more layers have 45 MB
