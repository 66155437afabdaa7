"""A GGUF file becomes a base that computes what the file says, here and in other programs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from offbook.errors import ModelError
from offbook.files.storage import sha256
from offbook.models.base import published_name, resolve_base
from offbook.models.gguf import CONVERSION, check_gguf, source_of
from offbook.models.gguf_rope import FACTORS, scaling_from_gguf
from offbook.models.load import load_base
from offbook.runs.receipt import Receipt, fingerprint, hash_base
from support.gguf_files import HEADS, WIDTH, Vocabulary, write_gguf

BASE, DIMENSIONS = 500000.0, WIDTH // HEADS
LINEAR = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "offbook"


def test_it_is_converted_once_with_what_other_programs_read(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", Vocabulary.of_bytes(more=LINEAR))
    heard: list[str] = []
    folder = resolve_base(str(path), announce=heard.append)
    assert len(heard) == 1
    assert resolve_base(str(path), announce=heard.append) == folder
    assert len(heard) == 1
    assert list(cache.iterdir()) == [folder]
    expected = {"file": "tiny.gguf", "sha256": sha256(path), "conversion": CONVERSION}
    assert source_of(folder) == expected
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == BASE
    assert config["rope_scaling"]["factor"] == config["rope_parameters"]["factor"] == 4.0
    model = load_base(folder, torch.float32, torch.device("cpu"))
    plain = BASE ** -(torch.arange(0, DIMENSIONS, 2) / DIMENSIONS)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, plain / 4)
    assert published_name(str(path), folder) == (str(folder), None)


@pytest.mark.parametrize("samples", [2**14, 2**8])
def test_files_that_differ_in_one_matrix_are_not_taken_for_each_other(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    """As two exports of one base, in which adapters for some layers were merged."""
    monkeypatch.setattr("offbook.models.gguf.SAMPLES", samples)  # the fewer read a part of it
    path = write_gguf(tmp_path / "tiny.gguf", Vocabulary.of_bytes(), inner=2**15)
    reader = GGUFReader(path, "r+")
    matrix = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    assert 2**20 < matrix.data_offset < path.stat().st_size - matrix.n_bytes - 2**20
    assert matrix.n_bytes > path.stat().st_size / samples
    first = resolve_base(str(path))
    matrix.data[:] *= 2
    del matrix, reader
    second = resolve_base(str(path))
    before, after = (load_file(f / "model.safetensors") for f in (first, second))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.layers.0.mlp.up_proj.weight"}
    assert resolve_base(str(path), announce=pytest.fail) == second


def test_what_an_older_version_converted_is_kept_and_converted_once_more(
    tmp_path: Path, cache: Path
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", Vocabulary.of_bytes(rule="smollm"))
    folder = resolve_base(str(path))
    weights = fingerprint(folder)
    first = Path(shutil.move(folder, folder.with_name(folder.name.removesuffix(f"-{CONVERSION}"))))
    contents = json.loads((first / "tokenizer.json").read_text())
    del contents["pre_tokenizer"]["pretokenizers"][0]  # as it was lost
    (first / "tokenizer.json").write_text(json.dumps(contents))
    (first / "converted_from.json").unlink()
    before = {file.name: sha256(file) for file in first.iterdir()}
    old = Receipt(base=hash_base(first))

    folder = resolve_base(str(path))
    assert {file.name: sha256(file) for file in first.iterdir()} == before
    assert fingerprint(folder) == weights
    text = (folder / "tokenizer.json").read_text()
    assert Tokenizer.from_str(text).encode("٣٤").tokens == ["Ù", "£", "Ù", "¤"]
    assert json.loads(text)["pre_tokenizer"]["pretokenizers"][0]["type"] == "Digits"
    assert old.differing_parts(hash_base(folder)) == []
    assert "rare text, such as digits that are not ASCII" in str(
        old.other_conversion(hash_base(folder))
    )
    new = Receipt(base=hash_base(folder))
    assert new.differing_parts(hash_base(folder)) == []
    assert new.other_conversion(hash_base(folder)) is None
    assert set(new.base) == {"gguf", "weights"}


def llama_3(factor: float) -> np.ndarray:
    """What Llama 3's rule divides each frequency by, written as its authors published it."""
    factors = []
    for n in range(0, DIMENSIONS, 2):
        wavelength = 2 * math.pi * BASE ** (n / DIMENSIONS)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_is_read_from_its_tensor(factor: float, tmp_path: Path) -> None:
    scaled = {FACTORS.replace(".", "__"): llama_3(factor)}
    path = write_gguf(tmp_path / "a.gguf", Vocabulary.of_bytes(), **scaled)
    rope = {"rope_theta": BASE, **scaling_from_gguf(path, *check_gguf(path))}
    assert (rope["rope_type"], rope["factor"]) == ("llama3", factor)
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "max_position_embeddings": 131072}
    config = AutoConfig.for_model("llama", **sizes, rope_parameters=rope)
    plain = BASE ** -(np.arange(0, DIMENSIONS, 2) / DIMENSIONS)
    found = LlamaRotaryEmbedding(config).inv_freq.numpy()
    np.testing.assert_allclose(found, plain / llama_3(factor), rtol=1e-6)


def test_no_scaling_and_a_scaling_by_one_are_plain(tmp_path: Path) -> None:
    ones = {FACTORS.replace(".", "__"): np.ones(DIMENSIONS // 2, np.float32)}
    for tensors in ({}, ones):
        path = write_gguf(tmp_path / "a.gguf", Vocabulary.of_bytes(), **tensors)
        assert scaling_from_gguf(path, *check_gguf(path)) == {}


@pytest.mark.parametrize(
    ("more", "tensors", "kind"),
    [
        ({"llama.rope.scaling.type": "yarn"}, {}, "yarn"),
        ({}, {"rope_factors_long__weight": np.ones(4, np.float32)}, "longrope"),
        ({}, {"rope_freqs__weight": np.array([1, 1, 2, 3], np.float32)}, "of an unknown kind"),
    ],
)
def test_another_scaling_is_refused_by_name(
    more: dict[str, str], tensors: dict[str, np.ndarray], kind: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "a.gguf", Vocabulary.of_bytes(more=more), **tensors)
    with pytest.raises(ModelError) as caught:
        scaling_from_gguf(path, *check_gguf(path))
    assert str(caught.value) == (
        f"{path}: the scaling of its rotary positions ({kind}) is not read from a GGUF; use the "
        "model with safetensors weights, by its hub id (owner/name) or as a folder"
    )


def test_a_refused_file_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", Vocabulary.of_bytes(rule="kimi-k2"))
    with pytest.raises(ModelError, match="how this GGUF splits text"):
        resolve_base(str(path))
    assert list(cache.rglob("*")) == []
