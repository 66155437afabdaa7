"""Adapters: attached, written as PEFT writes them, and loaded or refused."""

from __future__ import annotations

import json
import math
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from offbook.errors import CheckpointError, ConfigError
from offbook.models.adapter import (
    attach_adapter,
    load_adapter,
    restore_adapter,
)
from offbook.models.adapter_config import notes_for_readers, saved_alpha
from offbook.models.load import load_base
from offbook.settings.sections import LoraSettings
from support.tiny import make_base, make_tokenizer, save_adapter

CPU = torch.device("cpu")
SELF = "base_model.model.model.layers.0.self_attn."
CASES = 200
KEYS_OF_PEFT_0_10 = {
    "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layer_replication", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_dropout", "megatron_config", "megatron_core",
    "modules_to_save", "peft_type", "r", "rank_pattern", "alpha_pattern", "revision",
    "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base_in(folder: Path) -> PreTrainedModel:
    return load_base(folder, torch.float32, CPU)


def attach(folder: Path, seed: int = 1, **lora: object) -> torch.nn.Module:
    base = load_base(folder, torch.float32, CPU)
    return attach_adapter(base, LoraSettings.model_validate(lora), seed, "tiny")


def adapted(model: torch.nn.Module) -> set[str]:
    """The last part of the names of the layers with an adapter."""
    return {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("lora_A")}


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
def test_peft_reads_an_adapter_as_one_that_it_wrote(
    tiny_base: Path, tmp_path: Path, lora: dict[str, object]
) -> None:
    def config(folder: Path) -> dict[str, object]:
        values = LoraConfig.from_pretrained(str(folder)).to_dict()
        # PEFT writes sets in any order, and takes the version that reads where none is written.
        return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}

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
    text = (tmp_path / "adapter_config.json").read_text()
    assert json.loads(text) == {
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "peft_type": "LORA",
        "r": 8,
        "target_modules": sorted(SEVEN),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
    assert '"lora_alpha": 32,' in text  # Ollama refuses 32.0


@pytest.mark.parametrize(
    "lora",
    [{}, {"use_dora": True}, {"use_rslora": True, "r": 2}, {"target_modules": "all-linear"}],
)
def test_an_old_release_of_peft_knows_every_key(
    tiny_base: Path, tmp_path: Path, lora: dict[str, object]
) -> None:
    save_adapter(attach(tiny_base, **lora), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config.keys() <= KEYS_OF_PEFT_0_10
    assert {"r", "lora_alpha", "target_modules", "peft_type", "task_type"} <= config.keys()


def test_the_revision_of_the_base_is_written_where_there_is_one(
    tiny_base: Path, tmp_path: Path
) -> None:
    model = attach_adapter(base_in(tiny_base), LoraSettings(), 1, "who/model", "0123abcd")
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("who/model", "0123abcd")


@pytest.mark.parametrize(("r", "alpha", "saved"), [(16, 32, 128), (9, 32, 96), (8, 32, None)])
def test_rslora_is_saved_as_plain_scaling(
    tiny_base: Path, tmp_path: Path, r: int, alpha: float, saved: int | None
) -> None:
    model = attach(tiny_base, r=r, lora_alpha=alpha, use_rslora=True)
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["use_rslora"] is False
    if saved is not None:
        assert (config["lora_alpha"], type(config["lora_alpha"])) == (saved, int)
    loaded = load_adapter(base_in(tiny_base), tmp_path)
    trained, used = (m.base_model.model.model.layers[0].self_attn.q_proj for m in (model, loaded))
    assert used.scaling == trained.scaling


def test_the_scale_of_a_saved_adapter_is_exact() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        r, alpha = chance.randrange(1, 300), chance.choice([1, 16, 8.5, chance.uniform(0.1, 200)])
        scales = alpha / math.sqrt(r), saved_alpha(alpha, r, use_rslora=True) / r
        assert np.float32(scales[0]) == np.float32(scales[1])  # adapters are float32
        assert saved_alpha(alpha, r, use_rslora=False) == alpha


def test_programs_that_do_not_take_an_adapter_are_named() -> None:
    assert notes_for_readers(LoraSettings()) == []
    assert notes_for_readers(LoraSettings(use_rslora=True, r=16)) == []
    (dora,) = notes_for_readers(LoraSettings(use_dora=True))
    assert "llama.cpp, Ollama, vLLM and SGLang do not" in dora
    for lora in (LoraSettings(lora_alpha=8.5), LoraSettings(use_rslora=True)):
        (note,) = notes_for_readers(lora)
        assert "Ollama takes whole numbers only" in note


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


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of rank 2 on two layers."""
    folder = tmp_path_factory.mktemp("saved")
    lora = LoraSettings(r=2, target_modules=("q_proj", "k_proj"))
    save_adapter(attach_adapter(base_in(tiny_base), lora, 1, "tiny"), folder)
    return folder


def test_the_first_tensors_that_do_not_fit_are_named_with_both_shapes(
    saved: Path, tmp_path: Path
) -> None:
    other = make_base(tmp_path, 2, make_tokenizer(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_adapter(base_in(other), saved)
    assert str(caught.value) == (
        f"{saved}: the adapter does not fit this base: "
        f"{SELF}k_proj.lora_B.weight is 32x2, not 16x2; "
        f"{SELF.replace('0', '1')}k_proj.lora_B.weight is 32x2, not 16x2; "
        "use the base it was trained on"
    )


def test_a_checkpoint_of_another_rank_is_refused_by_name(saved: Path, tiny_base: Path) -> None:
    lora = LoraSettings(r=4, target_modules=("q_proj", "v_proj"))
    model = attach_adapter(base_in(tiny_base), lora, 1, "tiny")
    with pytest.raises(CheckpointError) as caught:
        restore_adapter(model, saved)
    assert str(caught.value) == (
        f"{saved}: the adapter does not fit this base: "
        f"{SELF}k_proj.lora_A.weight (2x32) is not part of it; "
        f"{SELF}k_proj.lora_B.weight (32x2) is not part of it; "
        f"{SELF}q_proj.lora_A.weight is 2x32, not 4x32; and 9 more; "
        "use the base it was trained on"
    )


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.layers\.1\..*\.(q|v)_proj"},
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 8.5},
    ],
)
def test_adapters_are_loaded_unchanged(
    tiny_base: Path, tmp_path: Path, lora: dict[str, object]
) -> None:
    model = attach_adapter(base_in(tiny_base), LoraSettings.model_validate(lora), 1, "tiny").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_adapter(model, tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    loaded = load_adapter(base_in(tiny_base), tmp_path)
    assert torch.equal(model(ids).logits, loaded(ids).logits)


def test_unknown_keys_that_change_nothing_are_accepted(
    saved: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text()) | {"use_future": False, "future_config": None}
    path.write_text(json.dumps(config))
    load_adapter(base_in(tiny_base), tmp_path)
    path.write_text(json.dumps(config | {"use_future": True}))
    with pytest.raises(CheckpointError, match="use_future is True, which is not plain LoRA"):
        load_adapter(base_in(tiny_base), tmp_path)


def mutate(contents: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, removed, repeated, or replaced by values that break parsers."""
    at = chance.randrange(len(contents))
    end = min(len(contents), at + chance.choice([1, 2, 8, 64]))
    junk = chance.choice([b"", b"\0" * 8, b"\xff" * 8, b"9" * 30, b'"', b"[[[[", b"null", b"-1"])
    return chance.choice(
        [
            contents[:at] + bytes([contents[at] ^ 1 << chance.randrange(8)]) + contents[at + 1 :],
            contents[:at],
            contents[:end] + contents[at:],
            contents[:at] + junk + contents[end:],
        ]
    )


def test_a_damaged_adapter_loads_or_is_refused(
    saved: Path, tiny_base: Path, tmp_path: Path
) -> None:
    chance = random.Random(0)
    names = ["adapter_config.json", "adapter_model.safetensors"]
    sound = {name: (saved / name).read_bytes() for name in names}
    # Mostly in the header, which is small and would rarely be hit.
    header = 8 + int.from_bytes(sound[names[1]][:8], "little")
    loaded = 0
    for _ in range(CASES):
        name = chance.choice(names)
        head, tail = sound[name], b""
        if name == names[1] and chance.random() < 0.8:
            head, tail = head[:header], head[header:]
        (tmp_path / names[0]).write_bytes(sound[names[0]])
        (tmp_path / names[1]).write_bytes(sound[names[1]])
        (tmp_path / name).write_bytes(mutate(head, chance) + tail)
        try:
            with warnings.catch_warnings(record=True):
                load_adapter(_base(tiny_base), tmp_path)
            loaded += 1
        except CheckpointError:
            pass
    assert 0 < loaded < CASES


def _base(folder: Path, _kept: list[PreTrainedModel] = []) -> PreTrainedModel:  # noqa: B006
    """A base that PEFT has not changed; made again only after it has been changed."""
    if not _kept or hasattr(_kept[0], "peft_config"):
        _kept[:] = [base_in(folder)]
    return _kept[0]
