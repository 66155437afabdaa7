"""Exports that transformers and PEFT read: an adapter's folder, and a whole model's."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from offbook.errors import ExportError
from offbook.export.export import Original, compare, export_run
from offbook.export.weights import LoraWeights
from offbook.models.gguf import SOURCE
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


def test_the_card_of_an_adapter_says_how_good_it_is(run: TrainedRun, tmp_path: Path) -> None:
    export = export_run(run, "adapter", tmp_path / "adapter", strength=0.5)
    assert export.certificate is not None
    gain = export.certificate.gain
    assert gain is not None
    assert gain.low <= gain.base - gain.tuned <= gain.high
    card = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert f"| loss on {gain.rows} held-out rows | {gain.tuned:.4f}; {gain.base:.4f} " in card
    assert f"(95% interval {gain.low:.4f} to {gain.high:.4f}) |" in card
    assert "| strength | 0.5 |" in card
    export_run(run, "adapter", tmp_path / "unverified", verify=False)
    assert "| certificate | not verified |" in (tmp_path / "unverified/README.md").read_text(
        "utf-8"
    )


def test_names_in_a_card_stay_names(run: TrainedRun, tmp_path: Path) -> None:
    data = {"a | b\n<b>.jsonl": "0" * 64}
    base = shutil.copytree(run.base, tmp_path / "base")
    (base / SOURCE).write_text('{"file": "<a>.gguf", "conversion": 2}')
    named = replace(run, base=base, receipt=replace(run.receipt, data=data))
    export_run(named, "adapter", tmp_path / "adapter", verify=False)
    card = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert r"| SHA-256 of a \| b &lt;b&gt;.jsonl | 000" in card
    assert "| file of the base's GGUF | &lt;a&gt;.gguf |" in card
    assert "| conversion of the base's GGUF | 2 |" in card


@pytest.mark.parametrize("target", ["merged", "gguf"])
def test_a_run_in_4_bits_is_merged_into_the_unquantized_base(tmp_path: Path, target: str) -> None:
    if target == "gguf":
        pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    base = make_family("llama", tmp_path / "base", hidden_size=64, intermediate_size=128)
    settings = ("model.quantization=nf4", "model.precision=bfloat16")
    trained = train_run(tmp_path, base, *settings)
    export = export_run(trained, target, tmp_path / "export", kind="f32")
    assert export.certificate is not None
    told = {check.name: check.found for check in export.certificate.checks}
    found = re.fullmatch(
        r"loss ([\d.]+) on (\d+) rows, ([\d.]+) with the base in nf4, as in training "
        r"\(95% interval of the change ([+-][\d.]+) to ([+-][\d.]+)\)",
        told["unquantized base"],
    )
    assert found is not None
    merged, rows, quantized, low, high = map(float, found.groups())
    assert export.certificate.gain is not None
    assert rows == export.certificate.gain.rows
    assert quantized == pytest.approx(export.certificate.gain.tuned, abs=1e-4)
    assert low <= merged - quantized <= high
    if target == "merged":  # the change is the adapter's alone, added to the exact weights
        exact, written = (load_file(f / "model.safetensors") for f in (base, tmp_path / "export"))
        lora = LoraWeights.of(trained.adapter, base)
        for module in lora.modules:
            name = f"{module}.weight"
            expected = lora.merged(module, exact[name].numpy())
            assert np.array_equal(written[name].numpy(), expected)
