"""Where a run cannot be exported as told, it can be exported as the error advises."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offbook.errors import ConfigError, ExportError, ModelError, OffbookError
from offbook.export.export import export_run
from offbook.export.gguf import write_model
from offbook.export.weights import BaseWeights, LoraWeights
from offbook.inference.chat import Chat
from offbook.runs.trained import open_run
from offbook.serve.chat import open_chat
from offbook.training.train import train
from support.exports import train_run
from support.families import make_family
from support.tiny import make_base, make_tokenizer

pytest.importorskip("xllamacpp")

TURNS = "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
# llama.cpp does not read this one, as it adds numbers.
NUMBERED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[Round ' ~ (loop.index0 // 2 + 1) ~ '] ' + message['content'] + '\n' }}{% else %}"
) + TURNS
FIRST = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[User] ' + message['content'] + '\n' }}"
    "{% if loop.first %}{{ 'Begin.\n' }}{% endif %}{% else %}"
) + TURNS
REPLACING = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[User] ' + message['content'] | replace('e', '3') + '\n' }}{% else %}"
) + TURNS
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 128,
}
IN_PYTORCH = (
    "chat with PyTorch, by `offbook chat` without --engine; or export with --to merged or "
    "--to adapter"
)
WITH_TEMPLATE = "use --to gguf, with a program that renders the chat template in the file"


def templated(template: str) -> Callable[[Path], Path]:
    return lambda folder: make_base(folder, tokenizer=make_tokenizer(folder, template))


def family(name: str, **changes: object) -> Callable[[Path], Path]:
    return lambda folder: make_family(name, folder, **changes)


def split_by_characters(folder: Path) -> Path:
    """A base whose tokenizer splits text in a way that llama.cpp does not know."""
    base = make_family("llama", folder)
    values = json.loads((base / "tokenizer.json").read_text())
    isolated = {"type": "Split", "pattern": {"String": "q"}, "behavior": "Isolated"}
    values["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{**isolated, "invert": False}, values["pre_tokenizer"]],
    }
    (base / "tokenizer.json").write_text(json.dumps(values))
    return base


# How the base is made, settings of the run, the target, what is said, and the targets that work.
CASES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], str, str, tuple[str, ...]]] = {
    "another first turn": (templated(FIRST), (), "ollama", WITH_TEMPLATE, ("gguf",)),
    "another text": (templated(REPLACING), (), "ollama", WITH_TEMPLATE, ("gguf",)),
    "numbers": (templated(NUMBERED), (), "gguf", "use --to merged", ("merged",)),
    "quotes": (
        family("llama"),
        ('data.system=\'Say """ often.\'',),
        "ollama",
        "use --to gguf, and give the system text in each conversation",
        ("gguf",),
    ),
    "DoRA": (family("llama"), ("lora.use_dora=true",), "gguf-lora", "use --to gguf", ("gguf",)),
    "tokenizer": (split_by_characters, (), "gguf", IN_PYTORCH, ("merged", "adapter")),
    "scaling": (
        family("llama", rope_parameters=YARN),
        (),
        "gguf",
        IN_PYTORCH,
        ("merged", "adapter"),
    ),
    "activation": (
        family("llama", hidden_act="gelu"),
        (),
        "gguf",
        IN_PYTORCH,
        ("merged", "adapter"),
    ),
    "family": (
        family("gpt_neox"),
        ("lora.target_modules=all-linear",),
        "gguf",
        IN_PYTORCH,
        ("merged", "adapter"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_exported_can_be_as_advised(tmp_path: Path, case: str) -> None:
    make, settings, target, said, better = CASES[case]
    run = train_run(tmp_path, make(tmp_path / "base"), *settings)
    with pytest.raises(OffbookError) as caught:
        export_run(run, target, tmp_path / "refused")
    assert caught.value.fix == said
    assert not (tmp_path / "refused").exists()
    if said == IN_PYTORCH:
        with pytest.raises(OffbookError) as caught, open_chat(run.path):
            pass
        assert caught.value.fix == said
        assert Chat.open(run.path).ask("who are you")
    for other in better:
        assert export_run(run, other, tmp_path / other, kind="f32").certificate is not None


def test_weights_that_have_no_place_are_exported_as_advised(tmp_path: Path) -> None:
    """No family that is exported has such weights; these are added, or left out, by hand."""
    run = train_run(tmp_path, make_family("llama", tmp_path / "base"))
    base, lora = BaseWeights.of(run.base), LoraWeights.of(run.adapter, run.base)
    name = "model.layers.0.self_attn.q_proj.weight"
    more = replace(base, tensors={**base.tensors, "model.other.weight": base.tensors[name]})
    fewer = replace(base, tensors={k: v for k, v in base.tensors.items() if k != name})
    with pytest.raises(ModelError, match="has no place for model"):
        write_model(tmp_path / "model.gguf", more, lora, "f32", run.template)
    with pytest.raises(ModelError, match="is stored together with others") as caught:
        lora.require_layers(fewer)
    assert caught.value.fix == "use --to adapter"
    for target in ("merged", "adapter"):
        assert export_run(run, target, tmp_path / target).certificate is not None


def test_quantized_weights_are_replaced_by_the_original_ones(tmp_path: Path) -> None:
    base = make_family("llama", tmp_path / "base")
    path = base / "model.safetensors"
    original = path.read_bytes()
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, path, {"format": "pt"})
    with pytest.raises(ModelError) as caught:
        BaseWeights.of(base)
    assert caught.value.fix == "use the original model, whose weights are not quantized"
    path.write_bytes(original)
    assert name in BaseWeights.of(base).tensors


def test_an_export_of_another_number_format_passes_as_advised(tmp_path: Path) -> None:
    """Eight bits round away what so short a training adds."""
    base = make_family("llama", tmp_path / "base")
    run = train_run(tmp_path, base, "train.max_steps=2", "train.learning_rate=1e-6")
    with pytest.raises(ExportError) as caught:
        export_run(run, "gguf", tmp_path / "gguf", kind="q8_0")
    assert caught.value.fix == "nothing was kept; try another --to or --type"
    assert not (tmp_path / "gguf").exists()
    assert export_run(run, "gguf", tmp_path / "gguf", kind="f32").certificate is not None
    assert export_run(run, "adapter", tmp_path / "adapter").certificate is not None


def test_a_dora_adapter_has_its_own_strength_or_is_trained_as_plain_lora(tmp_path: Path) -> None:
    base = make_family("llama", tmp_path / "base")
    run = train_run(tmp_path, base, "lora.use_dora=true")
    with pytest.raises(ConfigError) as caught:
        export_run(run, "merged", tmp_path / "refused", strength=0.5)
    assert caught.value.fix == "leave out the strength, or train without lora.use_dora"
    export_run(run, "merged", tmp_path / "whole")
    train(run.config.override("lora.use_dora=false", f"output_dir={run.path}"), overwrite=True)
    export_run(open_run(run.path), "merged", tmp_path / "half", strength=0.5)
