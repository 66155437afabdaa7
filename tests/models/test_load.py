"""Bases: found, checked and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from offbook.errors import ConfigError, ModelError
from offbook.models.adapter import attach_adapter
from offbook.models.base import require_weights, resolve_base
from offbook.models.load import base_of, choose_device, choose_precision, load_base
from offbook.settings.config import Config
from offbook.settings.sections import LoraSettings

CPU = torch.device("cpu")


def test_a_base_is_frozen_and_in_evaluation_mode(tiny_base: Path) -> None:
    base = load_base(tiny_base, torch.bfloat16, CPU)
    assert not base.training
    assert not any(p.requires_grad for p in base.parameters())
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_weights_in_their_own_precision_are_mapped_not_read(tiny_base: Path) -> None:
    base = load_base(tiny_base, torch.float32, CPU)
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(tiny_base / "model.safetensors")):
            start, end = line.split()[0].split("-")
            spans.append(range(int(start, 16), int(end, 16)))
    addresses = [p.data_ptr() for p in base.parameters()]
    assert addresses
    assert all(any(address in span for span in spans) for address in addresses)


def test_pickled_weights_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError) as caught:
        load_base(tmp_path, torch.float32, CPU)
    assert str(caught.value) == (
        f"{tmp_path}: only pickled weights (pytorch_model.bin); use a revision with safetensors; "
        "on the hub, model.revision=refs/pr/N names the pull request that converts them"
    )


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no safetensors weights"):
        require_weights(tmp_path)


def test_a_models_own_code_is_not_run(tiny_base: Path, tmp_path: Path) -> None:
    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(ModelError, match="'evil'; it needs code of its own, which is never run"):
        load_base(tmp_path, torch.float32, CPU)


def test_a_head_that_is_not_linear_is_refused(tmp_path: Path) -> None:
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=0.1,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a gemma2 model changes its logits after the output head"):
        load_base(tmp_path, torch.float32, CPU)


def test_another_family_loads(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    assert load_base(tmp_path, torch.float32, CPU).config.model_type == "gpt_neox"


@pytest.mark.parametrize(
    "name",
    ["no/such/path/at/all", "nothing.gguf", "nothing", "~nobody-at-all/x", "n" * 5000, "a\0b"],
)
def test_a_base_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_base(name)
    assert str(caught.value) == (
        f"{name}: no such model; give a folder, a .gguf file, a hub id (owner/name) or smollm2-135m"
    )


def test_an_adapter_of_the_embedded_base_is_told_a_name_that_needs_no_hub(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}'
    )
    with pytest.raises(ModelError, match=r"trained on: model\.base=smollm2-135m$"):
        resolve_base(str(tmp_path))


def test_a_broken_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match="not a GGUF that can be read"):
        resolve_base(str(file))
    assert list((tmp_path / "cache").rglob("*")) == []


def test_a_set_precision_is_kept_and_auto_is_one_of_two() -> None:
    assert choose_precision("float32", CPU) is torch.float32
    assert choose_precision("bfloat16", CPU) is torch.bfloat16
    assert choose_precision("auto", CPU) in (torch.float32, torch.bfloat16)


def test_base_of_looks_under_an_adapter(tiny_base: Path) -> None:
    base = load_base(tiny_base, torch.float32, CPU)
    assert base_of(attach_adapter(base, LoraSettings(), 1, "tiny")) is base


def test_a_device_that_is_not_here_is_named() -> None:
    for setting in ("cuda:99", "xpu:99"):
        with pytest.raises(ConfigError, match=r"leave it at auto, or set cpu") as caught:
            choose_device(setting)
        assert f"model.device={setting}: PyTorch has" in str(caught.value)
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("setting", ["gpu", "cuda:", "mps:0", "lazy", ""])
def test_what_is_no_device_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="give auto, cpu, cuda, cuda:1, xpu or mps"):
        Config().override(f'model.device="{setting}"')
