"""A saved adapter that does not fit is refused by name; a damaged one is refused somehow."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from offbook.config import LoraSettings
from offbook.errors import CheckpointError
from offbook.models.adapter import attach_adapter, load_adapter, restore_adapter
from offbook.models.load import load_base
from support.tiny import make_base, make_tokenizer, save_adapter

CPU = torch.device("cpu")
SELF = "base_model.model.model.layers.0.self_attn."
CASES = 200


def base_in(folder: Path) -> PreTrainedModel:
    return load_base(folder, torch.float32, CPU)


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
def test_adapters_made_here_come_back_whole(
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


def test_keys_of_another_peft_pass_where_they_ask_for_nothing(
    saved: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text()) | {"use_future": False, "future_config": None}
    del config["use_dora"], config["velora_config"]
    path.write_text(json.dumps(config))
    load_adapter(base_in(tiny_base), tmp_path)
    path.write_text(json.dumps(config | {"use_future": True}))
    with pytest.raises(CheckpointError, match="use_future is True, which is not plain LoRA"):
        load_adapter(base_in(tiny_base), tmp_path)


def mutate(contents: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut off, doubled, or replaced by what parsers trip over."""
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
    # In the header, where there is something to understand, as often as in the numbers.
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
