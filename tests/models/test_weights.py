"""Bases whose weights are not those of the model that their config.json describes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offbook.errors import ModelError
from offbook.models.load import load_base
from offbook.models.weights import check_weights
from support.families import FAMILIES, make_family

CPU = torch.device("cpu")
LAYER = "model.layers.0."


def edited(base: Path, folder: Path, more: dict[str, list[int]], **config: object) -> Path:
    """A copy of a base with more tensors, of these shapes, and other values in its config."""
    shutil.copytree(base, folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights) | {name: torch.ones(shape) for name, shape in more.items()}
    save_file(tensors, weights, {"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_every_family_fit_its_own_model(family: str, tmp_path: Path) -> None:
    check_weights(make_family(family, tmp_path))


@pytest.mark.parametrize(
    ("more", "config", "said"),
    [
        ({LAYER + "self_attn.q_proj.bias": [32]}, {}, "without these biases it computes something"),
        ({LAYER + "self_attn.norm.weight": [32]}, {}, "without these weights it computes somethin"),
        ({LAYER + "mlp.up_proj.weight_scale_inv": [1, 1]}, {}, "they belong to quantized weights"),
        ({LAYER + "mlp.up_proj.input_scale": [1]}, {}, "they belong to quantized weights"),
        ({LAYER + "mlp.up_proj.lora_A.weight": [8, 32]}, {}, "an adapter that was not merged"),
        ({}, {"num_hidden_layers": 1}, "num_hidden_layers is 1, and there are 2"),
    ],
)
def test_a_tensor_without_a_place_is_named(
    tiny_base: Path,
    tmp_path: Path,
    more: dict[str, list[int]],
    config: dict[str, object],
    said: str,
) -> None:
    folder = edited(tiny_base, tmp_path / "base", more, **config)
    for check in (check_weights, lambda folder: load_base(folder, torch.float32, CPU)):
        with pytest.raises(ModelError) as caught:
            check(folder)
        assert said in str(caught.value)
        assert next(iter(more), "model.layers.1.") in str(caught.value)


def test_the_published_config_is_the_way_out(tmp_path: Path) -> None:
    own = make_family("qwen2", tmp_path / "own")
    folder = edited(own, tmp_path / "base", {}, model_type="llama", attention_bias=False)
    with pytest.raises(
        ModelError, match=r"6 of its tensors have no place in the llama.*published with"
    ):
        check_weights(folder)
    shutil.copy(own / "config.json", folder)
    check_weights(folder)
    load_base(folder, torch.float32, CPU)


@pytest.mark.parametrize(
    ("more", "config"),
    [
        ({"model.rotary_emb.inv_freq": [4]}, {}),
        ({LAYER + "self_attn.rotary_emb.inv_freq": [4]}, {}),
        ({}, {"tie_word_embeddings": True}),
        ({"model.layers.2.eh_proj.weight": [32, 64]}, {"num_nextn_predict_layers": 1}),
    ],
)
def test_tensors_that_change_no_logits_pass(
    tiny_base: Path, tmp_path: Path, more: dict[str, list[int]], config: dict[str, object]
) -> None:
    folder = edited(tiny_base, tmp_path / "base", more, **config)
    check_weights(folder)
    load_base(folder, torch.float32, CPU)


def test_weights_under_other_names_are_no_incomplete_download(
    tiny_base: Path, tmp_path: Path
) -> None:
    folder = edited(tiny_base, tmp_path / "base", {})
    tensors = load_file(folder / "model.safetensors")
    renamed = {f"other.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"are missing, such as .* no place for .* published"):
        check_weights(folder)


def test_tensors_of_another_shape_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = edited(tiny_base, tmp_path / "base", {}, hidden_size=64)
    with pytest.raises(ModelError, match="does not load"):
        check_weights(folder)
