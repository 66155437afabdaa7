"""Bases that cannot be used, as `check`, `plan` and `train` say it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from offbook.tokens.tokenizer import load_tokenizer
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
    """The exit code and the error of each command."""
    shutil.rmtree("run", ignore_errors=True)
    results = [cli(*command) for command in commands(base)]
    return [(code, err[err.rfind("error: ") :].strip()) for code, _, err in results]


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
    published = template.read_text()
    template.write_text(published.replace("'User: '", "'<|role|>User: '"))
    for code, err in outcomes(cli, base):
        assert code == 2
        assert f"'<|role|>' is token {new} of the tokenizer" in err
        assert f"the embedding has {new} rows (vocab_size); every row, such as" in err
        assert f"resize_token_embeddings({new + 1})" in err

    own = template.read_text()
    template.write_text(published)
    assert [code for code, _ in outcomes(cli, base)] == [0, 0, 0]
    template.write_text(own)

    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(new + 1)
    model.save_pretrained(base)
    assert [code for code, _ in outcomes(cli, base)] == [0, 0, 0]


def test_an_adapter_names_its_base(cli: Cli, base: Path, tmp_path: Path) -> None:
    settings = commands(base)[-1]
    assert cli(*settings)[0] == 0
    adapter = (tmp_path / "run" / "adapter").rename(tmp_path / "adapter")
    shutil.rmtree("run")
    for command in commands(adapter):
        code, _, err = cli(*command)
        assert code == 2
        assert err.splitlines()[-1] == (
            f"error: {adapter}: an adapter, not a base model; use the base that it was trained on: "
            f"model.base={base}"
        )
    assert cli(*settings, f"model.base={base}")[0] == 0


def test_a_pointer_in_place_of_weights(cli: Cli, base: Path) -> None:
    (base / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n"
    )
    for code, err in outcomes(cli, base):
        assert code == 2
        assert "model.safetensors: a Git LFS pointer, not the file that it stands for; " in err


def spoil(base: Path, name: str, place: tuple[int, ...]) -> None:
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    tensors[name][place] = torch.nan
    save_file(tensors, weights, {"format": "pt"})


def test_a_weight_that_is_not_finite(cli: Cli, base: Path) -> None:
    spoil(base, "model.layers.1.mlp.up_proj.weight", (2, 3))
    code, err = outcomes(cli, base)[-1]
    assert code == 6
    assert "1 of the 1,536 numbers of model.layers.1.mlp.up_proj.weight are NaN" in err


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_an_embedding_that_only_the_rows_use(cli: Cli, base: Path, engine: str) -> None:
    token = load_tokenizer(base).encode("\n\n", add_special_tokens=False)[0]
    assert token > 4, "the tokens that are tried when a base is loaded"
    spoil(base, "model.embed_tokens.weight", (token, 0))
    code, _, err = cli(*commands(base)[-1], "data.validation=0.3", f"train.engine={engine}")
    assert code == 6
    assert "of model.embed_tokens.weight are NaN or infinite" in err.splitlines()[-1]


def test_a_run_that_would_learn_nothing(cli: Cli, base: Path) -> None:
    command = [*commands(base)[-1], "train.max_steps=1", "train.warmup_ratio=0.1"]
    code, _, err = cli(*command)
    assert (code, err.splitlines()[-1]) == (
        2,
        "error: train.warmup_ratio: the learning rate of the only step would be 0, because it is a "
        "warm-up step; set train.warmup_ratio=0, or train for more steps",
    )
    assert cli(*command, "train.warmup_ratio=0")[0] == 0
    all_warmup = ("train.learning_rate=1e-4", "train.warmup_ratio=1", "--overwrite")
    code, _, err = cli(*commands(base)[-1], *all_warmup)
    assert code == 0
    assert "all 2 steps are warm-up: the learning rate reaches 5e-05 in the last one" in err
    code, _, err = cli(*commands(base)[-1], "train.warmup_ratio=0.03", "--overwrite")
    assert (code, "warm-up" in err) == (0, False)


def test_named_templates_without_a_default(cli: Cli, base: Path) -> None:
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    path = base / "tokenizer_config.json"
    values = json.loads(path.read_text())
    named = [{"name": "rag", "template": template}, {"name": "tool_use", "template": template}]
    path.write_text(json.dumps(values | {"chat_template": named}))
    for code, err in outcomes(cli, base):
        assert code == 2
        assert err.endswith(
            'there are several chat templates (rag, tool_use), and none is named "default"; '
            'name the one to train on "default" in tokenizer_config.json'
        )
    named[0]["name"] = "default"
    path.write_text(json.dumps(values | {"chat_template": named}))
    assert [code for code, _ in outcomes(cli, base)] == [0, 0, 0]
