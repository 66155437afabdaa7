"""Exports that transformers and PEFT read: an adapter's folder, and a whole model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offbook.errors import ExportError
from offbook.export.export import Original, compare, export_run
from offbook.runs.trained import TrainedRun
from support.exports import train_run
from support.families import make_family


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("export")
    return train_run(folder, make_family("llama", folder / "base"))


@pytest.mark.parametrize("target", ["adapter", "merged"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_folder_computes_what_the_run_does(
    run: TrainedRun, tmp_path: Path, target: str, strength: float
) -> None:
    export = export_run(run, target, tmp_path / target, strength=strength)
    assert export.certificate is not None
    assert all(check.passed for check in export.certificate.checks), export.certificate
    other = 1.5 - strength
    assert compare(tmp_path / target, Original.of(run, other), target, "f32").failed


@pytest.mark.parametrize("setting", ["lora.use_rslora=true", "lora.use_dora=true"])
@pytest.mark.parametrize("target", ["adapter", "merged"])
def test_other_scales(tmp_path: Path, setting: str, target: str) -> None:
    trained = train_run(tmp_path, make_family("llama", tmp_path / "base"), setting)
    export_run(trained, target, tmp_path / target)


def test_a_base_in_bfloat16_stays_so(tmp_path: Path) -> None:
    base = make_family("llama", tmp_path / "base")
    weights = base / "model.safetensors"
    in_bfloat16 = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(in_bfloat16, weights, {"format": "pt"})
    export = export_run(train_run(tmp_path, base), "merged", tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert "of what the adapter adds" in export.note


def test_older_readers_find_the_rotary_base(run: TrainedRun, tmp_path: Path) -> None:
    export_run(run, "merged", tmp_path / "merged", verify=False)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert not (tmp_path / "merged" / "certificate.json").exists()


@pytest.mark.parametrize("target", ["adapter", "merged"])
def test_a_damaged_folder_is_refused(run: TrainedRun, tmp_path: Path, target: str) -> None:
    export_run(run, target, tmp_path / target, verify=False)
    (weights,) = (tmp_path / target).glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if "up_proj" in name)
    tensors[name] *= -1
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ExportError, match="log-probabilities"):
        compare(tmp_path / target, Original.of(run), target, "f32").require_passed("here")
