"""Bases and adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from offbook.config import LoraSettings
from offbook.errors import CheckpointError, ConfigError, ModelError
from offbook.models.adapter import attach_adapter, load_adapter, restore_adapter
from offbook.models.base import require_weights, resolve_base
from offbook.models.load import base_of, choose_precision, load_base
from support.tiny import make_base, make_tokenizer, save_adapter

CPU = torch.device("cpu")
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def attach(folder: Path, seed: int = 1, **lora: object) -> torch.nn.Module:
    base = load_base(folder, torch.float32, CPU)
    return attach_adapter(base, LoraSettings.model_validate(lora), seed, "tiny")


def adapted(model: torch.nn.Module) -> set[str]:
    """The last part of the names of the layers with an adapter."""
    return {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("lora_A")}


# Bases.


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
def test_a_base_that_is_nowhere_is_named(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_base(name)
    assert str(caught.value) == (
        f"{name}: no such model; give a folder, a .gguf file, a hub id (owner/name) or smollm2-135m"
    )


def test_a_broken_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match="not a GGUF that can be read"):
        resolve_base(str(file))
    assert list((tmp_path / "cache" / "offbook").iterdir()) == []


def test_a_set_precision_is_kept_and_auto_is_one_of_two() -> None:
    assert choose_precision("float32", CPU) is torch.float32
    assert choose_precision("bfloat16", CPU) is torch.bfloat16
    assert choose_precision("auto", CPU) in (torch.float32, torch.bfloat16)


# Adapters.


def test_a_fresh_adapter_is_float32_and_changes_nothing(tiny_base: Path) -> None:
    model = attach(tiny_base)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert all(bool((p == 0).all()) for name, p in trainable.items() if "lora_B" in name)
    assert adapted(model) == set(SEVEN)
    ids = torch.tensor([[1, 2, 3]])
    base = load_base(tiny_base, torch.float32, CPU)
    torch.testing.assert_close(model(ids).logits, base(ids).logits, rtol=0, atol=0)


def test_adapters_of_a_bfloat16_base_are_float32(tiny_base: Path) -> None:
    base = load_base(tiny_base, torch.bfloat16, CPU)
    model = attach_adapter(base, LoraSettings(), 1, "tiny")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_seed_decides_the_adapter(tiny_base: Path) -> None:
    first, second, other = (
        torch.cat([p.flatten() for p in attach(tiny_base, seed).parameters() if p.requires_grad])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["q_proj", "down_proj"], {"q_proj", "down_proj"}),
        ("all-linear", set(SEVEN)),
        (r".*\.layers\.1\..*\.(q|v)_proj", {"q_proj", "v_proj"}),
        (["layers.0.self_attn.k_proj"], {"k_proj"}),
    ],
)
def test_target_modules(tiny_base: Path, targets: object, names: set[str]) -> None:
    assert adapted(attach(tiny_base, target_modules=targets)) == names


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["q_proj", "query"],
            "lora.target_modules: no linear layer is named query; the layers are q_proj, k_proj, "
            "v_proj, o_proj, gate_proj, up_proj, down_proj; or use all-linear",
        ),
        (
            "q_proj",
            'lora.target_modules: the regular expression "q_proj" matches no linear layer; the '
            "layers are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; a full name "
            "is model.layers.0.self_attn.q_proj",
        ),
        ("(", "lora.target_modules: not a regular expression"),
        ([], "lora.target_modules: the list is empty"),
        (["lm_head"], "lora.target_modules: no linear layer is named lm_head"),
    ],
)
def test_a_module_that_does_not_exist_is_named(
    tiny_base: Path, targets: object, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        attach(tiny_base, target_modules=targets)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("variant", [{"use_rslora": True}, {"use_dora": True}])
def test_variants_are_pefts(tiny_base: Path, variant: dict[str, bool]) -> None:
    model = attach(tiny_base, **variant)
    (name,) = variant
    assert getattr(model.peft_config["default"], name) is True


@pytest.mark.parametrize(
    "lora", [{}, {"target_modules": "all-linear"}, {"target_modules": ".*_proj", "use_dora": True}]
)
def test_an_adapter_is_written_as_peft_writes_it(
    tiny_base: Path, tmp_path: Path, lora: dict[str, object]
) -> None:
    def config(folder: Path) -> dict[str, object]:
        values = json.loads((folder / "adapter_config.json").read_text())
        # PEFT writes sets in any order.
        return {k: sorted(v) if isinstance(v, list) else v for k, v in values.items()}

    model = attach(tiny_base, **lora)
    ours, pefts = tmp_path / "ours", tmp_path / "pefts"
    save_adapter(model, ours)
    model.save_pretrained(str(pefts), save_embedding_layers=False)
    weights = "adapter_model.safetensors"
    assert (ours / weights).read_bytes() == (pefts / weights).read_bytes()
    assert config(ours) == config(pefts)


def test_a_saved_adapter_is_a_plain_peft_folder(tiny_base: Path, tmp_path: Path) -> None:
    model = attach(tiny_base)
    save_adapter(model, tmp_path)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert (config["r"], config["lora_alpha"]) == (8, 32)


def test_an_adapter_comes_back_bit_for_bit(tiny_base: Path, tmp_path: Path) -> None:
    model = attach(tiny_base)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_()
    save_adapter(model, tmp_path)
    fresh = attach(tiny_base, seed=9)
    restore_adapter(fresh, tmp_path)
    loaded = load_adapter(load_base(tiny_base, torch.float32, CPU), tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    model.eval()
    fresh.eval()
    assert torch.equal(model(ids).logits, fresh(ids).logits)
    assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_an_adapter_of_another_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    save_adapter(attach(tiny_base), tmp_path / "adapter")
    other = make_base(tmp_path / "other", 2, make_tokenizer(tmp_path / "other"))
    with pytest.raises(CheckpointError, match="the adapter does not fit this base"):
        load_adapter(load_base(other, torch.float32, CPU), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="no adapter here; train one first"):
        load_adapter(load_base(tiny_base, torch.float32, CPU), tmp_path)


def test_base_of_looks_under_an_adapter(tiny_base: Path) -> None:
    base = load_base(tiny_base, torch.float32, CPU)
    assert base_of(attach_adapter(base, LoraSettings(), 1, "tiny")) is base
