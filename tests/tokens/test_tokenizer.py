"""Tokenizers are proved, not trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offbook.errors import ModelError
from offbook.tokens.tokenizer import PROBES, load_tokenizer, prove
from support.shared import DEEPSEEK
from support.tiny import make_tokenizer


def test_the_deepseek_tokenizer_keeps_spaces_and_chinese() -> None:
    if not DEEPSEEK.is_dir():
        pytest.skip(f"needs the DeepSeek-LLM tokenizer in {DEEPSEEK}")
    tokenizer = load_tokenizer(DEEPSEEK)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in PROBES] == list(PROBES)


def test_a_corrupt_tokenizer_is_refused_with_an_example(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    raw = tmp_path / "tokenizer.json"
    contents = json.loads(raw.read_text(encoding="utf-8"))
    contents["model"]["merges"] = contents["model"]["merges"][:5]
    raw.write_text(json.dumps(contents), encoding="utf-8")
    with pytest.raises(ModelError, match=r"differs from its tokenizer\.json: .User: Hello world"):
        prove(tokenizer, raw)


def test_a_tokenizer_that_decodes_differently_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    raw = tmp_path / "tokenizer.json"
    contents = json.loads(raw.read_text(encoding="utf-8"))
    contents["decoder"] = {"type": "Fuse"}
    raw.write_text(json.dumps(contents), encoding="utf-8")
    with pytest.raises(
        ModelError, match=r"differs from its tokenizer\.json in decoding .User: Hello"
    ):
        prove(tokenizer, raw)


def test_the_class_named_in_the_config_is_not_followed(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    contents = json.loads(config.read_text(encoding="utf-8"))
    contents["tokenizer_class"] = "LlamaTokenizerFast"
    contents["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    config.write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code was run')")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a b 你好")) == "a b 你好"


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no tokenizer.json here; "
        "use a model that ships one, or save it once with AutoTokenizer.save_pretrained"
    )


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=f"{tmp_path}: the tokenizer does not load"):
        load_tokenizer(tmp_path)
