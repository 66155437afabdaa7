"""Hostile models, adapters, templates and rows: none of their code runs, and the error is ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter

from offbook.errors import ModelError
from offbook.files.untrusted import read_base_tensors, read_json, read_tensors
from offbook.models.adapter import attach_adapter
from offbook.models.base import require_weights, resolve_base
from offbook.models.load import load_base
from offbook.settings.sections import LoraSettings
from support import hostile
from support.hostile import ADAPTERS, BASES, GGUFS, MARKER, STRANGE, safetensors, tensor
from support.tiny import save_adapter

Said = dict[str, dict[str, Any]]
EXPECTED = {
    **{f"base {name}": error for name, (_, error) in BASES.items()},
    **{f"adapter {name}": error for name, (_, error) in ADAPTERS.items()},
    **{f"gguf {name}": error for name, (_, error) in GGUFS.items()},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def said(tiny_base: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """The outcome for each file of the corpus, all opened in one process of their own."""
    adapter = tmp_path_factory.mktemp("adapter")
    base = load_base(tiny_base, torch.float32, torch.device("cpu"))
    lora = LoraSettings(target_modules=("q_proj",))
    save_adapter(attach_adapter(base, lora, 1, "tiny"), adapter)
    home = tmp_path_factory.mktemp("home")
    result = subprocess.run(
        [sys.executable, hostile.__file__, corpus, tiny_base, adapter],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(home), "HF_HOME": str(home)},
    )
    assert result.returncode == 0, result.stderr
    outcome: Said = json.loads(result.stdout)
    return outcome


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_refused_with_the_reason_or_is_harmless(name: str, said: Said) -> None:
    outcome, error = said[name], EXPECTED[name]
    assert "crash" not in outcome
    if error is None:
        assert "loaded" in outcome
    else:
        assert error in outcome.get("error", "loaded")


def test_nothing_is_started_connected_imported_or_opened(said: Said, corpus: Path) -> None:
    assert said.keys() >= EXPECTED.keys()
    assert {name: outcome["seen"] for name, outcome in said.items() if outcome["seen"]} == {}
    assert list(corpus.rglob(MARKER)) == []


def test_texts_in_rows_are_read_as_texts(said: Said) -> None:
    for name in ("rows.jsonl", "rows.json", "rows.csv"):
        assert said[name]["loaded"] == [[text, text] for text in STRANGE]
        assert {Path(path).name for path in said[name]["opened"]} <= {name}
    assert 'has a part of type "image_url"' in said["parts.jsonl"]["error"]


# Valid files pass.


def test_tensors_are_where_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        safetensors({"a": tensor([2], 0, 8), "b": tensor([1], 8, 12)}, b"abcdefghijkl")
    )
    tensors = read_tensors(path, ModelError)
    assert tensors["b"].shape == (1,)
    assert path.read_bytes()[tensors["b"].begin : tensors["b"].end] == b"ijkl"


def test_a_header_whose_length_begins_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps({"a": tensor([1], 0, 4)}).encode()
    path.write_bytes(safetensors(header.ljust(0x80), bytes(4)))
    assert path.read_bytes()[0] == 0x80
    assert list(read_tensors(path, ModelError)) == ["a"]


def test_links_of_the_hubs_cache_are_followed_and_others_not(tmp_path: Path) -> None:
    repo = tmp_path / "models--someone--model"
    blobs, folder = repo / "blobs", repo / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    (blobs / "abc").write_bytes(safetensors({"a": tensor([1], 0, 4)}, bytes(4)))
    (folder / "model.safetensors").symlink_to("../../blobs/abc")
    assert list(read_base_tensors(folder)) == ["a"]
    other = tmp_path / "models--someone--other" / "blobs"
    other.mkdir(parents=True)
    (blobs / "abc").rename(other / "abc")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(other / "abc")
    with pytest.raises(ModelError, match="outside its folder; replace the link with the file"):
        read_base_tensors(folder)


def test_the_weights_are_those_that_transformers_loads(tmp_path: Path) -> None:
    """As in Mistral-7B-Instruct-v0.3, which has all weights once more, under other names."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "two.safetensors", "a": "one.safetensors"}}))
    for name, held in (("one", "a"), ("two", "b"), ("consolidated", "layers.0")):
        content = safetensors({held: tensor([1], 0, 4)}, bytes(4))
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    assert list(read_base_tensors(tmp_path)) == ["a", "b"]
    (tmp_path / "two.safetensors").rename(tmp_path / "model.safetensors")
    assert list(read_base_tensors(tmp_path)) == ["b"]
    index.unlink()
    assert list(read_base_tensors(tmp_path)) == ["b"]
    (tmp_path / "model.safetensors").unlink()
    assert list(read_base_tensors(tmp_path)) == []
    with pytest.raises(ModelError, match="no safetensors weights"):
        require_weights(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match="not a regular file"):
        read_json(tmp_path / "config.json", ModelError)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs permissions")
def test_a_file_that_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own belongs to one user alone
        folder = Path(name)
        folder.chmod(0o755)
        for file in ("config.json", "model.safetensors", "model.gguf"):
            (folder / file).write_bytes(b"{}")
            (folder / file).chmod(0)
        with as_a_plain_user():
            for file, read in (
                ("config.json", lambda: read_json(folder / "config.json", ModelError)),
                ("model.safetensors", lambda: read_base_tensors(folder)),
                ("model.gguf", lambda: resolve_base(str(folder / "model.gguf"))),
            ):
                with pytest.raises(ModelError) as caught:
                    read()
                said = f"{folder / file}: cannot be read (Permission denied)"
                assert str(caught.value) == said


@contextmanager
def as_a_plain_user() -> Iterator[None]:
    """The administrator may read all files."""
    is_root = os.geteuid() == 0
    os.seteuid(65534 if is_root else os.geteuid())
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_gguf_of_a_model_larger_than_its_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "wide.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(2**20)
    writer.add_feed_forward_length(2**20)
    writer.add_head_count(16)
    writer.add_head_count_kv(16)
    writer.add_vocab_size(2**20)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="weights, more than it can hold"):
        resolve_base(str(path))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ModelError, match="1,099,511,627,776 bytes are too many"):
        read_json(tmp_path / "config.json", ModelError)
