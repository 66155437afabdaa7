"""Two runs on one tiny base, and a server of them in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from support.exports import train_run
from support.families import make_family
from support.serving import Served, serve


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs, which have learned the same rows with other seeds. Their replies never stop."""
    folder = tmp_path_factory.mktemp("served")
    base = make_family("llama", folder / "base", max_position_embeddings=2**15)
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"][1] = 0  # the stop token is never the likeliest
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    for seed, name in enumerate(("captain", "keeper")):
        train_run(folder, base, f"output_dir={folder / name}", f"train.seed={seed}")
    return folder / "captain", folder / "keeper"


@pytest.fixture(scope="module")
def served(runs: tuple[Path, Path]) -> Iterator[Served]:
    """`offbook serve` with both, in float32, on one thread."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    options = ["--type", "f32", "--context", "16384"]
    with serve(runs[0].parent, "captain", "keeper", *options) as server:
        yield server
