"""Write a whole model: the base's own files, with the adapter added to its layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offbook.errors import ModelError
from offbook.export.weights import BaseWeights, Float32, LoraWeights
from offbook.files.untrusted import INDEX, WHOLE, read_json
from offbook.models.adapter import FLOATS
from offbook.runs.trained import TrainedRun
from offbook.tokens.tokenizer import tokenizer_files


def write_merged(folder: Path, base: BaseWeights, lora: LoraWeights) -> float:
    """Write the weights of a base with its adapter, in the base's own number formats.

    The sum is computed in float32, and rounded once. Names, shapes and formats are the base's, so
    its files are copied, and the changed tensors replaced in the copies.

    Args:
        folder: an empty folder.
        base: the base.
        lora: its adapter.

    Returns:
        The share of the adapter that is lost in rounding: the norm of what rounding changes,
        divided by the norm of what the adapter changes.

    Raises:
        ModelError: when the base stores a layer of the adapter in another way.
    """
    lora.require_layers(base)
    files = sorted({path for path, _ in base.tensors.values()})
    for path in files:
        shutil.copyfile(path, folder / path.name)
    if (base.folder / WHOLE) not in files:
        shutil.copyfile(base.folder / INDEX, folder / INDEX)
    lost = added = 0.0
    for module in lora.modules:
        path, tensor = base.tensors[f"{module}.weight"]
        before = base.read(f"{module}.weight")
        after = lora.merged(module, before)
        rounded = torch.from_numpy(after).to(FLOATS[tensor.dtype])
        with (folder / path.name).open("r+b") as file:
            file.seek(tensor.begin)
            file.write(rounded.view(torch.uint8).numpy().tobytes())
        lost += _square(rounded.float().numpy() - after)
        added += _square(after - before)
    return float(np.sqrt(lost / added)) if added else 0.0


def write_reader_files(folder: Path, run: TrainedRun) -> None:
    """Write what other programs need beside the weights: configuration, tokenizer and template.

    transformers 5 keeps the rotary base in `rope_parameters` alone, where older readers do not
    look.
    """
    config = read_json(run.base / "config.json", ModelError)
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    _write_json(folder / "config.json", config)
    if (run.base / "generation_config.json").exists():
        shutil.copyfile(run.base / "generation_config.json", folder / "generation_config.json")
    template = run.template
    for name, content in tokenizer_files(template.tokenizer, run.base, template.renderer.source):
        (folder / name).write_bytes(content)


def _write_json(file: Path, contents: dict[str, Any]) -> None:
    file.write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _square(values: Float32) -> float:
    return float(np.square(values, dtype=np.float64).sum())
