"""The folder of a finished adapter: what is in it, and that its README can be followed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from offbook.files import storage
from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling
from offbook.models.base import EMBEDDED_HUB_ID, published_name
from offbook.runs.trained import open_run
from offbook.settings.config import Config
from offbook.training.train import train
from support.runs import stop_after
from support.tiny import DEEPSEEK_TEMPLATE

MakeConfig = Callable[..., Config]
FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_a_finished_adapter_has_a_tokenizer_and_a_card_and_a_checkpoint_has_neither(
    tiny_config: MakeConfig, tiny_base: Path
) -> None:
    run = train(tiny_config("train.save_steps=2", "train.max_steps=3")).run
    assert {file.name for file in (run / "adapter").iterdir()} == FILES
    assert storage.verify(run / "adapter") is None
    checkpoint = run / "checkpoints" / "step-3"
    assert not {"README.md", "tokenizer.json"} & {file.name for file in checkpoint.iterdir()}
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_base.resolve())
    assert "revision" not in config


def test_the_tokenizer_beside_an_adapter_is_that_of_the_base(
    tiny_config: MakeConfig, tiny_base: Path
) -> None:
    run = train(tiny_config("train.max_steps=1")).run
    opened = open_run(run)
    beside = AutoTokenizer.from_pretrained(run / "adapter", local_files_only=True)
    assert (run / "adapter" / "tokenizer.json").read_bytes() == (
        tiny_base / "tokenizer.json"
    ).read_bytes()
    messages = [{"role": "user", "content": "hello 你好 <s> 12"}]
    for own in (opened.template.tokenizer, beside):
        assert own.chat_template == DEEPSEEK_TEMPLATE
    assert beside.apply_chat_template(messages) == opened.template.tokenizer.apply_chat_template(
        messages
    )
    assert beside.eos_token_id == opened.template.tokenizer.eos_token_id
    config = json.loads((run / "adapter" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_card_says_what_was_trained_and_no_path_but_the_base(tiny_config: MakeConfig) -> None:
    run = train(tiny_config("train.max_steps=1", "lora.use_rslora=true", "lora.r=2")).run
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    receipt = open_run(run).receipt
    assert receipt.data["rows.jsonl"] in card
    assert receipt.base["weights"] in card
    assert "| lora.use_rslora | True |" in card
    assert "Ollama takes whole numbers only" in card
    assert str(run) not in card
    assert "rows.jsonl" in card
    assert "base_model:" not in card  # a path is no name on the hub


@pytest.mark.parametrize(
    ("base", "folder", "expected"),
    [
        ("smollm2-135m", "cache/SmolLM2-1-2", (EMBEDDED_HUB_ID, None)),
        ("who/model", "hub/models--who--model/snapshots/0123abcd", ("who/model", "0123abcd")),
        (".", "here", None),
        ("./snapshots", "hub/models--who--model/snapshots/0123abcd", None),
    ],
)
def test_a_base_is_named_as_others_load_it(
    base: str,
    folder: str,
    expected: tuple[str, str | None] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "snapshots").mkdir()
    monkeypatch.chdir(tmp_path)
    assert published_name(base, tmp_path / folder) == (expected or (str(tmp_path / folder), None))


def test_a_stopped_run_has_no_card_yet(tiny_config: MakeConfig) -> None:
    run = train(tiny_config(), should_stop=stop_after(6)).run
    assert not (run / "adapter").exists()


@pytest.mark.slow
def test_the_snippet_in_the_card_gives_the_reply_of_a_chat(tiny_config: MakeConfig) -> None:
    run = train(tiny_config("train.max_steps=4")).run
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "max_new_tokens=200" in snippet
    done = subprocess.run(
        [sys.executable, "-c", snippet.replace("max_new_tokens=200", "max_new_tokens=12")],
        cwd=run / "adapter",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    chat = Chat.open(run, Sampling(temperature=0, max_new_tokens=12))
    # A chat leaves out a character of which the limit cuts off a part.
    assert done.stdout.strip().rstrip("\ufffd") == chat.ask("Who are you?").strip()
