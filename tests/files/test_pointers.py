"""Git LFS pointers in place of the files that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from offbook.data.formats import SUFFIXES, read_rows
from offbook.errors import DataError, ModelError
from offbook.files.untrusted import read_json, read_tensors
from offbook.models.base import resolve_base
from offbook.tokens.tokenizer import load_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n"


def pointer(path: Path) -> Path:
    path.write_bytes(POINTER)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_data(tmp_path: Path, suffix: str) -> None:
    path = pointer(tmp_path / f"rows{suffix}")
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert str(caught.value) == (
        f"{path}: a Git LFS pointer, not the file that it stands for; run `git lfs pull` in "
        f"{tmp_path}, or download the file again"
    )


def test_weights_and_json(tmp_path: Path) -> None:
    for read in (read_tensors, read_json):
        with pytest.raises(ModelError, match=r"a Git LFS pointer.*git lfs pull"):
            read(pointer(tmp_path / "model.safetensors"), ModelError)


def test_a_tokenizer(tmp_path: Path) -> None:
    pointer(tmp_path / "tokenizer.json")
    with pytest.raises(ModelError, match="a Git LFS pointer"):
        load_tokenizer(tmp_path)


def test_a_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a Git LFS pointer"):
        resolve_base(str(pointer(tmp_path / "model.gguf")))
