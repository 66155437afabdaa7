"""Bases that cannot be used, as `check`, `plan` and `train` say it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from support.tiny import ROWS

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama to spoil."""
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def commands(base: Path) -> list[list[str | Path]]:
    """The commands that read a base, cheapest first."""
    settings = [
        f"model.base={base}",
        "model.precision=float32",
        "data.train=rows.jsonl",
        "train.max_steps=2",
        "train.batch_size=4",
        "output_dir=run",
    ]
    return [["check", "rows.jsonl", "--model", base], ["plan", *settings], ["train", *settings]]


def outcomes(cli: Cli, base: Path) -> list[tuple[int, str]]:
    """The exit code and the last line of stderr of each command."""
    shutil.rmtree("run", ignore_errors=True)
    results = [cli(*command) for command in commands(base)]
    return [(code, (err.splitlines() or [""])[-1]) for code, _, err in results]


def test_tensors_without_a_place(cli: Cli, base: Path) -> None:
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.self_attn.k_proj.bias"
    save_file(tensors | {name: tensors["model.norm.weight"].clone()}, weights, {"format": "pt"})
    for code, err in outcomes(cli, base):
        assert code == 2
        assert "1 of its tensors have no place in the llama model that config.json" in err
        assert name in err


def test_tokens_without_an_embedding(cli: Cli, base: Path) -> None:
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    new = max(tokenizer["model"]["vocab"].values()) + 1
    added = {**tokenizer["added_tokens"][-1], "id": new, "content": "<|role|>"}
    tokenizer["added_tokens"].append(added)
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    for code, err in outcomes(cli, base):
        assert (code, err.count("error")) == (0, 0), "no row has the token"

    template = base / "chat_template.jinja"
    template.write_text(template.read_text().replace("'User: '", "'<|role|>User: '"))
    for code, err in outcomes(cli, base):
        assert code == 2
        assert f"'<|role|>' is token {new} of the tokenizer" in err
        assert f"the embedding has {new} rows (vocab_size); every row, such as" in err
        assert f"resize_token_embeddings({new + 1})" in err

    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(new + 1)
    model.save_pretrained(base)
    assert [code for code, _ in outcomes(cli, base)] == [0, 0, 0]
