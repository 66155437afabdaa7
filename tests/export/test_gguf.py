"""Exports for llama.cpp compute what the run does, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from offbook.errors import CheckpointError, ConfigError, DataError, ExportError, ModelError
from offbook.export.certificate import Certificate
from offbook.export.export import ADAPTER, MODEL, TARGETS, Original, compare, export_run
from offbook.export.gguf import write_lora, write_model
from offbook.export.weights import BaseWeights, LoraWeights
from offbook.runs.trained import TrainedRun, open_run
from offbook.tokens.tokenizer import load_tokenizer
from support.exports import KINDS, train_run
from support.families import make_family
from support.shared import DEEPSEEK
from support.tiny import make_base, make_sentencepiece, make_tokenizer

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("export")
    # llama.cpp knows that "</s>" ends a reply, whatever a GGUF says; it does not know this name.
    tokenizer = make_tokenizer(folder / "base", eos="<over>")
    base = make_base(folder / "base", tokenizer=tokenizer)
    return train_run(folder, base, "train.max_steps=60")


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_and_an_adapter_compute_what_the_run_does(tmp_path: Path, kind: str) -> None:
    family, unusual = KINDS[kind]
    trained = train_run(tmp_path, make_family(family, tmp_path / "base", **unusual))
    for target in ("gguf", "gguf-lora"):
        export = export_run(trained, target, tmp_path / target, kind="f32")
        assert export.certificate is not None
        assert all(check.passed for check in export.certificate.checks), export.certificate


@pytest.mark.parametrize("prefix_every_piece", [True, False], ids=["llama 2", "mistral v0.3"])
def test_sentencepiece_tokenizers(tmp_path: Path, prefix_every_piece: bool) -> None:
    tokenizer = make_sentencepiece(tmp_path / "base", prefix_every_piece)
    trained = train_run(tmp_path, make_base(tmp_path / "base", tokenizer=tokenizer))
    export_run(trained, "gguf", tmp_path / "gguf", kind="f32")


@pytest.mark.skipif(not DEEPSEEK.is_dir(), reason=f"{DEEPSEEK} is absent")
def test_the_deepseek_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(DEEPSEEK)
    tokenizer.save_pretrained(tmp_path / "base")
    trained = train_run(tmp_path, make_base(tmp_path / "base", tokenizer=tokenizer))
    export = export_run(trained, "gguf", tmp_path / "gguf", kind="f32")
    assert export.certificate is not None
    told = {check.name: check.found for check in export.certificate.checks}
    assert "several spaces before U+3000" in told["other texts"]


@pytest.mark.parametrize("setting", ["lora.use_rslora=true", "lora.use_dora=true"])
def test_other_scales(tmp_path: Path, setting: str) -> None:
    trained = train_run(tmp_path, make_family("llama", tmp_path / "base"), setting)
    export_run(trained, "gguf", tmp_path / "merged", kind="f32")
    if "dora" in setting:
        with pytest.raises(CheckpointError, match="no DoRA adapters; use --to gguf"):
            export_run(trained, "gguf-lora", tmp_path / "lora")
    else:
        export_run(trained, "gguf-lora", tmp_path / "lora")


def test_rotary_frequencies_that_are_stored_are_left_out(tmp_path: Path) -> None:
    """Llama 2 has them in every layer; they follow from config.json."""
    base = make_family("llama", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    for part in ("model", "model.layers.0.self_attn", "model.layers.1.self_attn"):
        tensors[f"{part}.rotary_emb.inv_freq"] = 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    trained = train_run(tmp_path, base)
    for target in ("gguf", "gguf-lora", "merged"):
        export = export_run(trained, target, tmp_path / target, kind="f32")
        assert export.certificate is not None
        assert all(check.passed for check in export.certificate.checks), export.certificate


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_rounded_models_keep_what_was_learned(run: TrainedRun, tmp_path: Path, kind: str) -> None:
    export = export_run(run, "gguf", tmp_path / kind, kind=kind)
    assert export.certificate is not None
    learned = next(c for c in export.certificate.checks if c.name == "learned")
    assert learned.passed


def test_a_strength_is_in_the_weights(run: TrainedRun, tmp_path: Path) -> None:
    export_run(run, "gguf", tmp_path / "half", kind="f32", strength=0.5)
    assert not compare(tmp_path / "half", Original.of(run, 0.5), "gguf", "f32").failed
    assert compare(tmp_path / "half", Original.of(run), "gguf", "f32").failed


Damage = Callable[[gguf.GGUFReader], None]


def set_number(key: str, change: Callable[[Any], Any]) -> Damage:
    def damage(reader: gguf.GGUFReader) -> None:
        field = reader.fields[key]
        field.parts[field.data[0]][0] = change(field.parts[field.data[0]][0])

    return damage


def set_text(key: str, old: str, new: str) -> Damage:
    assert len(old) == len(new)

    def damage(reader: gguf.GGUFReader) -> None:
        field = reader.fields[key]
        part = field.parts[field.data[0]]
        text = bytes(part).decode()
        assert old in text
        part[:] = np.frombuffer(text.replace(old, new, 1).encode(), np.uint8)

    return damage


def tensor(reader: gguf.GGUFReader, name: str) -> Any:
    return next(t.data for t in reader.tensors if t.name == name)


def damage_tensor(reader: gguf.GGUFReader) -> None:
    tensor(reader, "blk.1.ffn_up.weight")[3:5] *= -1


def put_rows_back(reader: gguf.GGUFReader) -> None:
    for name in ("blk.0.attn_q.weight", "blk.1.attn_q.weight"):
        rows = tensor(reader, name)
        rows[:] = rows.reshape(4, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


# What is wrong in a GGUF, and which check finds it.
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a tensor is damaged": (damage_tensor, "log-probabilities"),
    "q is not moved": (put_rows_back, "log-probabilities"),
    "the rope base is wrong": (
        set_number("llama.rope.freq_base", lambda base: base * 3),
        "log-probabilities",
    ),
    "a space of the template is lost": (
        set_text("tokenizer.chat_template", "'User: '", "'User:_'"),
        "prompt ids",
    ),
    "BOS is doubled": (
        set_text("tokenizer.chat_template", "{{ bos_token }}", "{{bos_token*2}}"),
        "prompt ids",
    ),
    "the stop token is another": (set_number("tokenizer.ggml.eot_token_id", lambda _: 7), "stop"),
    "text is split in another way": (
        set_text("tokenizer.ggml.pre", "gpt-2", "qwen2"),
        "prompt ids",
    ),
}


def failed(certificate: Certificate) -> list[str]:
    return [check.name for check in certificate.failed]


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_refused_by_name(run: TrainedRun, tmp_path: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    base, lora = BaseWeights.of(run.base), LoraWeights.of(run.adapter, run.base)
    write_model(tmp_path / MODEL, base, lora, "f32", run.template)
    reader = gguf.GGUFReader(tmp_path / MODEL, "r+")
    damage(reader)
    if name == "the stop token is another":
        set_number("tokenizer.ggml.eos_token_id", lambda _: 7)(reader)
    del reader
    certificate = compare(tmp_path, Original.of(run), "gguf", "f32")
    assert expected in failed(certificate)
    with pytest.raises(ExportError, match=expected):
        certificate.require_passed("here")


def test_an_adapter_of_twice_the_scale_is_refused(run: TrainedRun, tmp_path: Path) -> None:
    base, lora = BaseWeights.of(run.base), LoraWeights.of(run.adapter, run.base)
    write_lora(tmp_path / ADAPTER, base, lora)
    reader = gguf.GGUFReader(tmp_path / ADAPTER, "r+")
    set_number("adapter.lora.alpha", lambda alpha: alpha * 2)(reader)
    del reader
    assert "log-probabilities" in failed(compare(tmp_path, Original.of(run), "gguf-lora", "f32"))


def test_an_adapter_of_no_strength_is_the_base(run: TrainedRun, tmp_path: Path) -> None:
    base = BaseWeights.of(run.base)
    write_lora(tmp_path / ADAPTER, base, LoraWeights.of(run.adapter, run.base, 0.0))
    found = failed(compare(tmp_path, Original.of(run, 0.0), "gguf-lora", "f32"))
    assert "log-probabilities" not in found


def test_a_model_without_its_adapter_is_refused(run: TrainedRun, tmp_path: Path) -> None:
    write_model(tmp_path / MODEL, BaseWeights.of(run.base), None, "q8_0", run.template)
    assert "learned" in failed(compare(tmp_path, Original.of(run), "gguf", "q8_0"))


def test_a_failed_export_leaves_nothing(run: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="taken: exists already; remove it, or"):
        export_run(run, "gguf", tmp_path / "taken")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


@pytest.mark.parametrize("target", TARGETS)
def test_without_its_rows_a_run_is_exported_unverified(tmp_path: Path, target: str) -> None:
    """As on a machine to which the run was copied."""
    path = train_run(tmp_path, make_family("llama", tmp_path / "base")).path
    (tmp_path / "rows.jsonl").unlink()
    trained = open_run(path)
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="exists already"):  # before rows are looked for
        export_run(trained, target, tmp_path / "taken")
    with pytest.raises(DataError, match=r"rows.jsonl"):
        export_run(trained, target, tmp_path / "verified")
    assert not (tmp_path / "verified").exists()
    assert export_run(trained, target, tmp_path / "export", verify=False).certificate is None
    assert list((tmp_path / "export").iterdir())


@pytest.mark.parametrize("family", ["gpt_neox", "mixtral"])
def test_other_architectures_are_refused(tmp_path: Path, family: str) -> None:
    base = make_family(family, tmp_path / "base")
    trained = train_run(tmp_path, base, "lora.target_modules=all-linear")
    with pytest.raises(ModelError, match=f"a {family} model cannot be written as GGUF here"):
        export_run(trained, "gguf", tmp_path / "export")
    assert not (tmp_path / "export").exists()
